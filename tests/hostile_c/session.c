/*
 * session.c - a session spoken by hand with the layout of client-c/layout.h: nothing of the library is linked.
 */
#include "villain.h"

#include <linux/futex.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

#define FDS_MAX 253

int arg_count;
char **args;

const char *word(const char *key, const char *otherwise) {
    size_t length = strlen(key);
    for (int i = 2; i < arg_count; i++) {
        if (strncmp(args[i], key, length) == 0 && args[i][length] == '=') {
            return args[i] + length + 1;
        }
    }
    return otherwise;
}

uint64_t number(const char *key, uint64_t otherwise) {
    const char *text = word(key, NULL);
    return text == NULL ? otherwise : strtoull(text, NULL, 10);
}

void nap(long ns) {
    struct timespec t = {ns / (1000 * MS), ns % (1000 * MS)};
    nanosleep(&t, NULL);
}

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t mix(uint64_t x) {
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

int dial(const char *name, int kind) {
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

int send_with(int fd, const void *bytes, size_t length, int carried, int copies) {
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

struct ifd_attach_record wish(const char *queue) {
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

int ask(struct session *s, const char *queue) {
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

int mapped(struct session *s) {
    struct ifd_mapped_record m = {head(IFD_MAPPED, sizeof m)};
    struct ifd_ready_record r;
    int fds[3];
    (void)send_with(s->socket, &m, sizeof m, -1, 0);
    return receive(s->socket, &r, sizeof r, fds) == (ssize_t)sizeof r ? (int)r.status : -1;
}

void leave(struct session *s) {
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

_Atomic uint64_t *at(unsigned char *region, uint64_t offset) { return (_Atomic uint64_t *)(void *)(region + offset); }
_Atomic uint64_t *slot(struct session *s, uint64_t n) {
    return at(s->request, s->g.request_slots + n % s->g.slots * s->g.request_stride);
}
bool replied(struct session *s, uint64_t r) {
    uint64_t count = s->g.slots;
    return atomic_load(at(s->reply, s->g.reply_slots + r % count * s->g.reply_stride)) == r + 1;
}
bool is_over(struct session *s) {
    struct pollfd ready = {s->socket, POLLIN, 0};
    return poll(&ready, 1, 0) == 1;
}

void ring(struct session *s) {
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

void publish(struct session *s, uint64_t n) {
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

bool answered(struct session *s, uint64_t r) {
    for (int i = 0; i < 100000 && !replied(s, r); i++) {
        if (i > 100 && is_over(s)) {
            return replied(s, r);
        }
        nap(50000);
    }
    return replied(s, r);
}
