/*
 * session.c - the life of a session: attach, reattach with backoff, detach, and what it says of itself.
 *
 * All memory is allocated here, once: the session itself, and its copy of the signature. A lost link
 * stays mapped, so that replies which came before the hang-up are still read; the next attach that is
 * served replaces it, and with it the epoch of tickets. A forked child is told apart before anything
 * else is looked at, for its parent's mappings are absent there.
 */
#include "internal.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int ifd_owner_check(const struct inferd_session *s)
{
    bool ours = s->owner_mark != NULL ? atomic_load_explicit(s->owner_mark, memory_order_relaxed) == 1 : getpid() == s->owner_pid;
    return ours ? 0 : -EOWNERDEAD; /* no sentence: a child of vfork() shares our memory */
}

int ifd_peer_fault(struct inferd_session *s, const char *sentence)
{
    s->lost = true;
    return ifd_failf(s, -EPROTO, "model %s: the daemon broke the protocol: %s; install daemon and library of one release, and "
                     "report this", s->model, sentence);
}

int ifd_daemon_lost(struct inferd_session *s)
{
    return ifd_fail(s, -ECONNRESET, "the session has ended: the daemon is gone, or ended it; use the fallback (inferd_request() "
                                    "reattaches unless INFERD_NO_REATTACH was given)");
}

/* ---- attach ---- */

static bool is_model_name(const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = strnlen(name, INFERD_NAME_BYTES_MAX + 1);
    return length >= 1 && length <= INFERD_NAME_BYTES_MAX && strspn(name, letters) == length && name[0] != '.' && name[0] != '-';
}

/* Copies what exists in the caller's version of the struct over the defaults. */
static bool read_options(const struct inferd_attach_options *given, struct inferd_attach_options *options)
{
    *options = inferd_attach_defaults();
    if (given == NULL) {
        return true;
    }
    if (given->size < offsetof(struct inferd_attach_options, runtime_dir)) {
        return false;
    }
    memcpy(options, given, given->size < sizeof *options ? given->size : sizeof *options);
    return true;
}

static int take_wishes(struct inferd_session *s, const char *model, const struct inferd_attach_options *options)
{
    if (model == NULL || !is_model_name(model)) {
        return ifd_fail(s, -EINVAL, "attach: a model name is 1 to 63 letters, digits, '.', '_' or '-', not beginning with '.' or '-'");
    }
    if (options->slots > INFERD_SLOTS_MAX) {
        return ifd_failf(s, -EINVAL, "attach: options.slots is %u; at most %u", options->slots, INFERD_SLOTS_MAX);
    }
    if (options->queue > INFERD_LATEST) {
        return ifd_failf(s, -EINVAL, "attach: options.queue is %u, which is no queue", options->queue);
    }
    if ((options->flags & ~(INFERD_NO_REATTACH | INFERD_LOCK_MEMORY)) != 0) {
        return ifd_failf(s, -EINVAL, "attach: options.flags has unknown bits (%#x)", options->flags);
    }
    if (options->spin_us != INFERD_SPIN_MODEL && options->spin_us > IFD_SPIN_US_MAX) {
        return ifd_failf(s, -EINVAL, "attach: options.spin_us is %u; at most %u", options->spin_us, IFD_SPIN_US_MAX);
    }
    memcpy(s->model, model, strlen(model) + 1);
    s->wish_slots = options->slots;
    s->wish_queue = options->queue;
    s->wish_spin_us = options->spin_us;
    s->flags = options->flags;
    s->timeout_ns = options->timeout_ns != 0 ? options->timeout_ns : UINT64_C(1000000) * IFD_ATTACH_TIMEOUT_MS;
    return ifd_find_dir(s, options->runtime_dir);
}

