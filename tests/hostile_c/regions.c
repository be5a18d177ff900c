/*
 * regions.c - flip: words and payloads that change while they are read; matrix: what can be tried on a region.
 */
#include "villain.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

static uint64_t lie(uint64_t n, uint64_t random) {
    switch (random % 8) {
    case 0: return n - 1 - random % 5;
    case 1: return n + 1 + random % 5;
    case 2: return 0;
    case 3: return UINT64_MAX;
    case 4: return UINT64_C(1) << 40;
    case 5: return random;
    case 6: return n + 64 * (random % 3);
    default: return n;
    }
}

static uint64_t torment(struct session *s, uint64_t random, uint64_t writes) {
    uint64_t made = 0;
    for (uint64_t n = 0; made < writes; n++) {
        uint64_t released = 0;
        for (uint64_t r = n; r > 0 && r + s->g.slots > n && released == 0; r--) {
            released = replied(s, r - 1) ? r : 0;
        }
        publish(s, n);
        atomic_store(at(s->request, s->g.request_base + IFD_REQ_RELEASED), released);
        for (int i = 0; i < 24; i++, made++) {
            random = mix(random);
            uint64_t pick = random % 64, more = random >> 8;
            if (pick == 0) {
                atomic_store(at(s->request, s->g.request_base + IFD_REQ_RELEASED), lie(released, more));
            } else if (pick == 1) {
                atomic_store(slot(s, n + random % 3), lie(n + 1, more));
            } else if (pick < 8) {
                atomic_store(at(s->request, s->g.request_base + IFD_REQ_PUBLISHED), lie(n + 1, more));
            } else if (pick < 16) {
                atomic_store(at(s->request, s->g.request_base + (pick < 12 ? IFD_REQ_SLEEPING : IFD_REQ_DOORBELL)), more);
            } else if (pick < 32) {
                atomic_store(slot(s, n) + 1 + more % 7, mix(random));
            } else {
                atomic_store(slot(s, n) + 8 + more % 8, mix(random));
            }
        }
        ring(s);
        if (n % 8 == 7 && is_over(s)) {
            break;
        }
    }
    return made;
}

int flip(void) {
    uint64_t writes = number("writes", 10000), made = 0, sessions = 0, refused = 0, seed = number("seed", 1);
    uint64_t end = now_ns() + number("seconds", 3600) * 1000000000u;
    while (made < writes && now_ns() < end) {
        struct session s;
        if (ask(&s, word("queue", "in_order")) == 0 && mapped(&s) == 0) {
            sessions++;
            made += torment(&s, seed, writes - made < 20000 ? writes - made : 20000);
        } else {
            refused++;
            nap(MS);
        }
        leave(&s);
        seed = mix(seed);
    }
    printf("{\"writes\":%llu,\"sessions\":%llu,\"refused\":%llu}\n", (unsigned long long)made, (unsigned long long)sessions,
           (unsigned long long)refused);
    return 0;
}

static int writable(int fd, size_t bytes, int protection, bool raise_it) {
    void *map = mmap(NULL, bytes, protection, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        return errno;
    }
    int error = raise_it && mprotect(map, bytes, PROT_READ | PROT_WRITE) != 0 ? errno : 0;
    if (error == 0) {
        *(volatile unsigned char *)map = 0x55;
    }
    munmap(map, bytes);
    return error;
}

static int reopened(int fd, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, O_RDWR | O_CLOEXEC | flags);
    int error = again < 0 ? errno : 0;
    if (again >= 0) {
        close(again);
    }
    return error;
}

static const char *const attempts[] = {"shrink", "grow", "punch", "write", "map_writable", "mprotect_new", "mprotect_own",
                                       "madv_remove", "reopen_writable", "reopen_truncate", "chmod", "seal_write", "seal_seal"};

static int attempt(size_t which, int fd, void *own, size_t bytes) {
    int bad = 0;
    switch (which) {
    case 0: bad = ftruncate(fd, 0); break;
    case 1: bad = ftruncate(fd, (off_t)(2 * bytes)); break;
    case 2: bad = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096); break;
    case 3: bad = pwrite(fd, "U", 1, 0) < 0; break;
    case 4: return writable(fd, bytes, PROT_READ | PROT_WRITE, false);
    case 5: return writable(fd, bytes, PROT_READ, true);
    case 6: bad = mprotect(own, bytes, PROT_READ | PROT_WRITE); break;
    case 7: bad = madvise(own, 4096, MADV_REMOVE); break;
    case 8: return reopened(fd, 0);
    case 9: return reopened(fd, O_TRUNC);
    case 10: bad = fchmod(fd, 0600); break;
    case 11: bad = fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE); break;
    default: bad = fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL); break;
    }
    return bad ? errno : 0;
}

int matrix(void) {
    bool after = strcmp(word("phase", "before"), "after") == 0;
    const char *comma = "";
    printf("{\"attempts\":{");
    for (int reply = 0; reply < 2; reply++) {
        for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
            struct session s;
            if (ask(&s, "") != 0) {
                return 1;
            }
            int ready = after ? mapped(&s) : 0;
            int error = reply ? attempt(i, s.reply_fd, s.reply, s.g.reply_bytes)
                              : attempt(i, s.request_fd, s.request, s.g.request_bytes);
            ready = after ? ready : mapped(&s);
            bool good = false;
            if (ready == 0) {
                publish(&s, 0);
                good = answered(&s, 0);
            }
            printf("%s\"%s.%s\":{\"errno\":%d,\"ready\":%d,\"answered\":%s}", comma, reply ? "reply" : "request", attempts[i],
                   error, ready, good ? "true" : "false");
            comma = ",";
            leave(&s);
        }
    }
    printf("}}\n");
    return 0;
}
