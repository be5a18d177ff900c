/*
 * signature.c - reads what a model takes and gives, from the reply region, once per attach.
 *
 * The daemon wrote it before anybody else could map the region, and nobody writes it afterwards; all
 * the same it is copied first and the copy is checked, so that every offset handed out later lies
 * within its slot. A reattach compares: pointers that the caller holds into the first copy stay valid.
 */
#include "internal.h"

#include <stdlib.h>

static int damaged(struct inferd_session *s, const char *what)
{
    return ifd_failf(s, -EPROTO, "attach to %s: the signature in the reply region is damaged (%s); the daemon and this "
                     "library do not fit each other", s->model, what);
}

/* Bytes of a tensor by its shape; 0 with `*fits` false if it is over the limit. */
static uint64_t tensor_bytes(const struct ifd_tensor_record *record, bool *fits)
{
    uint64_t bytes = inferd_dtype_bytes(record->dtype);
    bool empty = false;
    for (uint32_t d = 0; d < record->rank; d++) {
        empty = empty || record->shape[d] == 0;
    }
    for (uint32_t d = 0; d < record->rank && !empty; d++) {
        if (record->shape[d] > IFD_TENSOR_BYTES_MAX / bytes) {
            *fits = false;
            return 0;
        }
        bytes *= record->shape[d];
    }
    *fits = true;
    return empty ? 0 : bytes;
}

/* Checks one record and fills the public tensor; its strings point into `bytes`. NULL, or what is wrong. */
static const char *read_tensor(const unsigned char *bytes, const struct ifd_signature_header *header, uint32_t index,
                               uint64_t stride, uint64_t *end, uint64_t *at, struct inferd_tensor *tensor)
{
    size_t place = sizeof *header + (size_t)index * sizeof(struct ifd_tensor_record);
    struct ifd_tensor_record record;
    memcpy(&record, bytes + place, sizeof record);
    if (record.name[0] == '\0' || memchr(record.name, 0, sizeof record.name) == NULL) {
        return "name";
    }
    if (inferd_dtype_bytes(record.dtype) == 0) {
        return "dtype";
    }
    if (record.rank > INFERD_RANK_MAX) {
        return "rank";
    }
    bool fits = false;
    if (tensor_bytes(&record, &fits) != record.bytes || !fits) {
        return "length";
    }
    uint64_t offset = (*end + IFD_TENSOR_ALIGN - 1) / IFD_TENSOR_ALIGN * IFD_TENSOR_ALIGN;
    if (record.offset != offset || offset > stride || record.bytes > stride - offset) {
        return "offset";
    }
    /* A zero ends the text, which lies behind the records. */
    uint64_t text_end = (uint64_t)record.text_offset + record.text_bytes;
    uint64_t records_end = sizeof *header + (uint64_t)(header->inputs + header->outputs) * sizeof record;
    if (record.text_offset < records_end || text_end >= header->bytes || bytes[text_end] != 0) {
        return "element names";
    }
    *end = offset + record.bytes;
    *at = offset;
    *tensor = (struct inferd_tensor){
        .name = (const char *)bytes + place,
        .elements = (const char *)bytes + record.text_offset,
        .bytes = record.bytes,
        .rank = record.rank,
        .dtype = record.dtype,
        .time_axis = record.time_axis,
    };
    memcpy(tensor->shape, record.shape, sizeof record.shape);
    return NULL;
}

static int read_tensors(struct inferd_session *s, const struct ifd_geometry *geometry, const unsigned char *bytes,
                        const struct ifd_signature_header *header)
{
    uint64_t end = IFD_HEADER_BYTES;
    for (uint32_t i = 0; i < header->inputs + header->outputs; i++) {
        bool output = i >= header->inputs;
        if (i == header->inputs) {
            end = IFD_HEADER_BYTES;
        }
        uint64_t stride = output ? geometry->reply_stride : geometry->request_stride;
        uint64_t *at = output ? &s->output_at[i - header->inputs] : &s->input_at[i];
        const char *fault = read_tensor(bytes, header, i, stride, &end, at, &s->tensors[i]);
        if (fault != NULL) {
            return damaged(s, fault);
        }
    }
    s->signature = (struct inferd_signature){
        .inputs = s->tensors,
        .outputs = s->tensors + header->inputs,
        .inputs_count = header->inputs,
        .outputs_count = header->outputs,
        .stateful = header->flags & 1,
    };
    return 0;
}

/* After a reattach: same names, dtypes and shapes in the same order, and room for them. */
static int same_layout(struct inferd_session *s, const struct ifd_geometry *geometry, const unsigned char *shared,
                       size_t length)
{
    const unsigned char *known = s->signature_bytes;
    const struct inferd_signature *signature = &s->signature;
    size_t counts = offsetof(struct ifd_signature_header, flags), layout = offsetof(struct ifd_tensor_record, offset);
    uint32_t count = signature->inputs_count + signature->outputs_count;
    size_t place = sizeof(struct ifd_signature_header);
    bool same = length >= place + count * sizeof(struct ifd_tensor_record) && memcmp(shared, known, counts) == 0;
    for (uint32_t i = 0; same && i < count; i++, place += sizeof(struct ifd_tensor_record)) {
        bool output = i >= signature->inputs_count;
        uint64_t end = s->tensors[i].bytes + (output ? s->output_at[i - signature->inputs_count] : s->input_at[i]);
        same = memcmp(shared + place, known + place, layout) == 0 &&
               end <= (output ? geometry->reply_stride : geometry->request_stride);
    }
    if (same) {
        return 0;
    }
    return ifd_failf(s, -EREMCHG, "model %s has another signature than at attach; detach, attach again and adapt the caller",
                     s->model);
}

int ifd_signature_read(struct inferd_session *s, const struct ifd_link *link)
{
    struct ifd_region_header region;
    memcpy(&region, link->reply.base, sizeof region);
    if (region.magic != IFD_REGION_MAGIC) {
        return damaged(s, "no magic");
    }
    if (region.abi_major != INFERD_ABI_MAJOR) {
        return ifd_failf(s, -EPROTONOSUPPORT, "attach to %s: the reply region has ABI %u.%u, this library %d.%d", s->model,
                         region.abi_major, region.abi_minor, INFERD_ABI_MAJOR, INFERD_ABI_MINOR);
    }
    struct ifd_signature_header header;
    uint64_t room = link->geometry.reply_base - sizeof region;
    if (region.signature_bytes < sizeof header || region.signature_bytes > room) {
        return damaged(s, "length");
    }
    const unsigned char *shared = link->reply.base + sizeof region;
    if (s->signature_bytes != NULL) {
        return same_layout(s, &link->geometry, shared, region.signature_bytes);
    }
    size_t length = region.signature_bytes;
    unsigned char *bytes = malloc(length);
    if (bytes == NULL) {
        return ifd_fail(s, -ENOMEM, "attach: no memory for the signature");
    }
    memcpy(bytes, shared, length);
    memcpy(&header, bytes, sizeof header);
    int error = 0;
    uint64_t records = (uint64_t)header.inputs + header.outputs;
    if (header.inputs > INFERD_TENSORS_MAX || header.outputs > INFERD_TENSORS_MAX || header.bytes > length ||
        header.bytes < sizeof header + records * sizeof(struct ifd_tensor_record)) {
        error = damaged(s, "count");
    }
    if (error == 0) {
        error = read_tensors(s, &link->geometry, bytes, &header);
    }
    if (error != 0) {
        free(bytes);
        return error;
    }
    s->signature_bytes = bytes;
    s->signature_length = length;
    return 0;
}
