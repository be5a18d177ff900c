/*
 * inferd.h - the C client of inferd, which serves neural-network policies to robot processes.
 *
 * A robot process attaches to a model once. From then on it writes observations into shared memory
 * and reads actions out of shared memory: no system call, no lock, no allocation and no copy through
 * the kernel per request, as long as the answer comes within the spin time. This header is the
 * manual; docs/semantics.md says what every request ends in, docs/shm-layout.md where each byte lies.
 *
 * Always holds: a published request has exactly one outcome; nothing here keeps a global variable
 * that changes, raises a signal, exits, prints, or allocates after inferd_attach() has returned.
 */
#ifndef INFERD_H
#define INFERD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Words
 *
 *   model        a named policy, as the daemon's configuration names it
 *   generation   one loaded version of a model, numbered from 1; a reload makes the next one
 *   signature    names, element types and shapes of the model's inputs and outputs, in order
 *   session      one process attached to one model: two regions of shared memory and one socket
 *   slot         room for one request or one reply in a region
 *   request      one observation and its labels; numbered from 0 in each session
 *   reply        what came of a request: an outcome, labels, times and, if it is ok, the outputs
 *   ticket       names one request of this session, by value
 *   outcome      what a request ended in: enum inferd_status
 *   queue        in_order: every request is run;  latest: only the newest is run
 *   step         one run of the model for this session; a recurrent model's state advances by one
 *   doorbell     what wakes a sleeping peer; silent while the peer is awake
 *
 * Life of a request
 *
 *      inferd_request()      inferd_submit()               inferd_wait() / inferd_try()      inferd_release()
 *            |                     |                                    |                          |
 *   free ----+---> taken ----------+----> in flight ------------------> +--> reply held -----------+---> free
 *                  (write the             |                             |    (read the outputs
 *                   inputs in place:      |                             |     in place:
 *                   inferd_input())       |                             |     inferd_output())
 *                                         |                             |
 *                                         |                             +--> an outcome without outputs: its
 *                                         |                                  reply is released by the library
 *                                         +-- inferd_abandon(): released when it arrives
 *
 * inferd_infer() does all of it in one call. With the queue in_order, every ticket must be waited
 * for or abandoned, or its slot stays in use. With latest, the outcome of a ticket releases the
 * replies to older requests that nobody holds; a request that was passed over is `superseded`.
 *
 * Units       Times are CLOCK_MONOTONIC nanoseconds (inferd_now_ns()) and end in _ns; sizes are bytes.
 * Threads     A session belongs to one thread at a time: its calls must not overlap. Different
 *             sessions are independent. Functions without a session argument are free-threaded.
 *             No function here may be called from a signal handler, except inferd_now_ns().
 * fork()      A session belongs to the process that attached. In a forked child every call that takes
 *             a session returns -EOWNERDEAD (or NULL); inferd_detach() there only closes the child's
 *             copies, and the parent's session goes on.
 * Errors      Negative errno is returned, never stored in a global; errno itself may be changed by
 *             any call. inferd_error() has a sentence for the session's last failure.
 *             What each number means, wherever a function lists it:
 *
 *   -EAGAIN        all slots are in flight or held (in_order)
 *   -EINPROGRESS   not answered yet (inferd_try)
 *   -ETIMEDOUT     the time given has passed; the request still stands
 *   -EHOSTDOWN     `unavailable`: the model is recovering or quarantined; nothing was published
 *   -ECONNRESET    `daemon_lost`: the session has ended; nothing was published by this call
 *   -EOWNERDEAD    this process is a fork of the one that attached
 *   -EINVAL        an argument is out of range, of the wrong length, or used in the wrong order
 *   -ESTALE        the ticket's outcome has been taken already, was given up, or is over 256 replies old
 *   -EBUSY         a reply is held whose memory would go away
 *   -EREMCHG       the model came back with another signature: detach, attach, look at it again
 *   -EPROTO        the daemon or worker broke the protocol, or memory is damaged; the session has ended
 *   and only from attaching:
 *   -ESHUTDOWN     `shutting_down`: the daemon drains (requests are then answered so: INFERD_SHUTTING_DOWN)
 *   -ECONNREFUSED  no daemon: no socket, or nobody listens        -ENODEV   no model of that name
 *   -EPROTONOSUPPORT  the ABIs differ                             -EDQUOT   a quota is reached
 *   -EACCES        this user may not attach                       -ETIME    clocks differ (time namespace)
 *   -EBADMSG       the daemon finds the wish malformed, or asks for more than the model allows
 *   -ENOMEM        no memory, descriptors or address space here   -ENOSPC   the daemon has none
 *   -EBADFD        the daemon finds that this client's region was resealed, punched or not populated
 */

