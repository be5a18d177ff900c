/*
 * loop.c - the verb `loop`: many requests, every outcome entered in a ledger, every rule of DRIVER.md checked.
 *
 * Between its first and its last request it allocates nothing and, flat out, makes no system call of
 * its own: tests count both and blame the library for the rest. Inputs are written, and outputs
 * checked, in place.
 */
#define _POSIX_C_SOURCE 200809L
#include "driver.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEPTH_MAX 4096
#define STATUS_MAX 128 /* above every enum inferd_status */
#define ERRORS_MAX 16  /* kinds of refusals that are told apart */
#define PAUSE_NS 1000000
#define PER_DOUBLING 16u /* buckets of a histogram: 1/16 is 6.25 % */
#define BUCKETS (64u * PER_DOUBLING)
#define NONE UINT64_MAX
#define OBSERVATIONS 4u      /* sent in turn by check=answers */
#define GENERATIONS_MAX 4096 /* whose answers are kept */

enum check { CHECK_NONE, CHECK_ECHO, CHECK_COUNT, CHECK_ANSWERS, CHECK_DIGEST, CHECKS };
static const char *const check_names[CHECKS] = {"none", "echo", "count", "answers", "digest"};

struct wanted {
    uint64_t n, end_after_ns, rate_hz, depth, seed, timeout_ns, reset_every, drop;
    int64_t deadline_us;
    bool has_deadline, until_lost, rollbacks;
    enum check check;
};

struct flight {
    struct inferd_ticket ticket;
    uint64_t j, submit_ns, deadline_ns;
};

struct histogram {
    uint64_t counts[BUCKETS], total, max;
};

/* Big, and used by one loop at a time: static, so that nothing is allocated. */
static struct {
    struct flight flights[DEPTH_MAX];
    uint64_t first, in_flight;
    uint64_t sent, outcomes[STATUS_MAX], late, skipped, state_resets, reattaches, violations, gap_ns_max, last_ok_ns;
    uint64_t epoch, next_request, generation, generation_first, generation_last;
    uint64_t step, count; /* NONE: not known yet */
    const char *error_names[ERRORS_MAX];
    uint64_t error_counts[ERRORS_MAX];
    char first_violation[256];
    struct histogram latency, age;
    /* The outputs of all `ok` replies in order; and of each generation to each observation, 0 for none. */
    uint64_t digest, answers_count;
    struct {
        uint64_t generation, hashes[OBSERVATIONS];
    } answers[GENERATIONS_MAX];
    bool lost;
} ledger;

static void violation(const struct flight *flight, unsigned rule, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void violation(const struct flight *flight, unsigned rule, const char *format, ...)
{
    if (ledger.violations++ > 0) {
        return;
    }
    int at = snprintf(ledger.first_violation, sizeof ledger.first_violation, "rule %u, request %llu.%llu (j = %llu): ", rule,
                      (unsigned long long)flight->ticket.epoch, (unsigned long long)flight->ticket.number,
                      (unsigned long long)flight->j);
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(ledger.first_violation + at, sizeof ledger.first_violation - (size_t)at, format, arguments);
    va_end(arguments);
}

/* ---- histogram ---- */

static void add(struct histogram *h, uint64_t ns)
{
    uint64_t value = ns > 0 ? ns : 1;
    unsigned doubling = 63u - (unsigned)__builtin_clzll(value);
    uint64_t fine = doubling >= 4 ? (value >> (doubling - 4)) - PER_DOUBLING : (value << (4 - doubling)) - PER_DOUBLING;
    h->counts[doubling * PER_DOUBLING + fine]++;
    h->total++;
    h->max = ns > h->max ? ns : h->max;
}

/* The upper end of the bucket that holds this part of all values. */
static uint64_t percentile(const struct histogram *h, double part)
{
    uint64_t rank = (uint64_t)ceil((double)h->total * part), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += h->counts[i];
        if (h->total > 0 && seen >= (rank > 0 ? rank : 1)) {
            return (uint64_t)ldexp((double)(PER_DOUBLING + i % PER_DOUBLING + 1), (int)(i / PER_DOUBLING) - 4);
        }
    }
    return 0;
}

/* ---- the ledger ---- */

