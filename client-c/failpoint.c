/*
 * failpoint.c - what a step does that a test has armed; empty in a library that is installed.
 *
 * The table is a file that the test and its processes map (ipc/src/failpoints.rs says where its words lie). A passage is counted
 * by every process that makes it, and the one that makes the due passage acts, once.
 */
#include "failpoint.h"
#include "internal.h"

#ifdef INFERD_FAILPOINTS

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define ENTRIES 8
#define NAME_BYTES 48
#define TABLE_BYTES 4096
#define SLEEP 1000u

struct entry {
    char name[NAME_BYTES];
    _Atomic uint64_t action, value, due, passed, done_by, done_at;
    uint64_t reserved[4];
};
_Static_assert(sizeof(struct entry) == 128, "entries lie where ipc/src/failpoints.rs says");

static struct entry *table(void)
{
    static struct entry *entries;
    const char *path = getenv("INFERD_FAILPOINTS");
    if (entries != NULL || path == NULL) {
        return entries;
    }
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        (void)fprintf(stderr, "the table of failpoints %s: %s\n", path, strerror(errno));
        abort();
    }
    (void)close(fd);
    entries = map;
    return entries;
}

static void act(struct entry *e)
{
    uint64_t action = e->action, value = e->value;
    e->done_at = inferd_now_ns();
    e->done_by = (uint64_t)getpid();
    if (action == SLEEP) {
        struct timespec pause = {(time_t)(value / 1000000), (long)(value % 1000000) * 1000};
        (void)nanosleep(&pause, NULL);
    } else if (action < SLEEP) {
        (void)(value == 0 ? raise((int)action) : kill((pid_t)value, (int)action));
    }
}

void ifd_failpoint(const char *name)
{
    struct entry *entries = table();
    for (int i = 0; entries != NULL && i < ENTRIES; i++) {
        struct entry *e = &entries[i];
        /* Acquire: pairs with the Release that arms it. */
        uint64_t due = atomic_load_explicit(&e->due, memory_order_acquire);
        if (due != 0 && strncmp(e->name, name, NAME_BYTES) == 0 && atomic_fetch_add(&e->passed, 1) + 1 == due) {
            act(e);
        }
    }
}

#endif