void ifd_adopt(struct inferd_session *s)
{
    ifd_link_close(&s->link, false);
    s->link = s->next;
    s->next = (struct ifd_link){.phase = IFD_IDLE, .socket = -1, .doorbell_socket = -1};
    s->epoch++;
    /* A session that replaces another begins on fresh state, and the caller is told so as after any other loss. */
    s->reset_next = s->reset_next || (s->epoch > 1 && s->signature.stateful);
    s->lost = s->taken = s->armed = false;
    s->next_request = s->next_reply = s->released = s->given_up = s->reset_seq = s->fruitless_ns = 0;
    s->held = 0;
    memset(s->abandoned, 0, sizeof s->abandoned);
    memset(s->records, 0, sizeof s->records);
    memset(s->t_submit_ns, 0, sizeof s->t_submit_ns);
    s->generation = s->link.generation;
    s->spin_us = s->wish_spin_us == INFERD_SPIN_MODEL ? s->link.spin_us : s->wish_spin_us;
    s->state = atomic_load_explicit(ifd_rep_word(s, IFD_REP_STATE), memory_order_acquire);
    s->backoff_ms = 0;
    s->retry_ns = 0;
}

int inferd_attach(const char *model, const struct inferd_attach_options *options, struct inferd_session **session)
{
    struct inferd_attach_options wishes;
    if (session == NULL) {
        return -EINVAL;
    }
    *session = NULL;
    if (!read_options(options, &wishes)) {
        return -EINVAL; /* the struct's size is unknown: so is the place for a sentence */
    }
    /* Not calloc: every page is touched now, so that no request pays for a page fault. */
    struct inferd_session *s = malloc(sizeof *s);
    if (s == NULL) {
        return -ENOMEM;
    }
    memset(s, 0, sizeof *s);
    s->error = "";
    s->owner_pid = getpid();
    s->owner_mark = ifd_owner_mark_new();
    s->link = s->next = (struct ifd_link){.phase = IFD_IDLE, .socket = -1, .doorbell_socket = -1};
    int error = take_wishes(s, model, &wishes);
    if (error == 0) {
        error = ifd_attach_run(s, ifd_later(inferd_now_ns(), s->timeout_ns));
    }
    if (error != 0) {
        if (wishes.error != NULL && wishes.error_bytes > 0) {
            (void)snprintf(wishes.error, wishes.error_bytes, "%s", s->error);
        }
        inferd_detach(s);
        return error;
    }
    ifd_adopt(s);
    *session = s;
    return 0;
}

void inferd_detach(struct inferd_session *session)
{
    if (session == NULL) {
        return;
    }
    bool in_child = ifd_owner_check(session) != 0;
    ifd_link_close(&session->next, in_child);
    ifd_link_close(&session->link, in_child);
    ifd_owner_mark_free(session->owner_mark);
    free(session->signature_bytes);
    free(session);
}

/* ---- reattach ---- */

static void back_off(struct inferd_session *s)
{
    uint32_t ms = s->backoff_ms == 0 ? IFD_REATTACH_BACKOFF_MS : s->backoff_ms * 2;
    s->backoff_ms = ms < IFD_REATTACH_BACKOFF_MS_MAX ? ms : IFD_REATTACH_BACKOFF_MS_MAX;
    s->retry_ns = inferd_now_ns() + UINT64_C(1000000) * s->backoff_ms;
}

/* One attempt: as far as it comes until `until_ns`, or only its next step (0). 0 when served again; -EINPROGRESS. */
static int attempt(struct inferd_session *s, uint64_t until_ns)
{
    int error = 0;
    if (s->next.phase == IFD_IDLE) {
        s->give_up_ns = ifd_later(inferd_now_ns(), s->timeout_ns);
    }
    if (until_ns != 0) {
        error = ifd_attach_run(s, until_ns < s->give_up_ns ? until_ns : s->give_up_ns);
        error = error == -ETIMEDOUT ? -EINPROGRESS : error;
    } else {
        error = s->next.phase == IFD_IDLE ? ifd_attach_begin(s) : 0;
        error = error == 0 ? ifd_attach_advance(s) : error;
    }
    if (error == 0) {
        ifd_adopt(s);
        return 0;
    }
    if (error == -EINPROGRESS && inferd_now_ns() < s->give_up_ns) {
        return error;
    }
    ifd_link_close(&s->next, false);
    back_off(s);
    return error == -EINPROGRESS ? ifd_fail(s, -ETIMEDOUT, "attach: the daemon did not answer in time") : error;
}

