/*
 * crowd.c - too much of everything: half (attaches that stop), flood (connections left at every step), keep (sessions that
 * end while their regions stay mapped), fill (sessions until something has run out).
 */
#include "villain.h"

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

int half(void) {
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
int flood(void) {
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

int keep(void) {
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

int fill(void) {
    size_t held = collect(false);
    nap((long)number("hold_ms", 0) * MS);
    printf("{\"held\":%zu,", held);
    print_answers();
    printf("}\n");
    return 0;
}