#define INFERD_VERSION "0.1.0"
#define INFERD_ABI_MAJOR 1
#define INFERD_ABI_MINOR 0

#define INFERD_SLOTS_MAX 64u     /* slots of a session */
#define INFERD_TENSORS_MAX 64u   /* inputs, and outputs, of a signature */
#define INFERD_RANK_MAX 8u       /* dimensions of a tensor */
#define INFERD_NAME_BYTES_MAX 63 /* bytes of a model's or tensor's name, without the terminating zero */

#define INFERD_FOREVER UINT64_MAX    /* a timeout that never passes */
#define INFERD_SPIN_MODEL UINT32_MAX /* spin as long as the model's configuration says */

#if defined(__GNUC__)
#define INFERD_API __attribute__((visibility("default")))
#define INFERD_CHECK __attribute__((warn_unused_result))
#else
#define INFERD_API
#define INFERD_CHECK
#endif

/* What a request ended in. Numbers up to 8 are the reply's status; those above are found by this library. */
enum inferd_status {
    INFERD_OK = 1,            /* ran, and the output passed the guard; see INFERD_LATE */
    INFERD_EXPIRED = 2,       /* the deadline passed before the run began; state not advanced */
    INFERD_REJECTED = 3,      /* header or tensors are invalid: fix the caller; state not advanced */
    INFERD_MODEL_ERROR = 4,   /* the backend raised, or the guard refused the output; state restored */
    INFERD_WORKER_LOST = 5,   /* the worker died or hung while this request ran */
    INFERD_NEEDS_RESET = 6,   /* the state was lost: send a request with INFERD_RESET */
    INFERD_SHUTTING_DOWN = 7, /* the daemon began to drain before the run */
    INFERD_UNAVAILABLE = 8,   /* published while no worker served; not run */
    INFERD_SUPERSEDED = 100,  /* latest: a newer request was taken instead */
    INFERD_DAEMON_LOST = 101  /* the session ended before an answer came; whether it ran is unknown */
};

/* How a session's requests are taken. */
enum inferd_queue { INFERD_QUEUE_MODEL = 0, INFERD_IN_ORDER = 1, INFERD_LATEST = 2 };

/* Element type of a tensor. Half and bfloat16 are the raw 16 bits. */
enum inferd_dtype {
    INFERD_F32 = 1,
    INFERD_F64 = 2,
    INFERD_F16 = 3,
    INFERD_BF16 = 4,
    INFERD_I8 = 5,
    INFERD_I16 = 6,
    INFERD_I32 = 7,
    INFERD_I64 = 8,
    INFERD_U8 = 9,
    INFERD_U16 = 10,
    INFERD_U32 = 11,
    INFERD_U64 = 12,
    INFERD_BOOL = 13
};

/* Whether the model is served, as the reply region's state word says. */
enum inferd_state {
    INFERD_SERVING = 1,
    INFERD_RECOVERING = 2,  /* the worker died; another one is on its way */
    INFERD_QUARANTINED = 3, /* workers keep dying; an operator must act */
    INFERD_DRAINING = 4,    /* the daemon is going away */
    INFERD_CLOSED = 5       /* the session has ended */
};

/* inferd_submit_options.flags */
#define INFERD_RESET 1u /* run this step on fresh state; carried to the next one that runs if this one does not */

