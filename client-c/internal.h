/*
 * internal.h - what the files of this library share; nothing of it is exported.
 *
 * session.c owns the life of a session, attach.c talks to attach.sock, region.c verifies and maps,
 * signature.c reads what the model takes, ring.c is the request and reply rings, wait.c spins and
 * sleeps, call.c is the one-call convenience, text.c has names and sentences.
 *
 * Always holds: geometry and cursors live here, in private memory, and are never read back from a
 * region; a session is used by one thread at a time; no function here allocates except through
 * ifd_session_new() and ifd_signature_read().
 */
#ifndef INFERD_INTERNAL_H
#define INFERD_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "layout.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#define IFD_ERROR_BYTES 1024
#define IFD_PATH_BYTES 4096
_Static_assert(IFD_CLIENT_HISTORY >= 2 * INFERD_SLOTS_MAX, "held replies are looked up in the history");

/* Where an attach stands on its way through the records. */
enum ifd_phase {
    IFD_IDLE,         /* no connection */
    IFD_ATTACHED_DUE, /* ATTACH is sent */
    IFD_READY_DUE,    /* regions are mapped, MAPPED is sent */
    IFD_SERVED        /* READY came: requests may be made */
};

/* Whose a reply slot is, once its reply has arrived. */
enum ifd_claim {
    IFD_UNCLAIMED, /* nobody has asked for it */
    IFD_HELD,      /* the caller reads its outputs */
    IFD_RELEASED   /* given back; counts once all before it are, too */
};

/* A mapped region. */
struct ifd_region {
    unsigned char *base; /* NULL: none */
    size_t bytes;
};

/* A reply that arrived: its header, copied out of shared memory once. */
struct ifd_record {
    struct ifd_reply_header header;
    enum ifd_claim claim;
};

/* One attach: its sockets and mapped regions. A lost one stays readable until another replaces it. */
struct ifd_link {
    enum ifd_phase phase;
    struct ifd_geometry geometry;
    struct ifd_region request, reply;
    int socket, doorbell_socket; /* -1: none */
    uint32_t generation, backing, spin_us;
    uint64_t session;
    uint64_t clock_ns; /* that ATTACH carried */
    char version[32];
};

struct inferd_session {
    /* Hot: read or written by every request. */
    const _Atomic uint32_t *owner_mark; /* 1 in the process that attached, 0 in its children; NULL: compare pids */
    pid_t owner_pid;
    struct ifd_link link; /* the attach in use */
    bool lost;            /* its socket has ended */
    uint64_t epoch;        /* of tickets; 1 at the first attach */
    uint64_t next_request; /* number of the next request to publish */
    bool taken;            /* slot of next_request is the caller's */
    bool reset_next;       /* inferd_reset() was called, or the session was replaced */
    bool armed;            /* the sleeping word says IFD_ASLEEP_SOCKET */
    bool in_its_way;       /* the worker was woken just now, and waits for the CPU that we run on */
    uint64_t reset_seq;
    uint64_t doorbell; /* value of our doorbell word */

    uint64_t state;      /* the worker's state word as last seen */
    uint64_t next_reply; /* number of the next reply to look for */
    uint64_t released;   /* replies before this one are all released: the word's value */
    uint64_t given_up;   /* latest: requests below this are given up */
    uint32_t held;       /* replies that are IFD_HELD */
    bool abandoned[INFERD_SLOTS_MAX];       /* in_order: requests in flight that are given up, at number % slots */
    struct ifd_record records[IFD_CLIENT_HISTORY]; /* at reply number % IFD_CLIENT_HISTORY */
    uint64_t t_submit_ns[IFD_CLIENT_HISTORY];      /* at request number % IFD_CLIENT_HISTORY */
    uint64_t fruitless_ns; /* since when calls that do not wait find nothing; 0: not at all */
    uint32_t generation;   /* of the newest reply, or at attach */
    uint32_t spin_us;

    /* Cold. */
    struct ifd_link next; /* the attach under way; it replaces `link` when it is served */
    const char *error; /* a literal, or text */
    char text[IFD_ERROR_BYTES];

