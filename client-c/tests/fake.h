/*
 * fake.h - a daemon and a worker of one session, small enough to sit inside a test.
 *
 * The daemon is a thread that answers on attach.sock in a private directory, exactly as docs/shm-layout.md
 * says, or wrongly in one chosen way. The worker's end is a handful of functions that the test calls
 * in its own thread, or runs in another one; it maps the same memory and follows the same orderings.
 */
#ifndef INFERD_FAKE_H
#define INFERD_FAKE_H

#include "internal.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define OBS_ELEMENTS 45u
#define ACTION_ELEMENTS 12u

/* What the daemon does wrong. */
enum fault {
    FAULT_NONE,
    FAULT_STATUS,       /* refuses with `status` in ATTACHED */
    FAULT_READY_STATUS, /* refuses with `status` in READY */
    FAULT_ABI,          /* speaks ABI 2.7 */
    FAULT_MAGIC,
    FAULT_SHORT,      /* a record cut short */
    FAULT_HANG_UP,    /* closes after ATTACH */
    FAULT_SILENT,     /* never answers */
    FAULT_FEW_FDS,    /* two descriptors */
    FAULT_GEOMETRY,   /* slots beyond the region */
    FAULT_UNSEALED,   /* a region that may shrink */
    FAULT_SIZE,       /* a region of another size */
    FAULT_SIGNATURE,  /* an unknown dtype */
    FAULT_OTHER_MODEL /* another signature than usual, well-formed */
};

struct fake {
    char dir[64];
    pthread_t thread;
    int listener, stop[2];

    /* Set before an attach. */
    enum fault fault;
    uint32_t status, slots, queue, spin_us, backing, extra_ms;

    /* The session that was attached last; the worker's end. */
    pthread_mutex_t lock;
    uint32_t attaches;
    int socket, doorbell;
    struct ifd_geometry geometry;
    unsigned char *request, *reply;
    uint64_t next_reply;
};

/* Starts the daemon; `slots` and `queue` are what it grants when the client has no wish. */
void fake_start(struct fake *f, uint32_t slots, uint32_t queue, uint32_t spin_us);
/* Ends the session as a killed daemon does. */
void fake_hang_up(struct fake *f);
void fake_stop(struct fake *f);

/* Attaches to it; the options may be NULL. Fails the test if that fails. */
struct inferd_session *fake_attach(struct fake *f, const struct inferd_attach_options *options);
/* The same, but returns what inferd_attach() does. */
int fake_try_attach(struct fake *f, const struct inferd_attach_options *options, struct inferd_session **session, char *why);

/* The worker's words. */
uint64_t fake_published(struct fake *f);
uint64_t fake_released(struct fake *f);
uint64_t fake_client_sleeps(struct fake *f);
void fake_set_state(struct fake *f, uint64_t state);
/* Says how the worker sleeps; `IFD_ASLEEP_FUTEX` and so on. */
void fake_set_sleeping(struct fake *f, uint64_t how);
void fake_set_sleeper_cpu(struct fake *f, int cpu);
uint64_t fake_doorbell(struct fake *f);
bool fake_socket_rang(struct fake *f);

/* `seq` in the slot of a request. */
uint64_t fake_request_seq(struct fake *f, uint64_t number);
/* The header of a published request, or all zeroes. */
struct ifd_request_header fake_request(struct fake *f, uint64_t number);
/* Where a request's input lies. */
const float *fake_input(struct fake *f, uint64_t number);

/* Publishes the next reply; every element of the output is `value`. Rings if the client sleeps. */
void fake_answer(struct fake *f, uint64_t request, uint32_t status, uint32_t flags, uint32_t skipped, float value);
/* Publishes a header as it stands, at the next reply's place. */
void fake_publish(struct fake *f, struct ifd_reply_header header, float value);

/* A thread that answers every request `in_order` with its first input element + 1, sleeping on the futex in between. */
struct fake_worker {
    struct fake *f;
    uint64_t count;
    pthread_t thread;
};
void fake_worker_start(struct fake_worker *w, struct fake *f, uint64_t count);
void fake_worker_join(struct fake_worker *w);

/* ---- checks ---- */

extern const char *check_name;
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s: %s does not hold\n", __FILE__, __LINE__, check_name, #condition);    \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)
#define CHECK_EQ(a, b)                                                                                       \
    do {                                                                                                     \
        long long check_a = (long long)(a), check_b = (long long)(b);                                        \
        if (check_a != check_b) {                                                                            \
            fprintf(stderr, "%s:%d: %s: %s is %lld, not %lld\n", __FILE__, __LINE__, check_name, #a, check_a, \
                    check_b);                                                                                \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)
#define RUN(test)                                                                                            \
    do {                                                                                                     \
        check_name = #test;                                                                                  \
        test();                                                                                              \
        printf("ok %s\n", #test);                                                                            \
        fflush(stdout);                                                                                      \
    } while (0)

#endif
