/*
 * villain.c - a client that means harm, in C: `villain_c DEED [key=value]...`, as tests/src/bin/villain is in Rust.
 *
 * It speaks the attach records by hand with the layout of client-c/layout.h and links nothing of the library, so that its
 * compiler, its memory model and its habits are those of firmware. One line of JSON says what it managed to do.
 * Deeds: flip (words and payloads change while they are read), matrix (what can be tried on a region), linger
 * (descriptors whose close takes long), slow (nobody reads, and wakes are stolen), fork (a session is forked, and either side
 * dies), half (attaches that stop), flood (connections left at every step), keep (sessions that end while their regions stay
 * mapped), fill (sessions until something has run out).
 */
#define _GNU_SOURCE
#include "layout.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FDS_MAX 253
#define MS 1000000L

static int arg_count;
static char **args;

static const char *word(const char *key, const char *otherwise) {
    size_t length = strlen(key);
    for (int i = 2; i < arg_count; i++) {
        if (strncmp(args[i], key, length) == 0 && args[i][length] == '=') {
            return args[i] + length + 1;
        }
    }
    return otherwise;
}

static uint64_t number(const char *key, uint64_t otherwise) {
    const char *text = word(key, NULL);
    return text == NULL ? otherwise : strtoull(text, NULL, 10);
}

