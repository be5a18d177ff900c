/*
 * c_call.c - the C side of client-py/bench: inferd_infer() in a loop; prints each call's nanoseconds, one per line.
 *
 * usage: c_call MODEL CALLS. The same model, sizes and machine as the Python calls that it is compared with, in turns with them.
 */
#include <inferd.h>

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    struct inferd_session *session;
    if (argc != 3 || inferd_attach(argv[1], NULL, &session) != 0) {
        fprintf(stderr, "c_call: cannot attach\n");
        return 1;
    }
    const struct inferd_signature *signature = inferd_signature(session);
    size_t calls = strtoul(argv[2], NULL, 10), in_bytes = (size_t)signature->inputs[0].bytes, out_bytes = (size_t)signature->outputs[0].bytes;
    struct inferd_in in = {calloc(1, in_bytes), in_bytes};
    struct inferd_out out = {calloc(1, out_bytes), out_bytes};
    uint64_t *took_ns = malloc(calls * sizeof *took_ns);
    for (size_t i = 0; i < calls; i++) {
        uint64_t began_ns = inferd_now_ns();
        if (inferd_infer(session, &in, 1, &out, 1, NULL, UINT64_C(1000000000), NULL) != INFERD_OK) {
            fprintf(stderr, "c_call: not ok\n");
            return 1;
        }
        took_ns[i] = inferd_now_ns() - began_ns;
    }
    for (size_t i = 0; i < calls; i++) {
        printf("%llu\n", (unsigned long long)took_ns[i]);
    }
    inferd_detach(session);
    return 0;
}