static void note_sent(const struct flight *flight)
{
    struct inferd_ticket ticket = flight->ticket;
    ledger.sent++;
    if (ledger.epoch != ticket.epoch) {
        bool first = ledger.epoch == 0;
        ledger.reattaches += !first;
        ledger.epoch = ticket.epoch;
        ledger.generation = 0;
        ledger.step = NONE;
        /* A session may have been used before this loop. */
        ledger.next_request = first ? ticket.number : 0;
        ledger.count = first && ticket.number != 0 ? NONE : 0;
    }
    if (ticket.number != ledger.next_request) {
        violation(flight, 2, "request %llu was due", (unsigned long long)ledger.next_request);
    }
    ledger.next_request = ticket.number + 1;
    ledger.flights[(ledger.first + ledger.in_flight++) % DEPTH_MAX] = *flight;
}

static void note_error(int error)
{
    const char *name = error_name(error);
    ledger.lost = ledger.lost || error == -ECONNRESET || error == -ESHUTDOWN;
    for (unsigned i = 0; i < ERRORS_MAX; i++) {
        if (ledger.error_names[i] == NULL || strcmp(ledger.error_names[i], name) == 0) {
            ledger.error_names[i] = name;
            ledger.error_counts[i]++;
            return;
        }
    }
}

/* A generation answers the same observation with the same outputs, always. */
static void check_answer(const struct flight *flight, uint64_t generation, uint64_t hash)
{
    uint64_t at = ledger.answers_count;
    while (at > 0 && ledger.answers[at - 1].generation != generation) {
        at--;
    }
    if (at == 0 && ledger.answers_count == GENERATIONS_MAX) {
        violation(flight, 11, "more generations than the ledger holds");
        return;
    }
    if (at == 0) {
        at = ++ledger.answers_count;
        ledger.answers[at - 1].generation = generation;
    }
    uint64_t *known = &ledger.answers[at - 1].hashes[flight->j % OBSERVATIONS];
    if (*known != 0 && *known != hash) {
        violation(flight, 11, "generation %llu answered %016llx after %016llx", (unsigned long long)generation,
                  (unsigned long long)hash, (unsigned long long)*known);
    }
    *known = hash;
}

static uint64_t hash_outputs(struct inferd_session *session, const struct flight *flight, const struct inferd_reply *reply)
{
    const struct inferd_signature *signature = inferd_signature(session);
    uint64_t hash = FNV1A_START;
    for (uint32_t k = 0; k < signature->outputs_count; k++) {
        const void *shown = inferd_output(session, reply, k);
        if (shown == NULL) {
            violation(flight, 11, "output %u is not shown", k);
            return hash;
        }
        hash = fnv1a(hash, shown, (size_t)signature->outputs[k].bytes);
    }
    return hash;
}

static void check_output(struct inferd_session *session, const struct wanted *wanted, const struct flight *flight,
                         const struct inferd_reply *reply)
{
    const struct inferd_signature *signature = inferd_signature(session);
    if ((reply->flags & INFERD_STATE_RESET) != 0) {
        ledger.state_resets++;
        ledger.count = 0;
    }
    if (wanted->check == CHECK_ANSWERS || wanted->check == CHECK_DIGEST) {
        uint64_t hash = hash_outputs(session, flight, reply);
        unsigned char bytes[8];
        for (unsigned i = 0; i < 8; i++) {
            bytes[i] = (unsigned char)(hash >> (8 * i));
        }
        ledger.digest = fnv1a(ledger.digest, bytes, sizeof bytes);
        if (wanted->check == CHECK_ANSWERS) {
            check_answer(flight, reply->generation, hash);
        }
    }
    if ((wanted->check == CHECK_ECHO || wanted->check == CHECK_COUNT) && signature->inputs_count > 0 && signature->outputs_count > 0) {
        size_t bytes = (size_t)signature->outputs[0].bytes, input_bytes = (size_t)signature->inputs[0].bytes;
        const void *shown = inferd_output(session, reply, 0);
        if (shown == NULL || !is_echo(shown, bytes, input_bytes, wanted->seed + flight->j)) {
            violation(flight, 8, "output 0 is not input 0");
        }
    }
    if (wanted->check == CHECK_COUNT) {
        const float *shown = signature->outputs_count > 1 ? inferd_output(session, reply, 1) : NULL;
        float value = shown != NULL ? *shown : -1.0f;
        uint64_t due = ledger.count == NONE ? (uint64_t)(value > 0 ? value : 0) : ledger.count;
        if (value < (float)due || value > (float)due) {
            violation(flight, 9, "the state shows %g, %llu was due", (double)value, (unsigned long long)due);
        }
        ledger.count = due;
    }
    ledger.count += ledger.count != NONE;
}