/* inferd_reply.flags */
#define INFERD_LATE 1u          /* the run ended after the deadline */
#define INFERD_STATE_RESET 2u   /* this step ran on fresh state: asked for, because the state was lost, or first after a reattach */
#define INFERD_RESET_PENDING 4u /* a reset was asked for and no step has run since */
#define INFERD_STATE_LOST 8u    /* the state is lost: steps without INFERD_RESET end in needs_reset */

/* inferd_attach_options.flags */
#define INFERD_NO_REATTACH 1u /* do not reattach by itself: calls return -ECONNRESET until inferd_reattach() */
#define INFERD_LOCK_MEMORY 2u /* mlock() the regions; where that is not allowed, go on without */

/* One attachment to one model; opaque. */
struct inferd_session;

/* Names one submitted request. A zeroed ticket names none. Compare and copy freely. */
struct inferd_ticket {
    uint64_t epoch;  /* 1 + the session's reattaches when it was submitted */
    uint64_t number; /* the request's number within that epoch, from 0 */
};

/* Wishes for a session. Take it from inferd_attach_defaults(), then change what differs. */
struct inferd_attach_options {
    uint32_t size;           /* bytes of this struct: which of the fields below exist */
    uint32_t slots;          /* 0: as many as the model's configuration gives; more than it gives is refused */
    uint32_t queue;          /* enum inferd_queue; INFERD_QUEUE_MODEL takes the model's */
    uint32_t flags;          /* INFERD_NO_REATTACH, INFERD_LOCK_MEMORY */
    uint32_t spin_us;        /* microseconds of spinning before sleep; 0 sleeps at once; INFERD_SPIN_MODEL */
    uint32_t reserved;       /* 0 */
    uint64_t timeout_ns;     /* for the whole attach; 0 means 2 s */
    const char *runtime_dir; /* the daemon's directory, read during the call only. NULL: $INFERD_RUNTIME_DIR, else
                              * $XDG_RUNTIME_DIR/inferd if its attach.sock exists, else /run/inferd */
    char *error;             /* if not NULL: receives a sentence when inferd_attach() fails (there is no session then) */
    size_t error_bytes;      /* bytes at error; the text is cut and always terminated */
};

/* The default wishes: the model's slots, queue and spin_us; 2 s; reattach by itself. */
static inline struct inferd_attach_options inferd_attach_defaults(void)
{
    struct inferd_attach_options options;
    memset(&options, 0, sizeof options);
    options.size = (uint32_t)sizeof options;
    options.spin_us = INFERD_SPIN_MODEL;
    return options;
}

/* Labels of a request. Take it from inferd_submit_defaults(), then change what differs. */
struct inferd_submit_options {
    uint32_t size;           /* bytes of this struct */
    uint32_t flags;          /* INFERD_RESET or 0 */
    uint64_t observation_id; /* the caller's own label; comes back in the reply */
    uint64_t deadline_ns;    /* CLOCK_MONOTONIC: the run shall not begin after it, and is `late` if it ends after it; 0: none */
    uint32_t executed;       /* steps of the previous action chunk that were executed; a label for chunked policies */
    uint32_t reserved;       /* 0 */
};

/* No label, no deadline, no reset. */
static inline struct inferd_submit_options inferd_submit_defaults(void)
{
    struct inferd_submit_options options;
    memset(&options, 0, sizeof options);
    options.size = (uint32_t)sizeof options;
    return options;
}

/* What came of a request. Filled by wait, try and infer whenever they return an outcome (a positive number). */
struct inferd_reply {
    struct inferd_ticket ticket; /* the ticket asked for */
    uint32_t status;             /* enum inferd_status: what the call returned */
    uint32_t flags;              /* INFERD_LATE, INFERD_STATE_RESET, INFERD_RESET_PENDING, INFERD_STATE_LOST */
    uint64_t request;            /* number of the request that the reply answers: the ticket's own; for superseded the newer one's */
    uint64_t observation_id;     /* the request's label; 0 for superseded and daemon_lost */
    uint64_t t_submit_ns;        /* when it was submitted; 0 for superseded and daemon_lost, or over 256 requests ago */
    uint64_t t_start_ns;         /* when the worker took the request; 0 for superseded and daemon_lost, like all below */
    uint64_t t_done_ns;          /* when the output was ready */
    uint64_t step;               /* steps of this session that ended ok so far */
    uint32_t generation;         /* the generation that computed, or refused, this */
    uint32_t skipped;            /* requests passed over between the previous answered one and this one; saturates */
    uint64_t held;               /* the library's: 0, or 1 + number of the reply held until inferd_release() */
};

