/*
 * answers.c - the lines of JSON that the driver says; each function here writes one whole line.
 */
#include "driver.h"

#include <errno.h>
#include <stdio.h>

void print_string(const char *text)
{
    putchar('"');
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            printf("\\%c", c);
        } else if (c < 0x20) {
            printf("\\u%04x", c);
        } else {
            putchar(c);
        }
    }
    putchar('"');
}

void answer_error(const char *name, const char *message)
{
    printf("{\"ok\":false,\"error\":\"%s\",\"message\":", name);
    print_string(message);
    printf("}\n");
}

void answer_usage(const char *what)
{
    answer_error("usage", what);
}

const char *error_name(int error)
{
    switch (error) {
    case -ESTALE: return "invalid";
    case -ENOMEM: return "no_resources";
    case -EBUSY:
    case -EREMCHG:
    case -EPROTO: return "other";
    default: return inferd_error_name(error);
    }
}

void answer_failure(const struct inferd_session *session, int error)
{
    answer_error(error_name(error), inferd_error(session));
}

void answer_done(int error, const struct inferd_session *session)
{
    if (error != 0) {
        answer_failure(session, error);
    } else {
        printf("{\"ok\":true}\n");
    }
}

void answer_attached(struct inferd_session *session)
{
    struct inferd_info info = {.size = sizeof info};
    int error = inferd_info(session, &info);
    if (error != 0) {
        answer_failure(session, error);
        return;
    }
    printf("{\"ok\":true,\"session\":%llu,\"generation\":%u,\"slots\":%u,\"queue\":\"%s\",\"spin_us\":%u,\"epoch\":%llu,\"daemon\":",
           (unsigned long long)info.session, info.generation, info.slots, inferd_queue_name(info.queue), info.spin_us,
           (unsigned long long)(info.epoch - 1));
    print_string(inferd_daemon_version(session));
    printf("}\n");
}

/* The outputs, in place or from copies; only an outcome that is ok has any. */
static void print_outputs(struct inferd_session *session, const struct inferd_reply *reply, const struct inferd_out *copies,
                          enum show show)
{
    const struct inferd_signature *signature = inferd_signature(session);
    uint64_t hash = FNV1A_START;
    for (uint32_t i = 0; i < signature->outputs_count; i++) {
        size_t bytes = (size_t)signature->outputs[i].bytes;
        const void *at = copies != NULL ? copies[i].data : inferd_output(session, reply, i);
        if (show == SHOW_HASH) {
            hash = fnv1a(hash, at, bytes);
        } else {
            printf("%s\"", i == 0 ? ",\"outputs\":[" : ",");
            print_hex(at, bytes);
            putchar('"');
        }
    }
    if (show == SHOW_HASH) {
        printf(",\"hash\":\"%016llx\"", (unsigned long long)hash);
    } else {
        printf(signature->outputs_count == 0 ? ",\"outputs\":[]" : "]");
    }
}

void answer_outcome(struct inferd_session *session, const struct inferd_reply *reply, const struct inferd_out *copies,
                           enum show show, uint64_t waited_ns, uint64_t polls)
{
    printf("{\"ok\":true,\"outcome\":\"%s\",\"waited_us\":%llu", inferd_status_name((int)reply->status),
           (unsigned long long)(waited_ns / 1000));
    if (polls != UINT64_MAX) {
        printf(",\"polls\":%llu", (unsigned long long)polls);
    }
    if (reply->status == INFERD_SUPERSEDED) {
        printf(",\"by\":%llu", (unsigned long long)reply->request);
    } else if (reply->status != INFERD_DAEMON_LOST) {
        printf(",\"late\":%s,\"state_reset\":%s,\"request\":%llu,\"observation_id\":%llu,\"generation\":%u,\"skipped\":%u,"
               "\"step\":%llu,\"t_start_ns\":%llu,\"t_done_ns\":%llu",
               (reply->flags & INFERD_LATE) != 0 ? "true" : "false", (reply->flags & INFERD_STATE_RESET) != 0 ? "true" : "false",
               (unsigned long long)reply->request, (unsigned long long)reply->observation_id, reply->generation, reply->skipped,
               (unsigned long long)reply->step, (unsigned long long)reply->t_start_ns, (unsigned long long)reply->t_done_ns);
    }
    if (reply->status == INFERD_OK && show != SHOW_NONE) {
        print_outputs(session, reply, copies, show);
    }
    printf("}\n");
}