static void note_ok(struct inferd_session *session, const struct wanted *wanted, const struct flight *flight,
                    const struct inferd_reply *reply, uint64_t now_ns)
{
    bool late = (reply->flags & INFERD_LATE) != 0;
    ledger.late += late;
    if (reply->t_start_ns < flight->submit_ns || reply->t_done_ns < reply->t_start_ns || reply->t_done_ns > now_ns) {
        violation(flight, 6, "submitted %llu, started %llu, done %llu, now %llu", (unsigned long long)flight->submit_ns,
                  (unsigned long long)reply->t_start_ns, (unsigned long long)reply->t_done_ns, (unsigned long long)now_ns);
    }
    if (late != (flight->deadline_ns > 0 && reply->t_done_ns > flight->deadline_ns)) {
        violation(flight, 7, "late is %d, done %llu, deadline %llu", late, (unsigned long long)reply->t_done_ns,
                  (unsigned long long)flight->deadline_ns);
    }
    add(&ledger.latency, now_ns - flight->submit_ns);
    add(&ledger.age, reply->t_start_ns > flight->submit_ns ? reply->t_start_ns - flight->submit_ns : 0);
    if (ledger.last_ok_ns > 0 && now_ns - ledger.last_ok_ns > ledger.gap_ns_max) {
        ledger.gap_ns_max = now_ns - ledger.last_ok_ns;
    }
    ledger.last_ok_ns = now_ns;
    check_output(session, wanted, flight, reply);
}

static void note_reply(struct inferd_session *session, const struct wanted *wanted, const struct flight *flight,
                       const struct inferd_reply *reply)
{
    uint64_t now_ns = inferd_now_ns();
    bool ok = reply->status == INFERD_OK;
    ledger.lost = ledger.lost || reply->status == INFERD_SHUTTING_DOWN;
    ledger.skipped += reply->skipped;
    if (reply->request != flight->ticket.number || reply->observation_id != wanted->seed + flight->j) {
        violation(flight, 3, "a reply to request %llu with observation id %llu", (unsigned long long)reply->request,
                  (unsigned long long)reply->observation_id);
    }
    if (!wanted->rollbacks && reply->generation < ledger.generation) {
        violation(flight, 4, "generation %u after %llu", reply->generation, (unsigned long long)ledger.generation);
    }
    ledger.generation = ledger.generation_last = reply->generation;
    ledger.generation_first = ledger.generation_first == 0 ? reply->generation : ledger.generation_first;
    if (ledger.step != NONE && reply->step != ledger.step + ok) {
        violation(flight, 5, "%s with step %llu after %llu", inferd_status_name((int)reply->status),
                  (unsigned long long)reply->step, (unsigned long long)ledger.step);
    }
    ledger.step = reply->step;
    if (ok) {
        note_ok(session, wanted, flight, reply, now_ns);
    }
}

/* Waits for the oldest request in flight and enters what became of it. */
static void settle(struct inferd_session *session, const struct wanted *wanted)
{
    struct flight flight = ledger.flights[ledger.first % DEPTH_MAX];
    struct inferd_reply reply;
    ledger.first++;
    ledger.in_flight--;
    int outcome = inferd_wait(session, flight.ticket, wanted->timeout_ns, &reply);
    if (flight.j == wanted->drop) {
        if (outcome > 0) {
            (void)inferd_release(session, &reply);
        }
        return;
    }
    if (outcome == -ETIMEDOUT) {
        violation(&flight, 10, "no answer within %llu us", (unsigned long long)(wanted->timeout_ns / 1000));
        ledger.step = NONE;
        ledger.count = NONE;
        return;
    }
    if (outcome < 0) {
        violation(&flight, 1, "waiting: %s", inferd_error(session));
        return;
    }
    ledger.outcomes[outcome % STATUS_MAX]++;
    if (outcome == INFERD_DAEMON_LOST) {
        ledger.lost = true;
    } else if (outcome != INFERD_SUPERSEDED) {
        note_reply(session, wanted, &flight, &reply);
    }
    (void)inferd_release(session, &reply);
}

