/*
 * wait.c - spin, then sleep, and notice when the daemon is gone; doorbells in both directions.
 *
 * Spinning makes no system call but one look at the session's socket per millisecond. Sleeping is a
 * futex wait on the worker's doorbell word, in slices, with a look at the socket before each, since a
 * killed daemon rings no doorbell; after a hang-up the slot is looked at once more. Correct without
 * the slices: they only bound how late a death is noticed. The sleep handshake needs both SeqCst fences.
 */
#include "failpoint.h"
#include "internal.h"

#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPIN_CHECK_NS (UINT64_C(1000) * IFD_CLIENT_SPIN_CHECK_US)
#define SLEEP_SLICE_NS (UINT64_C(1000000) * IFD_CLIENT_SLEEP_SLICE_MS)
/* Looks at the slot per reading of the clock, which costs as much as ten of them. */
#define POLLS_PER_CLOCK 32

/* ---- futex: never FUTEX_PRIVATE, since the peer is another process ---- */

#if defined(SYS_futex)
#define FUTEX_CALL SYS_futex
typedef long futex_part; /* the kernel's own layout on 32-bit: two longs, whatever time_t is */
#else
#define FUTEX_CALL SYS_futex_time64
typedef long long futex_part;
#endif

/* The low half of a word lies at its address: little-endian, asserted in layout.h. */
static void futex_wait(const _Atomic uint64_t *word, uint64_t expected, uint64_t limit_ns)
{
    struct {
        futex_part sec, nsec;
    } limit = {(futex_part)(limit_ns / UINT64_C(1000000000)), (futex_part)(limit_ns % UINT64_C(1000000000))};
    (void)syscall(FUTEX_CALL, (const void *)word, FUTEX_WAIT, (uint32_t)expected, &limit, NULL, 0);
}