    char model[INFERD_NAME_BYTES_MAX + 1];
    uint32_t wish_slots, wish_queue, wish_spin_us, flags;
    uint64_t timeout_ns;
    char dir[IFD_PATH_BYTES]; /* the daemon's directory, searched for once */
    char tried[256];          /* the places that the search passed over, for errors */
    const char *dir_rule;     /* which rule named `dir` */
    uint64_t retry_ns;        /* no attempt to reattach before this time */
    uint64_t give_up_ns;      /* when the attempt under way has failed */
    uint32_t backoff_ms;

    struct inferd_signature signature;
    void *signature_bytes; /* private copy of the binary signature; the names point into it */
    size_t signature_length;
    uint64_t input_at[INFERD_TENSORS_MAX], output_at[INFERD_TENSORS_MAX]; /* offsets within a slot */
    struct inferd_tensor tensors[2 * INFERD_TENSORS_MAX];
};

/* ---- text.c ---- */

/* Notes a literal sentence and returns `error`; cheap enough for a control loop. */
int ifd_fail(struct inferd_session *s, int error, const char *sentence);
/* The same with a formatted sentence. */
int ifd_failf(struct inferd_session *s, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- region.c ---- */

enum ifd_kind { IFD_REQUEST_REGION, IFD_REPLY_REGION };

/* Verifies seals and size of a received descriptor, maps it into `region` and populates the mapping. Does not take the
 * descriptor. */
int ifd_region_map(struct inferd_session *s, int fd, enum ifd_kind kind, uint32_t backing, uint64_t bytes,
                   struct ifd_region *region);
void ifd_region_unmap(struct ifd_region *region);
/* Touches every page, by madvise or, on kernels before 5.14, by hand. */
void ifd_region_populate(const struct ifd_region *region, bool writable, bool may_advise);
/* A page that reads 1 here and 0 in forked children; NULL where the kernel cannot (before 4.14). */
const _Atomic uint32_t *ifd_owner_mark_new(void);
void ifd_owner_mark_free(const _Atomic uint32_t *mark);
/* Whether INFERD_DISABLE names this kernel feature; read while attaching only. */
bool ifd_disabled(const char *feature);

/* ---- signature.c ---- */

/* Copies the signature out of the link's reply region and checks it against the geometry. The first time it is kept;
 * later (`s->signature_bytes` set) it must be the same, else -EREMCHG. */
int ifd_signature_read(struct inferd_session *s, const struct ifd_link *link);

/* ---- attach.c ---- */

/* Finds the daemon's directory: `wish`, else the environment, else the system's. Once per session. */
int ifd_find_dir(struct inferd_session *s, const char *wish);
/* Connects and sends ATTACH, for `s->next`. */
int ifd_attach_begin(struct inferd_session *s);
/* Takes the records that have come; 0 when served, -EINPROGRESS, or an error (`s->next` is then closed). */
int ifd_attach_advance(struct inferd_session *s);
/* Both, waiting until deadline_ns; -ETIMEDOUT leaves the attach under way. */
int ifd_attach_run(struct inferd_session *s, uint64_t deadline_ns);
/* Ends a connection and unmaps its regions; in a forked child only closes. */
void ifd_link_close(struct ifd_link *link, bool in_child);
/* Checks a geometry from the daemon; NULL, or which rule is broken. */
const char *ifd_geometry_fault(const struct ifd_geometry *g);

/* ---- session.c ---- */

/* 0, or -EOWNERDEAD in a forked child. */
int ifd_owner_check(const struct inferd_session *s);
/* The session is lost: makes a step towards another attach, or the whole way, waiting until `until_ns` (0: no waiting).
 * Returns 0 when served again. */
int ifd_reattach_if_wanted(struct inferd_session *s, uint64_t until_ns);
/* Puts `s->next`, which is served, into use, with the rings at their start. */
void ifd_adopt(struct inferd_session *s);
/* Says -EPROTO and gives the session up. */
int ifd_peer_fault(struct inferd_session *s, const char *sentence);
/* Says -ECONNRESET. */
int ifd_daemon_lost(struct inferd_session *s);

/* ---- ring.c ---- */

/* Takes note of every reply that has arrived. 0 or -EPROTO. */
int ifd_absorb(struct inferd_session *s);
/* Whether a reply stands there that ifd_absorb() has not seen. */
bool ifd_reply_ready(const struct inferd_session *s);
/* Whether a request without an outcome is in flight. */
bool ifd_any_pending(const struct inferd_session *s);
/* What is known of a ticket: an outcome (reply filled, its slot held if ok), -EINPROGRESS, -ESTALE, -EINVAL. */
int ifd_outcome(struct inferd_session *s, struct inferd_ticket ticket, struct inferd_reply *reply);
/* The outcome daemon_lost. */
int ifd_lost_outcome(struct inferd_ticket ticket, struct inferd_reply *reply);
/* Takes the next request's slot; reattaches first if that is wanted, waiting for it until `until_ns` (0: no waiting). */
int ifd_take_slot(struct inferd_session *s, uint64_t until_ns);

/* ---- wait.c ---- */

/* The times of one call, which may wait for several replies in turn. */
struct ifd_waiter {
    uint64_t limit_ns, spin_until_ns, looked_ns;
};

struct ifd_waiter ifd_waiter(const struct inferd_session *s, uint64_t now_ns, uint64_t timeout_ns);
/* Waits until the next reply is there: 0; -ETIMEDOUT; -ECONNRESET (the session is then lost). */
int ifd_await_reply(struct inferd_session *s, struct ifd_waiter *waiter);
/* Waits for a ticket's outcome; a ticket that timed out is abandoned. */
int ifd_wait(struct inferd_session *s, struct inferd_ticket ticket, struct ifd_waiter *waiter, struct inferd_reply *reply);
/* Wakes the worker if it sleeps. Call after what it shall see was stored. */
void ifd_ring_doorbell(struct inferd_session *s);
/* For calls that do not wait: looks at the socket once per millisecond without an outcome. Whether the session is lost. */
bool ifd_look_at_socket(struct inferd_session *s);
/* Whether a socket's peer has hung up. One system call. */
bool ifd_hung_up(int socket);
/* The client is awake: the worker need not ring; empties the doorbell socket if it was armed. */
void ifd_disarm(struct inferd_session *s);

/* ---- inline helpers ---- */

static inline _Atomic uint64_t *ifd_req_word(const struct inferd_session *s, size_t at)
{
    return (_Atomic uint64_t *)(void *)(s->link.request.base + (size_t)s->link.geometry.request_base + at);
}

static inline const _Atomic uint64_t *ifd_rep_word(const struct inferd_session *s, size_t at)
{
    return (const _Atomic uint64_t *)(const void *)(s->link.reply.base + (size_t)s->link.geometry.reply_base + at);
}

/* Slots of the reply region: never fewer than two, so that the last reply stands whole while the next one is written. */
static inline uint32_t ifd_reply_count(const struct ifd_geometry *geometry)
{
    return geometry->slots < 2 ? 2 : geometry->slots;
}

static inline unsigned char *ifd_request_slot(const struct inferd_session *s, uint64_t number)
{
    const struct ifd_geometry *g = &s->link.geometry;
    return s->link.request.base + (size_t)(g->request_slots + number % g->slots * g->request_stride);
}

static inline const unsigned char *ifd_reply_slot(const struct inferd_session *s, uint64_t number)
{
    const struct ifd_geometry *g = &s->link.geometry;
    return s->link.reply.base + (size_t)(g->reply_slots + number % ifd_reply_count(g) * g->reply_stride);
}

/* Saturating sum: a timeout of INFERD_FOREVER stays one. */
static inline uint64_t ifd_later(uint64_t time_ns, uint64_t more_ns)
{
    return more_ns > UINT64_MAX - time_ns ? UINT64_MAX : time_ns + more_ns;
}

/* Orders earlier streaming stores, too, before a publishing store: release does not on x86. */
static inline void ifd_streaming_store_fence(void)
{
#if defined(__x86_64__) || defined(__SSE__)
    __builtin_ia32_sfence();
#endif
}

/* Tells the CPU that this is a spinning loop. */
static inline void ifd_spin_hint(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || (defined(__arm__) && defined(__ARM_ARCH) && __ARM_ARCH >= 7)
    __asm__ volatile("yield" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

#endif
