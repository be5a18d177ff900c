/*
 * text.c - names, versions, and the sentence about a session's last failure.
 *
 * Sentences say what, where and the remedy. Those that a control loop meets are literals, so that a
 * refused call costs no formatting; the rest is formatted into the session, never into a global.
 */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

int ifd_fail(struct inferd_session *s, int error, const char *sentence)
{
    s->error = sentence;
    return error;
}

int ifd_failf(struct inferd_session *s, int error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    /* A sentence may quote the one before it: format aside first. */
    char text[IFD_ERROR_BYTES];
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(s->text, text, sizeof text);
    s->error = s->text;
    return error;
}

const char *inferd_error(const struct inferd_session *session)
{
    return session == NULL ? "there is no session: inferd_attach() has not succeeded" : session->error;
}

const char *inferd_error_name(int error)
{
    switch (error) {
    case 0: return "ok";
    case -EAGAIN: return "again";
    case -EINPROGRESS: return "pending";
    case -ETIMEDOUT: return "timeout";
    case -EHOSTDOWN: return "unavailable";
    case -ESHUTDOWN: return "shutting_down";
    case -ECONNRESET: return "daemon_lost";
    case -EOWNERDEAD: return "wrong_process";
    case -EINVAL: return "invalid";
    case -ESTALE: return "spent";
    case -EBUSY: return "busy";
    case -EREMCHG: return "signature_changed";
    case -EPROTO: return "protocol";
    case -ECONNREFUSED: return "no_daemon";
    case -ENODEV: return "unknown_model";
    case -EPROTONOSUPPORT: return "abi_mismatch";
    case -EDQUOT: return "quota";
    case -EACCES: return "forbidden";
    case -ETIME: return "clock_skew";
    case -EBADMSG: return "bad_request";
    case -ENOMEM: return "no_memory";
    case -ENOSPC: return "no_resources";
    case -EBADFD: return "bad_region";
    default: return "other";
    }
}

const char *inferd_status_name(int status)
{
    switch (status) {
    case INFERD_OK: return "ok";
    case INFERD_EXPIRED: return "expired";
    case INFERD_REJECTED: return "rejected";
    case INFERD_MODEL_ERROR: return "model_error";
    case INFERD_WORKER_LOST: return "worker_lost";
    case INFERD_NEEDS_RESET: return "needs_reset";
    case INFERD_SHUTTING_DOWN: return "shutting_down";
    case INFERD_UNAVAILABLE: return "unavailable";
    case INFERD_SUPERSEDED: return "superseded";
    case INFERD_DAEMON_LOST: return "daemon_lost";
    default: return "unknown";
    }
}

const char *inferd_dtype_name(uint32_t dtype)
{
    static const char *const names[] = {"unknown", "f32", "f64", "f16", "bf16", "i8",  "i16",
                                        "i32",     "i64", "u8",  "u16", "u32",  "u64", "bool"};
    return dtype < sizeof names / sizeof names[0] ? names[dtype] : names[0];
}

size_t inferd_dtype_bytes(uint32_t dtype)
{
    static const unsigned char bytes[] = {0, 4, 8, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8, 1};
    return dtype < sizeof bytes ? bytes[dtype] : 0;
}

const char *inferd_queue_name(uint32_t queue)
{
    return queue == INFERD_IN_ORDER ? "in_order" : queue == INFERD_LATEST ? "latest" : "unknown";
}

const char *inferd_state_name(uint32_t state)
{
    static const char *const names[] = {"unknown", "serving", "recovering", "quarantined", "draining", "closed"};
    return state < sizeof names / sizeof names[0] ? names[state] : names[0];
}

const char *inferd_version(void)
{
    return INFERD_VERSION;
}

uint32_t inferd_abi(void)
{
    return (uint32_t)INFERD_ABI_MAJOR << 16 | (uint32_t)INFERD_ABI_MINOR;
}

const char *inferd_daemon_version(const struct inferd_session *session)
{
    return session == NULL ? "" : session->link.version;
}

uint64_t inferd_now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail on Linux; the vDSO, no system call */
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}