static void nap(long ns) {
    struct timespec t = {ns / (1000 * MS), ns % (1000 * MS)};
    nanosleep(&t, NULL);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* splitmix64, as in tests/DRIVER.md. */
static uint64_t mix(uint64_t x) {
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

struct session {
    int socket, request_fd, reply_fd, doorbell;
    unsigned char *request, *reply;
    struct ifd_geometry g;
};

static int dial(const char *name, int kind) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *dir = getenv("INFERD_RUNTIME_DIR");
    int length = snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", dir == NULL ? "" : dir, name);
    int fd = socket(AF_UNIX, kind | SOCK_CLOEXEC, 0);
    if (length < 0 || (size_t)length >= sizeof address.sun_path || fd < 0 ||
        connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int send_with(int fd, const void *bytes, size_t length, int carried, int copies) {
    union {
        struct cmsghdr align;
        unsigned char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control;
    struct iovec iov = {(void *)(uintptr_t)bytes, length};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (copies > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE((size_t)copies * sizeof(int));
        memset(&control, 0, sizeof control);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)copies * sizeof(int));
        for (int i = 0; i < copies; i++) {
            memcpy(CMSG_DATA(c) + (size_t)i * sizeof(int), &carried, sizeof(int));
        }
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL) < 0 ? errno : 0;
}

static struct ifd_record_head head(enum ifd_record_kind kind, size_t bytes) {
    struct ifd_record_head h = {IFD_ATTACH_MAGIC, (uint16_t)kind, INFERD_ABI_MAJOR, INFERD_ABI_MINOR, (uint16_t)bytes};
    return h;
}

static struct ifd_attach_record wish(const char *queue) {
    struct ifd_attach_record w = {.slots = 4, .pid = (uint32_t)getpid(), .clock_ns = now_ns()};
    w.head = head(IFD_ATTACH, sizeof w);
    w.model[0] = 'm';
    w.queue = strcmp(queue, "latest") == 0 ? 2u : strcmp(queue, "in_order") == 0 ? 1u : 0u;
    return w;
}

/* One record with up to three descriptors; its length, or -1 when nothing comes. */
static ssize_t receive(int fd, void *record, size_t bytes, int fds[3]) {
    union {
        struct cmsghdr align;
        unsigned char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control;
    struct pollfd ready = {fd, POLLIN, 0};
    if (poll(&ready, 1, 5000) != 1) {
        return -1;
    }
    struct iovec iov = {record, bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    fds[0] = fds[1] = fds[2] = -1;
    for (struct cmsghdr *c = got > 0 ? CMSG_FIRSTHDR(&message) : NULL; c != NULL; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_type == SCM_RIGHTS) {
            memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
        }
    }
    return got;
}

/* ATTACH and ATTACHED; the status, or -1 when the daemon hung up. */
static int ask(struct session *s, const char *queue) {
    struct ifd_attached_record a;
    struct ifd_attach_record w = wish(queue);
    int fds[3] = {-1, -1, -1};
    memset(s, 0, sizeof *s);
    s->request_fd = s->reply_fd = s->doorbell = -1;
    s->socket = dial("attach.sock", SOCK_SEQPACKET);
    if (s->socket < 0) {
        return -1;
    }
    (void)send_with(s->socket, &w, sizeof w, -1, 0);
    if (receive(s->socket, &a, sizeof a, fds) != (ssize_t)sizeof a) {
        return -1;
    }
    if (a.status != IFD_ATTACH_OK) {
        return (int)a.status;
    }
    s->request_fd = fds[0];
    s->reply_fd = fds[1];
    s->doorbell = fds[2];
    s->g = a.geometry;
    s->request = mmap(NULL, s->g.request_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, s->request_fd, 0);
    s->reply = mmap(NULL, s->g.reply_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, s->reply_fd, 0);
    return s->request == MAP_FAILED || s->reply == MAP_FAILED ? -1 : 0;
}

/* MAPPED and READY; the status, or -1. */
static int mapped(struct session *s) {
    struct ifd_mapped_record m = {head(IFD_MAPPED, sizeof m)};
    struct ifd_ready_record r;
    int fds[3];
    (void)send_with(s->socket, &m, sizeof m, -1, 0);
    return receive(s->socket, &r, sizeof r, fds) == (ssize_t)sizeof r ? (int)r.status : -1;
}

static void leave(struct session *s) {
    if (s->request != NULL && s->request != MAP_FAILED) {
        munmap(s->request, s->g.request_bytes);
    }
    if (s->reply != NULL && s->reply != MAP_FAILED) {
        munmap(s->reply, s->g.reply_bytes);
    }
    int fds[] = {s->socket, s->request_fd, s->reply_fd, s->doorbell};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}

static _Atomic uint64_t *at(unsigned char *region, uint64_t offset) { return (_Atomic uint64_t *)(void *)(region + offset); }
static _Atomic uint64_t *slot(struct session *s, uint64_t n) {
    return at(s->request, s->g.request_slots + n % s->g.slots * s->g.request_stride);
}
static bool replied(struct session *s, uint64_t r) {
    uint64_t count = s->g.slots;
    return atomic_load(at(s->reply, s->g.reply_slots + r % count * s->g.reply_stride)) == r + 1;
}
static bool is_over(struct session *s) {
    struct pollfd ready = {s->socket, POLLIN, 0};
    return poll(&ready, 1, 0) == 1;
}

static void ring(struct session *s) {
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t how = atomic_load(at(s->reply, s->g.reply_base + IFD_REP_SLEEPING));
    if (how == IFD_ASLEEP_FUTEX) {
        _Atomic uint64_t *bell = at(s->request, s->g.request_base + IFD_REQ_DOORBELL);
        atomic_fetch_add(bell, 1);
        syscall(SYS_futex, bell, FUTEX_WAKE, 1, NULL, NULL, 0);
    } else if (how == IFD_ASLEEP_SOCKET) {
        (void)!send(s->doorbell, "!", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
}

static void publish(struct session *s, uint64_t n) {
    _Atomic uint64_t *words = slot(s, n);
    atomic_store(words + 1, n);
    for (int i = 2; i < 8; i++) {
        atomic_store(words + i, 0);
    }
    memset((unsigned char *)(void *)words + IFD_HEADER_BYTES, 0x3e, 64);
    atomic_store(words, n + 1);
    atomic_store(at(s->request, s->g.request_base + IFD_REQ_PUBLISHED), n + 1);
    ring(s);
}

/* The reply came before the session's end. */
static bool answered(struct session *s, uint64_t r) {
    for (int i = 0; i < 100000 && !replied(s, r); i++) {
        if (i > 100 && is_over(s)) {
            return replied(s, r);
        }
        nap(50000);
    }
    return replied(s, r);
}

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

static int flip(void) {
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

static int matrix(void) {
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

/* A TCP socket full of unsent bytes that lingers for `seconds` when it is closed; the peer's end comes back too. */
static int lingering(int listener, int seconds, int *peer) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    static char bytes[65536];
    getsockname(listener, (struct sockaddr *)&address, &length);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        return -1;
    }
    *peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){4096}, sizeof(int));
    while (send(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0) {
    }
    struct linger wait = {1, seconds};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &wait, sizeof wait);
    return fd;
}

/* A session whose doorbell gets the descriptor, behind an empty message now and then: 0, an errno, or -1 without a session. */
static int on_doorbell(uint64_t i, int full) {
    struct session s;
    int status = ask(&s, "in_order"), error = -1;
    if (status == 0 && (i % 2 == 0 || mapped(&s) == 0)) {
        if (i % 3 == 0) {
            (void)send_with(s.doorbell, "", 0, -1, 0);
        }
        if (i % 2 == 1) {
            publish(&s, 0);
        }
        error = send_with(s.doorbell, "!", 1, full, 1);
        if (i % 2 == 1) {
            (void)answered(&s, 0);
        }
    }
    leave(&s);
    return error;
}

static int linger(void) {
    enum { KEPT = 200 };
    int kept[KEPT], sent = 0, refused = 0, unreachable = 0;
    memset(kept, -1, sizeof kept);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 16) != 0) {
        return 1;
    }
    uint64_t end = now_ns() + number("at_most_s", 20) * 1000000000u;
    for (uint64_t i = 0; i < number("count", 10) && now_ns() < end; i++) {
        if (strcmp(word("socket", "attach"), "doorbell") == 0) {
            int *unread = &kept[i % KEPT];
            if (*unread >= 0) {
                close(*unread);
            }
            int full = lingering(listener, (int)number("seconds", 1), unread);
            int error = on_doorbell(i, full);
            sent += error == 0;
            refused += error == EPERM;
            unreachable += error != 0 && error != EPERM;
            close(full);
            nap(error == 0 || error == EPERM ? 0 : 5 * MS);
            continue;
        }
        int there = strcmp(word("socket", "attach"), "control") == 0 ? dial("control.sock", SOCK_STREAM)
                                                                     : dial("attach.sock", SOCK_SEQPACKET);
        int *peer = &kept[i % KEPT];
        if (*peer >= 0) {
            close(*peer);
        }
        int full = there < 0 ? -1 : lingering(listener, (int)number("seconds", 1), peer);
        if (full < 0) {
            unreachable++;
            nap(5 * MS);
        } else {
            struct ifd_attach_record w = wish("");
            int error = send_with(there, &w, sizeof w, full, i % 5 == 0 ? 200 : 1);
            sent += error == 0;
            refused += error == EPERM;
            unreachable += error != 0 && error != EPERM;
            close(full);
        }
        if (there >= 0) {
            close(there);
        }
        nap(2 * MS);
    }
    nap((long)number("hold_ms", 100) * MS);
    printf("{\"sent\":%d,\"refused\":%d,\"unreachable\":%d}\n", sent, refused, unreachable);
    return 0;
}

/* How often each answer came. */
static struct {
    int ok, quota, no_resources, hung_up, other;
} tally;

static void count(int status) {
    tally.ok += status == IFD_ATTACH_OK;
    tally.quota += status == IFD_ATTACH_QUOTA;
    tally.no_resources += status == IFD_ATTACH_NO_RESOURCES;
    tally.hung_up += status < 0;
    tally.other += status > 0 && status != IFD_ATTACH_QUOTA && status != IFD_ATTACH_NO_RESOURCES;
}

static void print_answers(void) {
    printf("\"answers\":{\"ok\":%d,\"quota\":%d,\"no_resources\":%d,\"hung_up\":%d,\"other\":%d}", tally.ok, tally.quota,
           tally.no_resources, tally.hung_up, tally.other);
}

enum { SESSIONS_MOST = 512 };
static struct session sessions[SESSIONS_MOST];

static int half(void) {
    uint64_t most = number("count", 20);
    for (uint64_t i = 0; i < most && i < SESSIONS_MOST; i++) {
        int status = ask(&sessions[i], "");
        count(status);
        if (status != 0) {
            leave(&sessions[i]);
        }
    }
    nap((long)number("hold_ms", 0) * MS);
    printf("{");
    print_answers();
    printf(",\"held\":%d}\n", tally.ok);
    return 0;
}

/* Connections as fast as they go, each left at another step. */
static int flood(void) {
    uint64_t done = 0, random = number("seed", 1), end = now_ns() + number("seconds", 3600) * 1000000000u;
    for (; done < number("count", 100) && now_ns() < end; done++) {
        struct session s = {-1, -1, -1, -1, NULL, NULL, {0}};
        random = mix(random);
        switch (random % 4) {
        case 0: s.socket = dial("attach.sock", SOCK_SEQPACKET); break;
        case 1: {
            uint64_t words[30];
            for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
                words[i] = random;
            }
            s.socket = dial("attach.sock", SOCK_SEQPACKET);
            (void)send_with(s.socket, words, (1 + (random >> 8) % 30) * sizeof *words, -1, 0);
            break;
        }
        case 2: count(ask(&s, "")); break;
        default: {
            int status = ask(&s, "in_order");
            count(status == 0 ? mapped(&s) : status);
        }
        }
        leave(&s);
    }
    printf("{");
    print_answers();
    printf(",\"done\":%llu}\n", (unsigned long long)done);
    return 0;
}

