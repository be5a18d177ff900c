/*
 * sockets.c - linger: descriptors whose close takes long; slow: nobody reads, and wakes are stolen.
 */
#include "villain.h"

#include <linux/futex.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>

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

/* A connection that gets the descriptor, many times now and then: 0, an errno, or -1 without one. */
static int on_connection(uint64_t i, int full) {
    int there = strcmp(word("socket", "attach"), "control") == 0 ? dial("control.sock", SOCK_STREAM)
                                                                 : dial("attach.sock", SOCK_SEQPACKET);
    if (there < 0) {
        return -1;
    }
    struct ifd_attach_record w = wish("");
    int error = send_with(there, &w, sizeof w, full, i % 5 == 0 ? 200 : 1);
    close(there);
    return error;
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

int linger(void) {
    enum { KEPT = 200 };
    int kept[KEPT], sent = 0, refused = 0, unreachable = 0;
    memset(kept, -1, sizeof kept);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 16) != 0) {
        return 1;
    }
    bool bell = strcmp(word("socket", "attach"), "doorbell") == 0;
    uint64_t end = now_ns() + number("at_most_s", 20) * 1000000000u;
    for (uint64_t i = 0; i < number("count", 10) && now_ns() < end; i++) {
        int *unread = &kept[i % KEPT];
        if (*unread >= 0) {
            close(*unread);
        }
        int full = lingering(listener, (int)number("seconds", 1), unread);
        int error = full < 0 ? -1 : bell ? on_doorbell(i, full) : on_connection(i, full);
        sent += error == 0;
        refused += error == EPERM;
        unreachable += error != 0 && error != EPERM;
        if (full >= 0) {
            close(full);
        }
        nap(error == 0 || error == EPERM ? 2 * MS : 5 * MS);
    }
    nap((long)number("hold_ms", 100) * MS);
    printf("{\"sent\":%d,\"refused\":%d,\"unreachable\":%d}\n", sent, refused, unreachable);
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

int slow(void) {
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