/* One tensor of the signature. */
struct inferd_tensor {
    const char *name;              /* zero-terminated UTF-8 */
    const char *elements;          /* names and units along the last axis, one `name [unit]` per line; "" if the manifest gives none */
    uint64_t bytes;                /* of the tensor, contiguous, row-major, little-endian */
    uint64_t shape[INFERD_RANK_MAX]; /* outermost first; only the first `rank` count */
    uint32_t rank;                 /* 0 for a scalar */
    uint32_t dtype;                /* enum inferd_dtype */
    int32_t time_axis;             /* the axis that is time, in action chunks; -1 for none */
    uint32_t reserved;
};

/* Inputs and outputs of the model, in order. State that the daemon keeps for the session is not among them. */
struct inferd_signature {
    const struct inferd_tensor *inputs;
    const struct inferd_tensor *outputs;
    uint32_t inputs_count;
    uint32_t outputs_count;
    uint32_t stateful; /* 1 if the model keeps state between this session's steps */
    uint32_t reserved;
};

/* The session as it stands. */
struct inferd_info {
    uint32_t size;       /* bytes of this struct, set by the caller: which of the fields below exist */
    uint32_t state;      /* enum inferd_state, now */
    uint64_t session;    /* the session's number within its daemon */
    uint64_t epoch;      /* epoch of tickets submitted now; 1 + the number of reattaches */
    uint32_t generation; /* the newest generation seen: at attach, or in a reply since */
    uint32_t slots;      /* granted */
    uint32_t queue;      /* enum inferd_queue, granted: INFERD_IN_ORDER or INFERD_LATEST */
    uint32_t spin_us;    /* in use */
    uint32_t named;      /* 1 if the regions are named POSIX segments: no protection against a hostile peer */
    uint32_t in_flight;  /* requests submitted whose slot is not free again */
};

/* One input or output of inferd_infer(). */
struct inferd_in {
    const void *data;
    size_t bytes;
};
struct inferd_out {
    void *data; /* NULL: not wanted */
    size_t bytes;
};

/* ---- Attaching ------------------------------------------------------------------------------------------------- */

/*
 * Attaches this process to a model.
 *
 * Arguments  model: zero-terminated, 1 to 63 of [A-Za-z0-9._-]; read during the call. options: read during the call;
 *            NULL for the defaults. session: receives the session, or NULL on failure. The caller owns it, until
 *            inferd_detach().
 * Blocks     until the daemon has granted the session, at most options->timeout_ns. It allocates, opens descriptors
 *            (all close-on-exec), maps and populates both regions; nothing later allocates.
 * Threads    any; concurrent attaches are independent. Reads the environment with getenv().
 * Returns    0; or -EINVAL, -ENOMEM, -ETIMEDOUT, -ECONNRESET (the daemon hung up half-way), -EHOSTDOWN, -ESHUTDOWN,
 *            -EPROTO, or one of the numbers "only from attaching". options->error has the sentence, which names
 *            every directory that was tried.
 */
INFERD_API INFERD_CHECK int inferd_attach(const char *model, const struct inferd_attach_options *options,
                                          struct inferd_session **session);

/*
 * Ends the session and frees everything; requests in flight are given up, and pointers into its slots end.
 *
 * Arguments  session: NULL is allowed; ownership goes to the library.
 * Blocks     no. Threads: no other call on this session may be running. Returns nothing; cannot fail.
 */
INFERD_API void inferd_detach(struct inferd_session *session);

