/*
 * robot.c - a control loop at a fixed rate: writes each observation in place, submits it with a deadline of
 * one cycle, waits, and takes the action, or the fallback on anything but an answer that is ok and in time.
 *
 * usage: robot [--model NAME] [--rate HZ] [--seconds S] [--timeout-us N] [--runtime-dir DIR]
 * At the end it prints percentiles, outcomes and generations. Exits 1 if nothing was served, or if the number of
 * outcomes differs from the number of requests. The loop neither allocates nor prints.
 */
#define _POSIX_C_SOURCE 200809L
#include <inferd.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NS_PER_S UINT64_C(1000000000)
#define OUTCOMES_MAX 128    /* enum inferd_status, and one past it for a wait that timed out */
#define TIMED_OUT (OUTCOMES_MAX - 1)
#define GENERATIONS_MAX 16  /* changes of the generation that are remembered */

struct options {
    const char *model, *runtime_dir;
    double rate_hz, seconds;
    uint64_t timeout_ns;
};

struct log {
    uint64_t sent, refused, late, fallbacks, overruns, skipped, step_resets;
    uint64_t outcomes[OUTCOMES_MAX];
    uint32_t generations[GENERATIONS_MAX];
    unsigned generations_count;
    double *took_us;
    size_t took_count, took_max;
    double action; /* what the robot would do; printed, so that it is computed */
};

static int usage(void)
{
    fprintf(stderr, "usage: robot [--model NAME] [--rate HZ] [--seconds S] [--timeout-us N] [--runtime-dir DIR]\n");
    return 2;
}

static int parse(int argc, char **argv, struct options *o)
{
    *o = (struct options){.model = "go2", .rate_hz = 1000, .seconds = 5, .timeout_ns = UINT64_C(20000000)};
    for (int i = 1; i < argc; i++) {
        const char *key = argv[i], *value = i + 1 < argc ? argv[++i] : NULL;
        if (value == NULL) {
            return usage();
        }
        if (strcmp(key, "--model") == 0) {
            o->model = value;
        } else if (strcmp(key, "--runtime-dir") == 0) {
            o->runtime_dir = value;
        } else if (strcmp(key, "--rate") == 0) {
            o->rate_hz = strtod(value, NULL);
        } else if (strcmp(key, "--seconds") == 0) {
            o->seconds = strtod(value, NULL);
        } else if (strcmp(key, "--timeout-us") == 0) {
            o->timeout_ns = strtoull(value, NULL, 10) * 1000;
        } else {
            return usage();
        }
    }
    return o->rate_hz > 0 && o->rate_hz <= 1e6 && o->seconds > 0 && o->seconds <= 1e6 ? 0 : usage();
}

/* Stands for the robot's sensors: a slow wave in every f32 input, zeroes in all others, written where the worker reads. */
static void observe(struct inferd_session *session, const struct inferd_signature *signature, uint64_t cycle)
{
    for (uint32_t i = 0; i < signature->inputs_count; i++) {
        void *place = inferd_input(session, i);
        if (signature->inputs[i].dtype != INFERD_F32) {
            memset(place, 0, (size_t)signature->inputs[i].bytes);
            continue;
        }
        float *values = place;
        for (size_t k = 0; k < (size_t)signature->inputs[i].bytes / sizeof *values; k++) {
            values[k] = 0.1f * sinf((float)(cycle % 1000) * 0.00628f + (float)k);
        }
    }
}

/* Stands for the robot's motors: reads the action in place. */
static void act(struct inferd_session *session, const struct inferd_signature *signature, struct inferd_reply *reply, struct log *log)
{
    const void *action = inferd_output(session, reply, 0);
    if (action != NULL && signature->outputs[0].dtype == INFERD_F32 && signature->outputs[0].bytes >= sizeof(float)) {
        log->action = (double)*(const float *)action;
    }
}

static void note(struct log *log, const struct inferd_reply *reply, uint64_t now_ns)
{
    log->late += (reply->flags & INFERD_LATE) != 0;
    log->step_resets += (reply->flags & INFERD_STATE_RESET) != 0;
    log->skipped += reply->skipped;
    if (log->took_count < log->took_max) {
        log->took_us[log->took_count++] = (double)(now_ns - reply->t_submit_ns) / 1e3;
    }
    unsigned count = log->generations_count;
    if (count < GENERATIONS_MAX && (count == 0 || log->generations[count - 1] != reply->generation)) {
        log->generations[log->generations_count++] = reply->generation;
    }
}