/* ---- the loop ---- */

static int send_request(struct inferd_session *session, const struct wanted *wanted, uint64_t j)
{
    const struct inferd_signature *signature = inferd_signature(session);
    int error = inferd_request(session);
    if (error != 0) {
        return error;
    }
    struct inferd_submit_options options = inferd_submit_defaults();
    options.observation_id = wanted->seed + j;
    options.flags = wanted->reset_every > 0 && j % wanted->reset_every == 0 ? INFERD_RESET : 0;
    uint64_t observation = wanted->seed + (wanted->check == CHECK_ANSWERS ? j % OBSERVATIONS : wanted->check == CHECK_DIGEST ? 0 : j);
    for (uint32_t k = 0; k < signature->inputs_count; k++) {
        fill(inferd_input(session, k), (size_t)signature->inputs[k].bytes, observation + k);
    }
    struct flight flight = {.j = j, .submit_ns = inferd_now_ns()};
    options.deadline_ns = flight.deadline_ns = deadline_from_now(wanted->has_deadline, wanted->deadline_us);
    error = inferd_submit(session, &options, &flight.ticket);
    if (error == 0) {
        note_sent(&flight);
    }
    return error;
}

static void sleep_ns(uint64_t ns)
{
    struct timespec time = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    (void)nanosleep(&time, NULL);
}

/* Waits until request `j` is due. */
static void pace(const struct wanted *wanted, uint64_t start_ns, uint64_t j)
{
    if (wanted->rate_hz == 0) {
        return;
    }
    uint64_t seconds = j / wanted->rate_hz, rest = j % wanted->rate_hz;
    uint64_t due_ns = start_ns + seconds * 1000000000 + rest * 1000000000 / wanted->rate_hz;
    for (uint64_t now_ns; (now_ns = inferd_now_ns()) < due_ns;) {
        if (due_ns - now_ns > 100000) {
            sleep_ns(due_ns - now_ns - 60000);
        }
    }
}

static void run(struct inferd_session *session, const struct wanted *wanted)
{
    uint64_t start_ns = inferd_now_ns(), j = 0;
    while (j < wanted->n && inferd_now_ns() - start_ns < wanted->end_after_ns && !(wanted->until_lost && ledger.lost)) {
        if (ledger.in_flight >= wanted->depth) {
            settle(session, wanted);
            continue;
        }
        pace(wanted, start_ns, j);
        int error = send_request(session, wanted, j);
        if (error == 0) {
            j++;
        } else {
            note_error(error);
            sleep_ns(PAUSE_NS);
        }
    }
    while (ledger.in_flight > 0) {
        settle(session, wanted);
    }
}

static const char *take(struct keys *keys, struct wanted *wanted)
{
    double seconds = 0;
    const char *check = keys_text(keys, "check"), *until = keys_text(keys, "until");
    *wanted = (struct wanted){
        .n = keys_number(keys, "n", NONE),
        .rate_hz = keys_number(keys, "rate_hz", 0),
        .depth = keys_number(keys, "depth", 1),
        .seed = keys_number(keys, "seed", 0),
        .timeout_ns = keys_micros(keys, "timeout_us", UINT64_C(5000000000)),
        .reset_every = keys_number(keys, "reset_every", 0),
        .drop = keys_number(keys, "drop", NONE),
        .rollbacks = keys_number(keys, "rollbacks", 0) != 0,
    };
    bool timed = keys_seconds(keys, "seconds", &seconds);
    wanted->end_after_ns = timed && seconds < 1e9 ? (uint64_t)(seconds * 1e9) : NONE;
    wanted->has_deadline = keys_signed(keys, "deadline_us", &wanted->deadline_us);
    wanted->until_lost = until != NULL && strcmp(until, "lost") == 0;
    if (check != NULL) {
        while (wanted->check < CHECKS && strcmp(check, check_names[wanted->check]) != 0) {
            wanted->check++;
        }
        if (wanted->check == CHECKS) {
            return "check is none, echo, count, answers or digest";
        }
    }
    if (until != NULL && !wanted->until_lost) {
        return "until is lost";
    }
    wanted->depth = wanted->depth > 0 ? wanted->depth : 1;
    if (wanted->depth > DEPTH_MAX) {
        return "depth is at most 4096";
    }
    const char *fault = keys_end(keys);
    return fault == NULL && wanted->n == NONE && !timed ? "n or seconds is missing" : fault;
}