/*
 * Attaches again, to the same model with the same wishes, if the session has ended; does nothing if it has not.
 *
 * Afterwards tickets of before are answered `daemon_lost`, request numbers start from 0, and a recurrent model's state
 * is fresh. Unless INFERD_NO_REATTACH was given, this is seldom needed: once a session has ended, inferd_request() and
 * inferd_infer() reattach by themselves, with a backoff of 5 ms doubling up to 250 ms between attempts. inferd_request()
 * does that in steps, one per call, that never wait for the daemon (mapping new regions costs page faults, once);
 * inferd_infer() waits for the daemon within its timeout.
 *
 * Arguments  timeout_ns: tries again, with backoff, until it has passed. 0 means the attach timeout.
 * Blocks     up to timeout_ns. On success pointers from inferd_input() end, and replies not taken are lost.
 * Returns    0; -EBUSY while a reply is held (nothing was changed: release it first); -EREMCHG; -EOWNERDEAD; or the
 *            error of the last attempt to attach, at once where trying again cannot help (-ENODEV, -EACCES, ...).
 */
INFERD_API INFERD_CHECK int inferd_reattach(struct inferd_session *session, uint64_t timeout_ns);

/*
 * The model's signature. Lives, unchanged, as long as the session (a reattach to another signature is refused).
 * Owned by the session. Does not block, cannot fail; works in a forked child too.
 */
INFERD_API const struct inferd_signature *inferd_signature(const struct inferd_session *session);

/*
 * How the session stands now.
 *
 * Arguments  info: filled up to info->size bytes, which the caller sets to sizeof *info.
 * Blocks     no; makes no system call.
 * Returns    0; -EINVAL (size is 0 or too small to hold `state`); -EOWNERDEAD.
 */
INFERD_API int inferd_info(const struct inferd_session *session, struct inferd_info *info);

/* ---- Requests -------------------------------------------------------------------------------------------------- */

/*
 * Takes the next request slot, to be written in place. Until it is submitted, further calls take the same slot again.
 *
 * in_order: refused with -EAGAIN while all slots are in flight or held.
 * latest: never refused for lack of slots: the oldest slot is withdrawn and overwritten. With a single slot that is the
 * newest request: if it has not been taken yet, it is superseded by the one that must now be submitted.
 *
 * Blocks     no. While calls are refused it looks for the daemon's death once per millisecond (one system call).
 * Returns    0; -EAGAIN; -EHOSTDOWN; -ECONNRESET (and, unless INFERD_NO_REATTACH, a step towards a new session is
 *            made: a later call succeeds when the daemon is back); -EBUSY (the session has ended and could reattach,
 *            but a reply is still held); -EREMCHG; -EPROTO; -EOWNERDEAD.
 */
INFERD_API INFERD_CHECK int inferd_request(struct inferd_session *session);

/*
 * Where input `input` of the taken slot lies: signature's `bytes` bytes, 64-byte aligned.
 *
 * The pointer is the caller's until inferd_submit(), inferd_reattach() or inferd_detach(); the worker never writes there.
 * The slot holds what it last held: write every input, whole. Streaming stores are fine.
 * Returns NULL if no slot is taken, there is no such input, or in a forked child. Does not block.
 */
INFERD_API void *inferd_input(struct inferd_session *session, uint32_t input);

/*
 * Copies a whole input into the taken slot.
 *
 * Arguments  data: `bytes` bytes, read during the call; must be the signature's length exactly.
 * Blocks     no. Returns 0; -EINVAL (no slot taken, no such input, other length); -EOWNERDEAD.
 */
INFERD_API int inferd_write(struct inferd_session *session, uint32_t input, const void *data, size_t bytes);

/*
 * Makes the next submitted request carry INFERD_RESET, as if its options said so.
 * Blocks     no. Returns 0; -EOWNERDEAD.
 */
INFERD_API int inferd_reset(struct inferd_session *session);

/*
 * Publishes the taken slot.
 *
 * Arguments  options: labels, read during the call; NULL for none. ticket: receives the request's name; may be NULL
 *            (with in_order only if the reply shall be released when it arrives: the request counts as abandoned).
 * Blocks     no; a system call only if the worker sleeps and must be woken.
 * Returns    0: published, it will have an outcome. -EINVAL (no slot taken, or unknown flags: not published, the slot
 *            stays taken); -EHOSTDOWN, -ECONNRESET (not published, the slot stays taken); -EOWNERDEAD.
 */
