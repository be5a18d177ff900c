/*
 * minimal.c - one inference: attach, one call, print the first output.
 *
 * usage: minimal MODEL. The input is all zeroes; any model will do. Exits 0 if the outcome is ok.
 */
#include <inferd.h>

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    struct inferd_attach_options options = inferd_attach_defaults();
    char why[512] = "";
    options.error = why;
    options.error_bytes = sizeof why;
    struct inferd_session *session;
    if (argc != 2 || inferd_attach(argv[1], &options, &session) < 0) {
        fprintf(stderr, "%s\n", argc != 2 ? "usage: minimal MODEL" : why);
        return 1;
    }

    const struct inferd_signature *signature = inferd_signature(session);
    struct inferd_in in[INFERD_TENSORS_MAX];
    struct inferd_out out[INFERD_TENSORS_MAX];
    for (uint32_t i = 0; i < signature->inputs_count; i++) {
        in[i].bytes = (size_t)signature->inputs[i].bytes;
        in[i].data = calloc(1, in[i].bytes + 1);
    }
    for (uint32_t i = 0; i < signature->outputs_count; i++) {
        out[i].bytes = (size_t)signature->outputs[i].bytes;
        out[i].data = calloc(1, out[i].bytes + 1);
    }

    struct inferd_reply reply;
    int outcome = inferd_infer(session, in, signature->inputs_count, out, signature->outputs_count, NULL,
                               UINT64_C(1000000000), &reply);
    if (outcome == INFERD_OK) {
        printf("ok, by generation %u in %.1f us\n", reply.generation, (double)(reply.t_done_ns - reply.t_submit_ns) / 1e3);
        const struct inferd_tensor *first = &signature->outputs[0];
        size_t count = signature->outputs_count > 0 && first->dtype == INFERD_F32 ? out[0].bytes / sizeof(float) : 0;
        for (size_t k = 0; k < count; k++) {
            printf("%s[%zu] = %g\n", first->name, k, (double)((const float *)out[0].data)[k]);
        }
    } else {
        fprintf(stderr, "%s\n", outcome > 0 ? inferd_status_name(outcome) : inferd_error(session));
    }

    for (uint32_t i = 0; i < signature->inputs_count; i++) {
        free((void *)(uintptr_t)in[i].data);
    }
    for (uint32_t i = 0; i < signature->outputs_count; i++) {
        free(out[i].data);
    }
    inferd_detach(session);
    return outcome == INFERD_OK ? 0 : 1;
}