/* One cycle; true if the robot has an action of this cycle's observation. */
static int cycle(struct inferd_session *session, const struct options *o, uint64_t number, uint64_t cycle_ns, struct log *log)
{
    const struct inferd_signature *signature = inferd_signature(session);
    if (inferd_request(session) < 0) {
        log->refused++; /* recovering, or the daemon is away: the library reattaches by itself */
        return 0;
    }
    observe(session, signature, number);
    struct inferd_submit_options labels = inferd_submit_defaults();
    labels.observation_id = number;
    labels.deadline_ns = inferd_now_ns() + cycle_ns;
    struct inferd_ticket ticket;
    if (inferd_submit(session, &labels, &ticket) < 0) {
        log->refused++;
        return 0;
    }
    log->sent++;
    struct inferd_reply reply;
    int outcome = inferd_wait(session, ticket, o->timeout_ns, &reply);
    uint64_t now_ns = inferd_now_ns();
    log->outcomes[outcome > 0 && outcome < TIMED_OUT ? outcome : TIMED_OUT]++;
    if (outcome != INFERD_OK) {
        return 0;
    }
    note(log, &reply, now_ns);
    int in_time = (reply.flags & INFERD_LATE) == 0;
    if (in_time) {
        act(session, signature, &reply, log);
    }
    (void)inferd_release(session, &reply);
    return in_time;
}

static void run(struct inferd_session *session, const struct options *o, struct log *log)
{
    uint64_t cycle_ns = (uint64_t)((double)NS_PER_S / o->rate_hz);
    uint64_t next_ns = inferd_now_ns(), end_ns = next_ns + (uint64_t)(o->seconds * (double)NS_PER_S);
    for (uint64_t number = 0; next_ns < end_ns; number++) {
        struct timespec at = {.tv_sec = (time_t)(next_ns / NS_PER_S), .tv_nsec = (long)(next_ns % NS_PER_S)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) {
        }
        if (!cycle(session, o, number, cycle_ns, log)) {
            log->fallbacks++;
            log->action = 0; /* a real robot: stand still, or hold the last safe posture */
        }
        uint64_t now_ns = inferd_now_ns();
        next_ns += cycle_ns;
        if (now_ns > next_ns) { /* cycles that were missed are not caught up with */
            uint64_t missed = (now_ns - next_ns) / cycle_ns + 1;
            log->overruns += missed;
            next_ns += missed * cycle_ns;
        }
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const struct log *log, double percent)
{
    size_t at = (size_t)(percent / 100 * (double)log->took_count);
    return log->took_us[at < log->took_count ? at : log->took_count - 1];
}

/* Prints the summary; returns the number of outcomes. */
static uint64_t report(struct log *log)
{
    if (log->took_count > 0) {
        qsort(log->took_us, log->took_count, sizeof *log->took_us, ascending);
        printf("submit to action [us]: p50 %.1f  p90 %.1f  p99 %.1f  p99.9 %.1f  max %.1f\n", percentile(log, 50),
               percentile(log, 90), percentile(log, 99), percentile(log, 99.9), percentile(log, 100));
    }
    uint64_t sum = 0;
    printf("requests: %llu; outcomes:", (unsigned long long)log->sent);
    for (int k = 0; k < OUTCOMES_MAX; k++) {
        if (log->outcomes[k] > 0) {
            printf("  %s %llu", k == TIMED_OUT ? "timeout" : inferd_status_name(k), (unsigned long long)log->outcomes[k]);
            sum += log->outcomes[k];
        }
    }
    printf("\nlate %llu, refused %llu, fallbacks %llu, cycles missed %llu, superseded %llu, fresh states %llu\n",
           (unsigned long long)log->late, (unsigned long long)log->refused, (unsigned long long)log->fallbacks,
           (unsigned long long)log->overruns, (unsigned long long)log->skipped, (unsigned long long)log->step_resets);
    printf("generations:");
    for (unsigned k = 0; k < log->generations_count; k++) {
        printf(" %s%u", k == 0 ? "" : "-> ", log->generations[k]);
    }
    printf("\nlast action[0]: %g\n", log->action);
    return sum;
}

int main(int argc, char **argv)
{
    struct options o;
    if (parse(argc, argv, &o) != 0) {
        return 2;
    }
    struct inferd_attach_options wishes = inferd_attach_defaults();
    char why[1024] = "";
    wishes.runtime_dir = o.runtime_dir;
    wishes.error = why;
    wishes.error_bytes = sizeof why;
    struct inferd_session *session;
    if (inferd_attach(o.model, &wishes, &session) < 0) {
        fprintf(stderr, "robot: %s\n", why);
        return 1;
    }
    struct log log = {.took_max = (size_t)(o.rate_hz * o.seconds) + 1};
    log.took_us = malloc(log.took_max * sizeof *log.took_us);
    if (log.took_us == NULL) {
        fprintf(stderr, "robot: no memory for %zu samples\n", log.took_max);
        return 1;
    }
    printf("robot: model %s at %g Hz for %g s; library %s, daemon %s\n", o.model, o.rate_hz, o.seconds, inferd_version(),
           inferd_daemon_version(session));
    run(session, &o, &log);
    uint64_t outcomes = report(&log);
    inferd_detach(session);
    free(log.took_us);
    return outcomes == log.sent && log.outcomes[INFERD_OK] > 0 ? 0 : 1;
}