INFERD_API INFERD_CHECK int inferd_submit(struct inferd_session *session, const struct inferd_submit_options *options,
                                          struct inferd_ticket *ticket);

/* ---- Replies --------------------------------------------------------------------------------------------------- */

/*
 * Waits for the outcome of a request: spins for the session's spin_us, then sleeps.
 *
 * Arguments  ticket: from inferd_submit(). timeout_ns: from now; 0 looks once; INFERD_FOREVER. reply: receives the
 *            outcome's particulars when one is returned; not touched otherwise; owned by the caller.
 * Blocks     up to timeout_ns. Asleep, it looks for the daemon's death every 10 ms; spinning, every millisecond. A
 *            signal does not end the wait.
 * Returns    the outcome, a positive enum inferd_status (INFERD_OK is the only one with outputs); or a negative number:
 *            -ETIMEDOUT (the ticket is abandoned, as if by inferd_abandon(); to look without giving up use
 *            inferd_try()), -ESTALE, -EINVAL (never submitted), -EPROTO, -EOWNERDEAD.
 * Then       INFERD_OK: the reply's slot is held until inferd_release(). Any other outcome holds nothing.
 *            latest: replies to requests older than the ticket, unless held, are released; their tickets are -ESTALE.
 */
INFERD_API INFERD_CHECK int inferd_wait(struct inferd_session *session, struct inferd_ticket ticket, uint64_t timeout_ns,
                                        struct inferd_reply *reply);

/*
 * Like inferd_wait(), but never waits: -EINPROGRESS if there is no outcome yet.
 * It looks for the daemon's death (one system call) if there is no reply and the last look is over a millisecond ago.
 */
INFERD_API INFERD_CHECK int inferd_try(struct inferd_session *session, struct inferd_ticket ticket,
                                       struct inferd_reply *reply);

/*
 * Where output `output` of a held reply lies: signature's `bytes` bytes, 64-byte aligned, read-only.
 *
 * Valid until inferd_release() of this reply, or the session's end; not rewritten before. Returns NULL if the reply is
 * not held (any status but INFERD_OK, or released already), there is no such output, or in a forked child. Does not block.
 */
INFERD_API const void *inferd_output(const struct inferd_session *session, const struct inferd_reply *reply, uint32_t output);

/*
 * Copies a whole output out of a held reply.
 *
 * Arguments  data: room for `bytes` bytes, which must be the signature's length exactly.
 * Blocks     no. Returns 0; -EINVAL (not held, no such output, other length); -EOWNERDEAD.
 */
INFERD_API int inferd_read(struct inferd_session *session, const struct inferd_reply *reply, uint32_t output, void *data,
                           size_t bytes);

/*
 * Gives a held reply's slot back. Replies may be released in any order; the worker gets slots back in order.
 *
 * Arguments  reply: as it was filled; its `held` is cleared. Blocks: no; a system call only with latest, if
 *            another request is in flight and the worker sleeps.
 * Returns    0 (also if this outcome held nothing, or the session has been replaced since); -EINVAL (released before,
 *            through a copy); -EOWNERDEAD.
 */
INFERD_API int inferd_release(struct inferd_session *session, struct inferd_reply *reply);

/*
 * Gives up a ticket: its reply is released now, or when it arrives. The request itself is run all the same. latest:
 * every older ticket is given up too.
 * Blocks     no. Returns 0 (also for a ticket of an earlier epoch); -EINVAL (never submitted); -ESTALE; -EOWNERDEAD.
 */
INFERD_API int inferd_abandon(struct inferd_session *session, struct inferd_ticket ticket);

