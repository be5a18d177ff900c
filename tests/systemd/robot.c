/*
 * robot.c - a robot process for the box tests: attaches through the installed library and infers at a fixed rate.
 *
 * usage: robot once MODEL            one attach, one request: prints `ok generation N`, or the error, exit 1
 *        robot loop MODEL SECONDS    requests at 1 kHz through whatever happens; ends early on SIGTERM; prints one JSON line:
 *                                    requests, ok, other outcomes and errors by name, reattaches, replies that said
 *                                    state_reset, and every gap between two ok replies of more than 10 ms, in ms
 */
#define _GNU_SOURCE
#include <inferd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define GAPS_MAX 4096
#define NAMES_MAX 32
#define TENSOR_BYTES_MAX 65536u

static volatile sig_atomic_t stopped;

static void stop(int signal)
{
    (void)signal;
    stopped = 1;
}

struct count {
    const char *name;
    unsigned long n;
};

static void add(struct count *counts, const char *name)
{
    int i = 0;
    while (i < NAMES_MAX - 1 && counts[i].name && strcmp(counts[i].name, name) != 0) i++;
    counts[i].name = name;
    counts[i].n++;
}

static unsigned char zeros[INFERD_TENSORS_MAX][TENSOR_BYTES_MAX], results[INFERD_TENSORS_MAX][TENSOR_BYTES_MAX];

int main(int argc, char **argv)
{
    if (argc < 3) return 2;
    int looping = strcmp(argv[1], "loop") == 0;
    double seconds = argc > 3 ? atof(argv[3]) : 0;
    char why[512] = "";
    struct inferd_attach_options options = inferd_attach_defaults();
    options.error = why;
    options.error_bytes = sizeof why;
    options.timeout_ns = 10000000000u;
    struct inferd_session *session;
    int error = inferd_attach(argv[2], &options, &session);
    if (error < 0) {
        printf("refused (%s): %s\n", inferd_error_name(error), why);
        return 1;
    }
    const struct inferd_signature *signature = inferd_signature(session);
    struct inferd_in in[INFERD_TENSORS_MAX];
    struct inferd_out out[INFERD_TENSORS_MAX];
    for (unsigned i = 0; i < signature->inputs_count; i++) in[i] = (struct inferd_in){zeros[i], signature->inputs[i].bytes};
    for (unsigned i = 0; i < signature->outputs_count; i++)
        out[i] = (struct inferd_out){results[i], signature->outputs[i].bytes};

    signal(SIGTERM, stop);
    static double gaps_ms[GAPS_MAX];
    struct count counts[NAMES_MAX] = {{0, 0}};
    unsigned long requests = 0, resets = 0, gaps = 0;
    uint64_t begin = inferd_now_ns(), last_ok = 0, next = begin;
    struct inferd_reply reply = {.generation = 0};
    uint32_t generation = 0;
    int outcome;
    do {
        outcome = inferd_infer(session, in, signature->inputs_count, out, signature->outputs_count, NULL, 1000000000u, &reply);
        requests++;
        if (outcome == INFERD_OK) {
            uint64_t now = inferd_now_ns();
            if (last_ok && now - last_ok > 10000000u && gaps < GAPS_MAX) gaps_ms[gaps++] = (double)(now - last_ok) / 1e6;
            last_ok = now;
            generation = reply.generation;
            if (reply.flags & INFERD_STATE_RESET) resets++;
            add(counts, "ok");
        } else {
            add(counts, outcome > 0 ? inferd_status_name(outcome) : inferd_error_name(outcome));
        }
        next += 1000000u;
        uint64_t now = inferd_now_ns();
        if (next < now) next = now;
        struct timespec until = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)};
        while (looping && !stopped && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0) {}
    } while (looping && !stopped && (double)(inferd_now_ns() - begin) < seconds * 1e9);

    struct inferd_info info = {.size = sizeof info};
    int known = inferd_info(session, &info);
    if (!looping) {
        if (outcome == INFERD_OK) printf("ok generation %u\n", generation);
        else printf("%s: %s\n", outcome > 0 ? inferd_status_name(outcome) : "error", inferd_error(session));
    } else {
        printf("{\"requests\": %lu, \"generation\": %u, \"reattaches\": %lu, \"state_reset\": %lu", requests, generation,
               known == 0 ? (unsigned long)info.epoch - 1 : 0, resets);
        for (int i = 0; i < NAMES_MAX && counts[i].name; i++) printf(", \"%s\": %lu", counts[i].name, counts[i].n);
        printf(", \"gaps_ms\": [");
        for (unsigned long i = 0; i < gaps; i++) printf("%s%.1f", i ? ", " : "", gaps_ms[i]);
        printf("]}\n");
    }
    inferd_detach(session);
    return looping ? 0 : outcome != INFERD_OK;
}