static void print_counts(const char *key, const char *const *names, const uint64_t *counts, unsigned kinds)
{
    const char *comma = "";
    printf(",\"%s\":{", key);
    for (unsigned i = 0; i < kinds; i++) {
        const char *name = names != NULL ? names[i] : inferd_status_name((int)i);
        if (counts[i] > 0 && name != NULL) {
            printf("%s\"%s\":%llu", comma, name, (unsigned long long)counts[i]);
            comma = ",";
        }
    }
    printf("}");
}

static void print_number(const char *key, uint64_t value)
{
    printf(",\"%s\":%llu", key, (unsigned long long)value);
}

static void print_answers(void)
{
    printf(",\"answers\":[");
    for (uint64_t i = 0; i < ledger.answers_count; i++) {
        printf("%s{\"generation\":%llu,\"hashes\":[", i > 0 ? "," : "", (unsigned long long)ledger.answers[i].generation);
        for (unsigned k = 0; k < OBSERVATIONS; k++) {
            uint64_t hash = ledger.answers[i].hashes[k];
            printf(hash != 0 ? "%s\"%016llx\"" : "%s\"\"", k > 0 ? "," : "", (unsigned long long)hash);
        }
        printf("]}");
    }
    printf("],\"digest\":\"%016llx\"", (unsigned long long)ledger.digest);
}

static void summary(uint64_t allocated)
{
    uint64_t ended = 0;
    for (unsigned i = 0; i < STATUS_MAX; i++) {
        ended += ledger.outcomes[i];
    }
    if (ended != ledger.sent) {
        if (ledger.violations++ == 0) {
            (void)snprintf(ledger.first_violation, sizeof ledger.first_violation, "rule 1: %llu sent, %llu ended",
                           (unsigned long long)ledger.sent, (unsigned long long)ended);
        }
    }
    printf("{\"ok\":true,\"sent\":%llu", (unsigned long long)ledger.sent);
    print_counts("outcomes", NULL, ledger.outcomes, STATUS_MAX);
    print_counts("errors", ledger.error_names, ledger.error_counts, ERRORS_MAX);
    print_number("late", ledger.late);
    print_number("violations", ledger.violations);
    printf(",\"first_violation\":");
    print_string(ledger.first_violation);
    print_number("generation_first", ledger.generation_first);
    print_number("generation_last", ledger.generation_last);
    print_number("reattaches", ledger.reattaches);
    print_number("state_resets", ledger.state_resets);
    print_number("skipped", ledger.skipped);
    print_number("p50_ns", percentile(&ledger.latency, 0.5));
    print_number("p99_ns", percentile(&ledger.latency, 0.99));
    print_number("p999_ns", percentile(&ledger.latency, 0.999));
    print_number("max_ns", ledger.latency.max);
    print_number("gap_ns_max", ledger.gap_ns_max);
    print_number("age_p50_ns", percentile(&ledger.age, 0.5));
    print_number("age_ns_max", ledger.age.max);
    print_number("allocations", allocated);
    print_answers();
    printf("}\n");
}

void loop_command(struct attached *here, struct keys *keys)
{
    struct wanted wanted;
    const char *fault = take(keys, &wanted);
    if (fault != NULL) {
        answer_usage(fault);
        return;
    }
    memset(&ledger, 0, sizeof ledger);
    ledger.step = ledger.count = NONE;
    ledger.digest = FNV1A_START;
    uint64_t before = allocations();
    run(here->session, &wanted);
    summary(allocations() - before);
}