/*
 * One call for everything: takes a slot, copies the inputs, submits, waits, copies the outputs, releases.
 *
 * Returns its own request's outcome only, never an earlier reply. On -ETIMEDOUT the request is abandoned.
 *
 * Arguments  inputs, outputs: one entry per tensor of the signature, in its order, each of the signature's length; read
 *            or written during the call; an output's data may be NULL. Outputs are written only if INFERD_OK is
 *            returned. options: labels, NULL for none. reply: may be NULL; nothing of it is held.
 * Blocks     up to timeout_ns, also for a free slot (in_order) and for the daemon when it reattaches.
 * Returns    the outcome, a positive enum inferd_status; or -EAGAIN (no slot came free within the timeout, or none can,
 *            since the caller holds or has not asked for all replies), -ETIMEDOUT, -EINVAL (count or length), -EHOSTDOWN,
 *            -ECONNRESET, -EBUSY, -EREMCHG, -EPROTO, -EOWNERDEAD.
 */
INFERD_API INFERD_CHECK int inferd_infer(struct inferd_session *session, const struct inferd_in *inputs, uint32_t inputs_count,
                                         const struct inferd_out *outputs, uint32_t outputs_count,
                                         const struct inferd_submit_options *options, uint64_t timeout_ns,
                                         struct inferd_reply *reply);

/* ---- Event loops ----------------------------------------------------------------------------------------------- */

/*
 * The session's pollable descriptor, for poll(2), epoll or select: readable once the doorbell rang, or the session ended.
 *
 *     while ((outcome = inferd_try(session, ticket, &reply)) == -EINPROGRESS)
 *         if (inferd_poll_arm(session) == 0) poll(&(struct pollfd){inferd_poll_fd(session), POLLIN, 0}, 1, 100);
 *
 * Owned by the session: never read, write or close it; it changes with a reattach. A daemon that is killed closes it,
 * which poll reports; one that is stopped does not: give poll a timeout. Does not block.
 * Returns    a descriptor; -EOWNERDEAD.
 */
INFERD_API int inferd_poll_fd(const struct inferd_session *session);

/*
 * Asks for the doorbell: the descriptor becomes readable when the next reply is published, once. Replies that earlier
 * calls have seen do not count: try before you poll. A call that returns an outcome disarms.
 * Blocks     no. Returns 0: armed, poll now. 1: not armed, something changed since the last look: try now.
 *            -EOWNERDEAD.
 */
INFERD_API INFERD_CHECK int inferd_poll_arm(struct inferd_session *session);

/* Takes inferd_poll_arm() back and empties the descriptor. Does not block. Returns 0; -EOWNERDEAD. */
INFERD_API int inferd_poll_disarm(struct inferd_session *session);

/* ---- Text, versions, time -------------------------------------------------------------------------------------- */

/*
 * A sentence about the session's last call that failed: what, where and the remedy. Never NULL; "" before any failure.
 * Owned by the session, valid until the next call on it. Does not block, cannot fail.
 */
INFERD_API const char *inferd_error(const struct inferd_session *session);

/* The error name of a negative number that a function here returned ("again", "timeout", ...); static, never NULL. */
INFERD_API const char *inferd_error_name(int error);

/* The name of an outcome ("ok", "superseded", ...), dtype ("f32"), queue ("in_order") or state; static; "unknown" for others. */
INFERD_API const char *inferd_status_name(int status);
INFERD_API const char *inferd_dtype_name(uint32_t dtype);
INFERD_API const char *inferd_queue_name(uint32_t queue);
INFERD_API const char *inferd_state_name(uint32_t state);

/* Bytes of one element; 0 for an unknown dtype. */
INFERD_API size_t inferd_dtype_bytes(uint32_t dtype);

/* The version of the library that is running (INFERD_VERSION is that of this header); static. */
INFERD_API const char *inferd_version(void);

/* The ABI that the library speaks: major << 16 | minor. It works with every daemon of the same major. */
INFERD_API uint32_t inferd_abi(void);

/* The version of the daemon that the session is, or was last, attached to. Owned by the session, until it reattaches. */
INFERD_API const char *inferd_daemon_version(const struct inferd_session *session);

/* CLOCK_MONOTONIC in nanoseconds: the clock of every time here. Async-signal-safe. */
INFERD_API uint64_t inferd_now_ns(void);

#ifdef __cplusplus
}
#endif
#endif