/* Exactly one waiter: waking all would let a hostile peer with many waiters stall us. */
static void futex_wake_one(const _Atomic uint64_t *word)
{
    (void)syscall(FUTEX_CALL, (const void *)word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* ---- doorbells ---- */

/* The CPU that we run on, plus one; 0 where the kernel does not say. A sleeper leaves it beside its sleeping word: whoever
 * wakes it there and then spins keeps it from answering, for most often it is put on that CPU again. A hint alone. */
static uint64_t this_cpu(void)
{
    int cpu = sched_getcpu();
    return cpu < 0 ? 0 : (uint64_t)cpu + 1;
}

void ifd_ring_doorbell(struct inferd_session *s)
{
    /* SeqCst: orders the stores before it before the load below; pairs with the fence after Responder::fall_asleep, so
     * that either we see the worker asleep, or it sees our request. */
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t sleeping = atomic_load_explicit(ifd_rep_word(s, IFD_REP_SLEEPING), memory_order_relaxed);
    s->in_its_way = false;
    if (sleeping == IFD_AWAKE) {
        return;
    }
    uint64_t its_cpu = atomic_load_explicit(ifd_rep_word(s, IFD_REP_SLEEPER_CPU), memory_order_relaxed);
    s->in_its_way = its_cpu != 0 && its_cpu == this_cpu();
    if (sleeping == IFD_ASLEEP_SOCKET) {
        static const char ring = 1;
        (void)send(s->link.doorbell_socket, &ring, sizeof ring, MSG_DONTWAIT | MSG_NOSIGNAL);
        return;
    }
    /* The word changes before the wake, so that a waiter on its way to sleep does not. Only we write it. */
    _Atomic uint64_t *bell = ifd_req_word(s, IFD_REQ_DOORBELL);
    atomic_store_explicit(bell, atomic_load_explicit(bell, memory_order_relaxed) + 1, memory_order_release);
    IFD_FAILPOINT("client.bell");
    futex_wake_one(bell);
}

/* Says how the client sleeps; true if nothing has changed that it would sleep over. */
static bool fall_asleep(struct inferd_session *s, uint64_t how)
{
    atomic_store_explicit(ifd_req_word(s, IFD_REQ_SLEEPER_CPU), this_cpu(), memory_order_relaxed);
    atomic_store_explicit(ifd_req_word(s, IFD_REQ_SLEEPING), how, memory_order_relaxed);
    IFD_FAILPOINT("client.asleep");
    /* SeqCst: pairs with the fence in Responder::wake_client. */
    atomic_thread_fence(memory_order_seq_cst);
    return !ifd_reply_ready(s) &&
           atomic_load_explicit(ifd_rep_word(s, IFD_REP_STATE), memory_order_relaxed) == s->state;
}

static void wake_up(struct inferd_session *s)
{
    atomic_store_explicit(ifd_req_word(s, IFD_REQ_SLEEPING), IFD_AWAKE, memory_order_relaxed);
}

/* Sleeps until a reply or another state comes, or the limit has passed, or for no reason. */
static void sleep_on_doorbell(struct inferd_session *s, uint64_t limit_ns)
{
    const _Atomic uint64_t *bell = ifd_rep_word(s, IFD_REP_DOORBELL);
    uint64_t before = atomic_load_explicit(bell, memory_order_acquire);
    if (fall_asleep(s, IFD_ASLEEP_FUTEX)) {
        futex_wait(bell, before, limit_ns);
    }
    wake_up(s);
    s->armed = false;
    s->state = atomic_load_explicit(ifd_rep_word(s, IFD_REP_STATE), memory_order_acquire);
}

static void drain_doorbell(struct inferd_session *s)
{
    char rings[8];
    for (int i = 0; i < IFD_DOORBELL_DRAIN_MAX; i++) {
        if (recv(s->link.doorbell_socket, rings, sizeof rings, MSG_DONTWAIT) <= 0) {
            return;
        }
    }
}

void ifd_disarm(struct inferd_session *s)
{
    if (s->armed) {
        s->armed = false;
        wake_up(s);
        drain_doorbell(s);
    }
}

/* ---- hang-up ---- */

bool ifd_hung_up(int socket)
{
    char byte;
    ssize_t bytes = recv(socket, &byte, sizeof byte, MSG_DONTWAIT | MSG_PEEK);
    return bytes == 0 || (bytes < 0 && errno != EAGAIN && errno != EINTR);
}

bool ifd_look_at_socket(struct inferd_session *s)
{
    uint64_t now_ns = inferd_now_ns();
    if (s->fruitless_ns == 0) {
        s->fruitless_ns = now_ns;
    }
    if (!s->lost && now_ns - s->fruitless_ns >= SPIN_CHECK_NS) {
        s->fruitless_ns = now_ns;
        s->lost = ifd_hung_up(s->link.socket);
    }
    return s->lost;
}

/* ---- waiting ---- */

struct ifd_waiter ifd_waiter(const struct inferd_session *s, uint64_t now_ns, uint64_t timeout_ns)
{
    return (struct ifd_waiter){
        .limit_ns = ifd_later(now_ns, timeout_ns),
        .spin_until_ns = ifd_later(now_ns, UINT64_C(1000) * s->spin_us),
        .looked_ns = now_ns,
    };
}

int ifd_await_reply(struct inferd_session *s, struct ifd_waiter *waiter)
{
    while (!s->lost) {
        for (int i = 0; i < POLLS_PER_CLOCK; i++) {
            if (ifd_reply_ready(s)) {
                return 0;
            }
            ifd_spin_hint();
        }
        uint64_t now_ns = inferd_now_ns();
        bool sleeps = now_ns >= waiter->spin_until_ns || s->in_its_way;
        if (now_ns >= waiter->limit_ns) {
            return ifd_reply_ready(s) ? 0 : -ETIMEDOUT;
        }
        if (sleeps || now_ns - waiter->looked_ns >= SPIN_CHECK_NS) {
            waiter->looked_ns = now_ns;
            s->lost = ifd_hung_up(s->link.socket);
        }
        if (sleeps && !s->lost) {
            uint64_t left_ns = waiter->limit_ns - now_ns;
            sleep_on_doorbell(s, left_ns < SLEEP_SLICE_NS ? left_ns : SLEEP_SLICE_NS);
        }
    }
    /* Once more at the slot after the hang-up: the reply may have been published just before. */
    return ifd_reply_ready(s) ? 0 : -ECONNRESET;
}

int ifd_wait(struct inferd_session *s, struct inferd_ticket ticket, struct ifd_waiter *waiter, struct inferd_reply *reply)
{
    for (;;) {
        int outcome = ifd_absorb(s);
        if (outcome == 0) {
            outcome = ifd_outcome(s, ticket, reply);
        }
        if (outcome != -EINPROGRESS) {
            return outcome;
        }
        switch (ifd_await_reply(s, waiter)) {
        case 0: break;
        case -ETIMEDOUT:
            (void)inferd_abandon(s, ticket);
            return ifd_fail(s, -ETIMEDOUT, "no answer within the timeout; use the fallback (the ticket is abandoned)");
        default: return ifd_lost_outcome(ticket, reply);
        }
    }
}

int inferd_wait(struct inferd_session *session, struct inferd_ticket ticket, uint64_t timeout_ns, struct inferd_reply *reply)
{
    int error = session == NULL || reply == NULL ? -EINVAL : ifd_owner_check(session);
    if (error != 0) {
        return error;
    }
    ifd_disarm(session);
    struct ifd_waiter waiter = ifd_waiter(session, inferd_now_ns(), timeout_ns);
    return ifd_wait(session, ticket, &waiter, reply);
}

int inferd_try(struct inferd_session *session, struct inferd_ticket ticket, struct inferd_reply *reply)
{
    struct inferd_session *s = session;
    int error = s == NULL || reply == NULL ? -EINVAL : ifd_owner_check(s);
    if (error != 0) {
        return error;
    }
    int outcome = ifd_absorb(s);
    if (outcome == 0) {
        outcome = ifd_outcome(s, ticket, reply);
    }
    if (outcome == -EINPROGRESS && ifd_look_at_socket(s)) {
        /* Once more at the slot after the hang-up. */
        outcome = ifd_absorb(s);
        if (outcome == 0) {
            outcome = ifd_outcome(s, ticket, reply);
        }
        outcome = outcome == -EINPROGRESS ? ifd_lost_outcome(ticket, reply) : outcome;
    }
    if (outcome == -EINPROGRESS) {
        return ifd_fail(s, -EINPROGRESS, "not answered yet");
    }
    ifd_disarm(s);
    return outcome;
}

/* ---- event loops ---- */

int inferd_poll_fd(const struct inferd_session *session)
{
    int error = session == NULL ? -EINVAL : ifd_owner_check(session);
    return error != 0 ? error : session->link.doorbell_socket;
}

int inferd_poll_arm(struct inferd_session *session)
{
    struct inferd_session *s = session;
    int error = s == NULL ? -EINVAL : ifd_owner_check(s);
    if (error != 0) {
        return error;
    }
    if (s->lost) {
        return 1;
    }
    drain_doorbell(s);
    s->armed = fall_asleep(s, IFD_ASLEEP_SOCKET);
    if (!s->armed) {
        wake_up(s);
        s->state = atomic_load_explicit(ifd_rep_word(s, IFD_REP_STATE), memory_order_acquire);
        return 1;
    }
    if (ifd_hung_up(s->link.socket)) {
        ifd_disarm(s);
        s->lost = true;
        return 1;
    }
    return 0;
}

int inferd_poll_disarm(struct inferd_session *session)
{
    int error = session == NULL ? -EINVAL : ifd_owner_check(session);
    if (error == 0) {
        ifd_disarm(session);
    }
    return error;
}