/* Sessions until the daemon has refused a few; where `ends` says so each ends while its regions stay mapped. */
static size_t collect(bool ends) {
    size_t held = 0, refused = 0;
    for (uint64_t i = 0; i < number("count", 10) && held < SESSIONS_MOST && refused < 5; i++) {
        struct session *s = &sessions[held];
        int status = ask(s, "in_order");
        status = status == 0 ? mapped(s) : status;
        count(status);
        if (status != 0) {
            leave(s);
            refused++;
            nap(5 * MS);
            continue;
        }
        if (ends) {
            shutdown(s->socket, SHUT_RDWR);
        }
        held++;
    }
    return held;
}

static int keep(void) {
    size_t kept = collect(true);
    nap((long)number("hold_ms", 0) * MS);
    for (size_t i = 0; i < kept; i++) {
        leave(&sessions[i]);
    }
    uint64_t start = now_ns();
    bool again = false;
    while (!again && now_ns() - start < 5000000000u) {
        struct session s;
        again = ask(&s, "") == 0 && mapped(&s) == 0;
        leave(&s);
    }
    printf("{\"kept\":%zu,", kept);
    print_answers();
    printf(",\"again\":%s,\"again_ms\":%llu}\n", again ? "true" : "false", (unsigned long long)((now_ns() - start) / 1000000u));
    return 0;
}

