/*
 * test_layout.c - compares the byte tables of docs/shm-layout.md with the C structures, both ways.
 *
 * usage: test_layout docs/shm-layout.md. A table belongs to the structure that the heading above it names.
 */
#include "layout.h"

#include <stdio.h>
#include <stdlib.h>

struct field {
    const char *structure, *name;
    size_t offset, bytes;
    int seen;
};

#define F(type, field) {#type, #field, offsetof(struct type, field), sizeof(((struct type *)0)->field), 0}
static struct field fields[] = {
    F(ifd_geometry, slots), F(ifd_geometry, queue), F(ifd_geometry, request_bytes), F(ifd_geometry, request_base),
    F(ifd_geometry, request_slots), F(ifd_geometry, request_stride), F(ifd_geometry, reply_bytes), F(ifd_geometry, reply_base),
    F(ifd_geometry, reply_slots), F(ifd_geometry, reply_stride),
    F(ifd_request_header, seq), F(ifd_request_header, observation_id), F(ifd_request_header, t_submit_ns),
    F(ifd_request_header, deadline_ns), F(ifd_request_header, flags), F(ifd_request_header, executed),
    F(ifd_request_header, reset_seq), F(ifd_request_header, reserved),
    F(ifd_reply_header, seq), F(ifd_reply_header, request), F(ifd_reply_header, observation_id), F(ifd_reply_header, t_start_ns),
    F(ifd_reply_header, t_done_ns), F(ifd_reply_header, status), F(ifd_reply_header, flags), F(ifd_reply_header, generation),
    F(ifd_reply_header, skipped), F(ifd_reply_header, step),
    F(ifd_region_header, magic), F(ifd_region_header, abi_major), F(ifd_region_header, abi_minor),
    F(ifd_region_header, signature_bytes), F(ifd_region_header, session), F(ifd_region_header, generation),
    F(ifd_region_header, reserved), F(ifd_region_header, reserved2),
    F(ifd_signature_header, inputs), F(ifd_signature_header, outputs), F(ifd_signature_header, flags), F(ifd_signature_header, bytes),
    F(ifd_tensor_record, name), F(ifd_tensor_record, dtype), F(ifd_tensor_record, rank), F(ifd_tensor_record, shape),
    F(ifd_tensor_record, offset), F(ifd_tensor_record, bytes), F(ifd_tensor_record, text_offset), F(ifd_tensor_record, text_bytes),
    F(ifd_tensor_record, time_axis), F(ifd_tensor_record, reserved),
    F(ifd_record_head, magic), F(ifd_record_head, kind), F(ifd_record_head, abi_major), F(ifd_record_head, abi_minor),
    F(ifd_record_head, bytes),
    F(ifd_attach_record, head), F(ifd_attach_record, model), F(ifd_attach_record, slots), F(ifd_attach_record, queue),
    F(ifd_attach_record, flags), F(ifd_attach_record, pid), F(ifd_attach_record, clock_ns),
    F(ifd_attached_record, head), F(ifd_attached_record, status), F(ifd_attached_record, generation), F(ifd_attached_record, session),
    F(ifd_attached_record, geometry), F(ifd_attached_record, backing), F(ifd_attached_record, spin_us),
    F(ifd_attached_record, version), F(ifd_attached_record, message),
    F(ifd_mapped_record, head),
    F(ifd_ready_record, head), F(ifd_ready_record, status), F(ifd_ready_record, reserved), F(ifd_ready_record, message),
};
#define FIELDS (sizeof fields / sizeof fields[0])

int main(int argc, char **argv)
{
    char line[1024], structure[64] = "";
    unsigned rows = 0, faults = 0;
    FILE *page = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (page == NULL) {
        fprintf(stderr, "usage: test_layout docs/shm-layout.md\n");
        return 2;
    }
    while (fgets(line, sizeof line, page) != NULL) {
        size_t offset, bytes;
        char name[64];
        if (line[0] == '#') {
            structure[0] = '\0';
            (void)sscanf(line, "### `%63[a-z_0-9]`", structure);
        } else if (structure[0] != '\0' && sscanf(line, "| %zu | %zu | %63[a-z_0-9] |", &offset, &bytes, name) == 3) {
            size_t i = 0;
            while (i < FIELDS && (strcmp(fields[i].structure, structure) != 0 || strcmp(fields[i].name, name) != 0)) {
                i++;
            }
            rows++;
            if (i == FIELDS || fields[i].offset != offset || fields[i].bytes != bytes) {
                fprintf(stderr, "%s.%s: the page says %zu bytes at %zu\n", structure, name, bytes, offset);
                faults++;
            } else {
                fields[i].seen++;
            }
        }
    }
    (void)fclose(page);
    for (size_t i = 0; i < FIELDS; i++) {
        if (fields[i].seen != 1) {
            fprintf(stderr, "%s.%s stands in %d rows of the page\n", fields[i].structure, fields[i].name, fields[i].seen);
            faults++;
        }
    }
    if (faults != 0) {
        return 1;
    }
    printf("ok the_tables_of_the_page_are_those_of_the_structures (%u rows)\n", rows);
    return 0;
}