/* Whether trying again later, with nothing changed on this side, may help. */
static bool is_transient(int error)
{
    switch (error) {
    case -EREMCHG:
    case -EINVAL:
    case -EPROTO:
    case -EPROTONOSUPPORT:
    case -ENODEV:
    case -ETIME:
    case -EACCES:
    case -EBADMSG: return false;
    default: return true;
    }
}

static int refuse_while_held(struct inferd_session *s)
{
    return s->held == 0 ? 0 : ifd_fail(s, -EBUSY, "the session has ended, and cannot reattach while a reply is held: release it first");
}

int ifd_reattach_if_wanted(struct inferd_session *s, uint64_t until_ns)
{
    if ((s->flags & INFERD_NO_REATTACH) != 0) {
        return ifd_daemon_lost(s);
    }
    int error = refuse_while_held(s);
    if (error != 0) {
        return error;
    }
    if (s->next.phase == IFD_IDLE && inferd_now_ns() < s->retry_ns) {
        return ifd_daemon_lost(s);
    }
    error = attempt(s, until_ns);
    if (error == 0 || error == -EREMCHG) {
        return error;
    }
    if (error == -EINPROGRESS) {
        return ifd_fail(s, -ECONNRESET, "the session has ended; a new one is being attached; use the fallback");
    }
    return ifd_failf(s, -ECONNRESET, "the session has ended; use the fallback (reattach: %s)", s->error);
}

int inferd_reattach(struct inferd_session *session, uint64_t timeout_ns)
{
    struct inferd_session *s = session;
    int error = s == NULL ? -EINVAL : ifd_owner_check(s);
    if (error != 0) {
        return error;
    }
    s->lost = s->lost || ifd_hung_up(s->link.socket);
    uint64_t limit_ns = ifd_later(inferd_now_ns(), timeout_ns != 0 ? timeout_ns : s->timeout_ns);
    while (s->lost) {
        error = refuse_while_held(s);
        if (error != 0) {
            return error;
        }
        uint64_t now_ns = inferd_now_ns();
        uint64_t until_ns = s->retry_ns < limit_ns ? s->retry_ns : limit_ns;
        if (s->next.phase == IFD_IDLE && now_ns < until_ns) {
            (void)poll(NULL, 0, (int)((until_ns - now_ns) / UINT64_C(1000000)) + 1);
        }
        error = attempt(s, limit_ns);
        if (error == -EINPROGRESS) {
            return ifd_fail(s, -ETIMEDOUT, "reattach: the daemon did not answer in time; a later call goes on with it");
        }
        if (error != 0 && (inferd_now_ns() >= limit_ns || !is_transient(error))) {
            return error;
        }
    }
    return 0;
}

/* ---- what it says of itself ---- */

const struct inferd_signature *inferd_signature(const struct inferd_session *session)
{
    return session == NULL ? NULL : &session->signature;
}

int inferd_info(const struct inferd_session *session, struct inferd_info *info)
{
    const struct inferd_session *s = session;
    if (s == NULL || info == NULL || info->size < 2 * sizeof(uint32_t)) {
        return -EINVAL;
    }
    int error = ifd_owner_check(s);
    if (error != 0) {
        return error;
    }
    uint64_t state = s->lost ? INFERD_CLOSED : atomic_load_explicit(ifd_rep_word(s, IFD_REP_STATE), memory_order_acquire);
    uint64_t in_flight = s->next_request - s->released;
    struct inferd_info now = {
        .size = info->size,
        .state = state >= INFERD_SERVING && state <= INFERD_DRAINING ? (uint32_t)state : INFERD_CLOSED,
        .session = s->link.session,
        .epoch = s->epoch,
        .generation = s->generation,
        .slots = s->link.geometry.slots,
        .queue = s->link.geometry.queue,
        .spin_us = s->spin_us,
        .named = s->link.backing == IFD_BACKING_POSIX,
        .in_flight = (uint32_t)(in_flight < s->link.geometry.slots ? in_flight : s->link.geometry.slots),
    };
    memcpy(info, &now, info->size < sizeof now ? info->size : sizeof now);
    return 0;
}