static int fill(void) {
    size_t held = collect(false);
    nap((long)number("hold_ms", 0) * MS);
    printf("{\"held\":%zu,", held);
    print_answers();
    printf("}\n");
    return 0;
}

static uint64_t thieves_end;

/* Sleeps on a doorbell of its own session, again and again, so that a wake meets it instead of whom it is meant for. */
static void *steal(void *word_at) {
    _Atomic uint64_t *bell = word_at;
    while (now_ns() < thieves_end) {
        struct timespec limit = {0, 20 * MS};
        syscall(SYS_futex, bell, FUTEX_WAIT, (uint32_t)atomic_load(bell), &limit, NULL, 0);
    }
    return NULL;
}

static int slow(void) {
    enum { OPERATORS = 70, UNREAD = 10, THIEVES = 8, RINGS_MOST = 100000 };
    static const char line[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"limits\"}\n";
    thieves_end = now_ns() + number("seconds", 2) * 1000000000u;
    int operators[OPERATORS], there = 0, turned_away = 0, rings = 0;
    for (; there < OPERATORS; there++) {
        operators[there] = dial("control.sock", SOCK_STREAM);
        if (operators[there] < 0) {
            break;
        }
        for (int i = 0; i < 64; i++) {
            (void)!send(operators[there], line, sizeof line - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
    }
    /* The first ones are never read from. */
    for (int i = there - 1; i >= 0 && i >= there - OPERATORS / 10; i--) {
        char answer[4097] = "";
        struct pollfd ready = {operators[i], POLLIN, 0};
        if (poll(&ready, 1, 1000) == 1) {
            (void)!recv(operators[i], answer, sizeof answer - 1, MSG_DONTWAIT);
        }
        turned_away += strstr(answer, "operators are connected") != NULL;
    }
    for (int i = 0; i < UNREAD; i++) {
        struct ifd_attach_record w = wish("");
        (void)send_with(dial("attach.sock", SOCK_SEQPACKET), &w, sizeof w, -1, 0);
    }
    struct session s;
    if (ask(&s, "in_order") != 0 || mapped(&s) != 0) {
        return 1;
    }
    while (rings < RINGS_MOST && send(s.doorbell, "!", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1) {
        rings++;
    }
    pthread_t thieves[THIEVES];
    for (int i = 0; i < THIEVES; i++) {
        _Atomic uint64_t *bell = i % 2 == 0 ? at(s.request, s.g.request_base + IFD_REQ_DOORBELL)
                                            : at(s.reply, s.g.reply_base + IFD_REP_DOORBELL);
        if (pthread_create(&thieves[i], NULL, steal, (void *)bell) != 0) {
            return 1;
        }
    }
    uint64_t n = 0;
    while (now_ns() < thieves_end && !is_over(&s)) {
        /* A socket that nobody reads is rung with every reply. */
        atomic_store(at(s.request, s.g.request_base + IFD_REQ_SLEEPING), IFD_ASLEEP_SOCKET);
        publish(&s, n);
        if (!answered(&s, n)) {
            break;
        }
        n++;
        atomic_store(at(s.request, s.g.request_base + IFD_REQ_RELEASED), n);
        ring(&s);
    }
    for (int i = 0; i < THIEVES; i++) {
        pthread_join(thieves[i], NULL);
    }
    printf("{\"operators\":%d,\"turned_away\":%d,\"rings\":%d,\"requests\":%llu}\n", there, turned_away, rings,
           (unsigned long long)n);
    return 0;
}

/* By hand, so without the library's guard: a child may write what its parent shares, and harms that session alone. */
static int forked(void) {
    struct session s;
    if (ask(&s, "in_order") != 0 || mapped(&s) != 0) {
        return 1;
    }
    uint64_t random = number("seed", 1), rounds = number("rounds", 10), ended = 0, killed = 0;
    for (uint64_t i = 0; i < rounds; i++) {
        random = mix(random);
        pid_t child = fork();
        if (child == 0) {
            for (int k = 0; k < 200; k++) {
                random = mix(random);
                atomic_store(slot(&s, i) + 1 + random % 15, random);
                ring(&s);
            }
            raise(random % 2 != 0 ? SIGKILL : SIGTERM);
            _exit(0);
        }
        publish(&s, i);
        if (!answered(&s, i)) {
            ended++;
            leave(&s);
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
            if (ask(&s, "in_order") != 0 || mapped(&s) != 0) {
                return 1;
            }
            rounds -= i + 1;
            i = (uint64_t)-1;
            continue;
        }
        atomic_store(at(s.request, s.g.request_base + IFD_REQ_RELEASED), i + 1);
        int status = 0;
        waitpid(child, &status, 0);
        killed += WIFSIGNALED(status);
    }
    printf("{\"ended\":%llu,\"killed\":%llu}\n", (unsigned long long)ended, (unsigned long long)killed);
    return 0;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(void);
    } deeds[] = {{"flip", flip}, {"matrix", matrix}, {"linger", linger}, {"slow", slow}, {"half", half},
                 {"flood", flood}, {"keep", keep}, {"fill", fill}, {"fork", forked}};
    arg_count = argc;
    args = argv;
    for (size_t i = 0; argc > 1 && i < sizeof deeds / sizeof *deeds; i++) {
        if (strcmp(argv[1], deeds[i].name) == 0) {
            return deeds[i].run();
        }
    }
    fprintf(stderr, "villain_c flip|matrix|linger|slow|half|flood|keep|fill|fork [key=value]...\n");
    return 2;
}
