/*
 * driver.c - the C client's driver: speaks the line protocol of tests/DRIVER.md over libinferd.
 *
 * One command per line of stdin, one JSON object per command on stdout. A command's keys are all
 * understood before anything is done. `write` keeps a copy of each input, so that `submit` may take
 * the slot by itself, and writes in place where a slot is taken; `send` and `loop` write in place.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* A ticket of the driver's own: which attach it belongs to, and the library's. */
struct given {
    uint64_t serial;
    struct inferd_ticket ticket;
};

/* The keys of `submit`. */
struct labels {
    uint64_t id;
    int64_t deadline_us;
    bool has_deadline, reset;
    uint32_t executed;
};

static struct attached sessions[SESSIONS_MAX];
static struct given tickets[TICKETS_MAX];
static uint64_t tickets_given, attaches;

/* ---- keys that several verbs have ---- */

static enum show take_show(struct keys *keys)
{
    const char *text = keys_text(keys, "out");
    if (text == NULL || strcmp(text, "hex") == 0) {
        return SHOW_HEX;
    }
    if (strcmp(text, "hash") != 0 && strcmp(text, "none") != 0) {
        keys->fault = "out is hex, hash or none";
    }
    return strcmp(text, "hash") == 0 ? SHOW_HASH : SHOW_NONE;
}

static struct labels take_labels(struct keys *keys)
{
    struct labels labels = {.id = keys_number(keys, "id", 0)};
    labels.has_deadline = keys_signed(keys, "deadline_us", &labels.deadline_us);
    labels.executed = (uint32_t)keys_number(keys, "executed", 0);
    labels.reset = keys_number(keys, "reset", 0) == 1;
    return labels;
}

uint64_t deadline_from_now(bool given, int64_t deadline_us)
{
    if (!given) {
        return 0;
    }
    int64_t now_ns = (int64_t)inferd_now_ns();
    if (deadline_us > (INT64_MAX - now_ns) / 1000) {
        return UINT64_MAX;
    }
    return deadline_us < -now_ns / 1000 ? 1 : (uint64_t)(now_ns + deadline_us * 1000);
}

static struct inferd_submit_options submit_options(const struct labels *labels)
{
    struct inferd_submit_options options = inferd_submit_defaults();
    options.observation_id = labels->id;
    options.executed = labels->executed;
    options.flags = labels->reset ? INFERD_RESET : 0;
    options.deadline_ns = deadline_from_now(labels->has_deadline, labels->deadline_us);
    return options;
}

/* ---- attach and what it says ---- */

static void forget(struct attached *here)
{
    inferd_detach(here->session);
    for (unsigned i = 0; i < INFERD_TENSORS_MAX; i++) {
        free(here->inputs[i]);
    }
    *here = (struct attached){0};
}

static void attach(struct attached *here, struct keys *keys)
{
    struct inferd_attach_options options = inferd_attach_defaults();
    static char why[1024];
    const char *model = keys_text(keys, "model"), *queue = keys_text(keys, "queue");
    options.error = why;
    options.error_bytes = sizeof why;
    options.slots = (uint32_t)keys_number(keys, "slots", 0);
    options.timeout_ns = keys_micros(keys, "timeout_us", 0);
    options.spin_us = (uint32_t)keys_number(keys, "spin_us", INFERD_SPIN_MODEL);
    options.flags = keys_number(keys, "auto_reattach", 1) == 0 ? INFERD_NO_REATTACH : 0;
    if (queue != NULL) {
        options.queue = strcmp(queue, "latest") == 0 ? INFERD_LATEST : INFERD_IN_ORDER;
        if (options.queue == INFERD_IN_ORDER && strcmp(queue, "in_order") != 0) {
            keys->fault = "queue is latest or in_order";
        }
    }
    const char *fault = keys_end(keys);
    if (fault != NULL || model == NULL) {
        answer_usage(fault != NULL ? fault : "model is missing");
        return;
    }
    struct inferd_session *session;
    why[0] = '\0';
    int error = inferd_attach(model, &options, &session);
    if (error != 0) {
        answer_error(error_name(error), why);
        return;
    }
    forget(here);
    here->session = session;
    here->serial = ++attaches;
    const struct inferd_signature *signature = inferd_signature(session);
    for (uint32_t i = 0; i < signature->inputs_count; i++) {
        here->inputs[i] = calloc(1, (size_t)signature->inputs[i].bytes + 1);
    }
    answer_attached(session);
}

static void versions(const struct attached *here)
{
    printf("{\"ok\":true,\"client\":\"c\",\"library\":\"%s\",\"abi\":\"%u.%u\"", inferd_version(), inferd_abi() >> 16,
           inferd_abi() & 0xffff);
    if (here->session != NULL) {
        printf(",\"daemon\":");
        print_string(inferd_daemon_version(here->session));
    }
    printf("}\n");
}

static void print_tensors(const char *key, const struct inferd_tensor *tensors, uint32_t count)
{
    printf(",\"%s\":[", key);
    for (uint32_t i = 0; i < count; i++) {
        printf("%s{\"name\":", i == 0 ? "" : ",");
        print_string(tensors[i].name);
        printf(",\"dtype\":\"%s\",\"shape\":[", inferd_dtype_name(tensors[i].dtype));
        for (uint32_t d = 0; d < tensors[i].rank; d++) {
            printf("%s%llu", d == 0 ? "" : ",", (unsigned long long)tensors[i].shape[d]);
        }
        printf("],\"bytes\":%llu}", (unsigned long long)tensors[i].bytes);
    }
    printf("]");
}

static void signature(const struct attached *here)
{
    const struct inferd_signature *signature = inferd_signature(here->session);
    printf("{\"ok\":true,\"stateful\":%s", signature->stateful ? "true" : "false");
    print_tensors("inputs", signature->inputs, signature->inputs_count);
    print_tensors("outputs", signature->outputs, signature->outputs_count);
    printf("}\n");
}

/* ---- requests ---- */

static void write_input(struct attached *here, struct keys *keys)
{
    uint64_t input = keys_need(keys, "input");
    uint64_t seed = keys_number(keys, "fill", UINT64_MAX);
    const char *hex = keys_text(keys, "hex"), *fault = keys_end(keys);
    const struct inferd_signature *signature = inferd_signature(here->session);
    if (fault == NULL && input >= signature->inputs_count) {
        fault = "there is no such input";
    }
    if (fault == NULL && (hex == NULL) == (seed == UINT64_MAX)) {
        fault = "write takes one of hex and fill";
    }
    size_t bytes = fault == NULL ? (size_t)signature->inputs[input].bytes : 0;
    if (fault == NULL && hex != NULL && !unhex(hex, strlen(hex), here->inputs[input], bytes)) {
        fault = "hex is not as long as the input, or has other characters than 0-9 and a-f";
    }
    if (fault != NULL) {
        answer_usage(fault);
        return;
    }
    if (hex == NULL) {
        fill(here->inputs[input], bytes, seed);
    }
    void *place = inferd_input(here->session, (uint32_t)input);
    if (place != NULL) {
        memcpy(place, here->inputs[input], bytes);
    }
    printf("{\"ok\":true}\n");
}

static uint64_t give_ticket(const struct attached *here, struct inferd_ticket ticket)
{
    tickets[tickets_given % TICKETS_MAX] = (struct given){.serial = here->serial, .ticket = ticket};
    return tickets_given++;
}

static void submit(struct attached *here, struct keys *keys)
{
    struct labels labels = take_labels(keys);
    const char *fault = keys_end(keys);
    if (fault != NULL) {
        answer_usage(fault);
        return;
    }
    const struct inferd_signature *signature = inferd_signature(here->session);
    int error = inferd_request(here->session);
    for (uint32_t i = 0; error == 0 && i < signature->inputs_count; i++) {
        error = inferd_write(here->session, i, here->inputs[i], (size_t)signature->inputs[i].bytes);
    }
    struct inferd_ticket ticket = {0};
    if (error == 0) {
        struct inferd_submit_options options = submit_options(&labels);
        error = inferd_submit(here->session, &options, &ticket);
    }
    if (error != 0) {
        answer_failure(here->session, error);
        return;
    }
    unsigned long long given = give_ticket(here, ticket);
    printf("{\"ok\":true,\"ticket\":%llu,\"request\":%llu}\n", given, (unsigned long long)ticket.number);
}

static int send_one(struct attached *here, uint64_t seed, const struct labels *labels, struct inferd_ticket *ticket)
{
    const struct inferd_signature *signature = inferd_signature(here->session);
    int error = inferd_request(here->session);
    if (error != 0) {
        return error;
    }
    for (uint32_t i = 0; i < signature->inputs_count; i++) {
        fill(inferd_input(here->session, i), (size_t)signature->inputs[i].bytes, seed + i);
    }
    struct inferd_submit_options options = submit_options(labels);
    return inferd_submit(here->session, &options, ticket);
}

static void send_many(struct attached *here, struct keys *keys)
{
    uint64_t seed = keys_need(keys, "fill"), n = keys_number(keys, "n", 1);
    struct labels labels = take_labels(keys);
    const char *fault = keys_end(keys);
    if (fault != NULL) {
        answer_usage(fault);
        return;
    }
    unsigned long long first = 0, request = 0;
    uint64_t sent = 0;
    int error = 0;
    while (sent < n) {
        struct inferd_ticket ticket;
        error = send_one(here, seed + sent, &labels, &ticket);
        if (error != 0) {
            break;
        }
        unsigned long long given = give_ticket(here, ticket);
        if (sent++ == 0) {
            first = given;
            request = ticket.number;
        }
        labels.id++;
    }
    if (error == 0) {
        printf("{\"ok\":true");
    } else {
        printf("{\"ok\":false,\"error\":\"%s\",\"message\":", error_name(error));
        print_string(inferd_error(here->session));
    }
    if (sent > 0) {
        printf(",\"ticket\":%llu,\"request\":%llu", first, request);
    }
    printf(",\"n\":%llu}\n", (unsigned long long)sent);
}

/* ---- outcomes ---- */

/* The ticket that a command names; false (and answered) if there is none of this session. */
static bool find_ticket(const struct attached *here, uint64_t number, struct inferd_ticket *ticket)
{
    if (number >= tickets_given || tickets_given - number > TICKETS_MAX) {
        answer_usage("this ticket was never given out, or lies too far back");
        return false;
    }
    const struct given *given = &tickets[number % TICKETS_MAX];
    if (given->serial != here->serial) {
        answer_error("invalid", "this ticket belongs to another session");
        return false;
    }
    *ticket = given->ticket;
    return true;
}

static int wait_by_poll(struct inferd_session *session, struct inferd_ticket ticket, uint64_t timeout_ns,
                        struct inferd_reply *reply, uint64_t *polls)
{
    uint64_t now_ns = inferd_now_ns();
    uint64_t end_ns = timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
    *polls = 0;
    for (;;) {
        int armed = inferd_poll_arm(session);
        int outcome = armed < 0 ? armed : inferd_try(session, ticket, reply);
        if (outcome != -EINPROGRESS) {
            return outcome;
        }
        now_ns = inferd_now_ns();
        if (now_ns >= end_ns) {
            return -ETIMEDOUT;
        }
        if (armed == 0) {
            uint64_t left_ms = (end_ns - now_ns) / 1000000 + 1;
            struct pollfd readable = {.fd = inferd_poll_fd(session), .events = POLLIN};
            ++*polls;
            (void)poll(&readable, 1, left_ms > 3600000 ? 3600000 : (int)left_ms);
        }
    }
}

static void wait_for(struct attached *here, struct keys *keys, char how)
{
    uint64_t number = keys_need(keys, "ticket");
    uint64_t timeout_ns = how == 't' ? 0 : keys_micros(keys, "timeout_us", INFERD_FOREVER);
    enum show show = take_show(keys);
    const char *fault = keys_end(keys);
    struct inferd_ticket ticket;
    if (fault != NULL) {
        answer_usage(fault);
        return;
    }
    if (!find_ticket(here, number, &ticket)) {
        return;
    }
    struct inferd_reply reply;
    uint64_t polls = UINT64_MAX, began_ns = inferd_now_ns();
    int outcome = how == 't'   ? inferd_try(here->session, ticket, &reply)
                  : how == 'p' ? wait_by_poll(here->session, ticket, timeout_ns, &reply, &polls)
                               : inferd_wait(here->session, ticket, timeout_ns, &reply);
    uint64_t waited_ns = inferd_now_ns() - began_ns;
    if (outcome < 0) {
        answer_failure(here->session, outcome);
        return;
    }
    answer_outcome(here->session, &reply, NULL, show, waited_ns, polls);
    (void)inferd_release(here->session, &reply);
}

static void abandon(struct attached *here, struct keys *keys)
{
    uint64_t number = keys_need(keys, "ticket");
    const char *fault = keys_end(keys);
    struct inferd_ticket ticket;
    if (fault != NULL) {
        answer_usage(fault);
    } else if (find_ticket(here, number, &ticket)) {
        int error = inferd_abandon(here->session, ticket);
        answer_done(error == -ESTALE ? 0 : error, here->session); /* given up or taken already: nothing is left to do */
    }
}

/* ---- the one-call convenience ---- */

/* The inputs of `infer`: filled, or as many hexadecimal texts as there are inputs. NULL, or what is wrong. */
static const char *take_inputs(struct attached *here, bool filled, uint64_t seed, char *hex, struct inferd_in *in, uint32_t *count)
{
    const struct inferd_signature *signature = inferd_signature(here->session);
    *count = signature->inputs_count;
    for (uint32_t i = 0; i < signature->inputs_count; i++) {
        size_t bytes = (size_t)signature->inputs[i].bytes;
        in[i] = (struct inferd_in){.data = here->inputs[i], .bytes = bytes};
        if (filled) {
            fill(here->inputs[i], bytes, seed + i);
            continue;
        }
        char *text = hex == NULL ? NULL : strsep(&hex, ",");
        if (text == NULL) {
            *count = i; /* the library refuses too few inputs */
            return NULL;
        }
        size_t given = strlen(text) / 2;
        /* Another length is the library's to refuse, whatever the bytes are. */
        if (given == bytes ? !unhex(text, strlen(text), here->inputs[i], bytes) : strlen(text) % 2 != 0) {
            return "hex has other characters than 0-9 and a-f, or an odd length";
        }
        in[i].bytes = given;
    }
    *count += hex != NULL && !filled; /* and too many */
    return NULL;
}

static void infer(struct attached *here, struct keys *keys)
{
    char *seed_text = keys_text(keys, "fill"), *hex = keys_text(keys, "hex");
    uint64_t timeout_ns = keys_micros(keys, "timeout_us", INFERD_FOREVER);
    struct labels labels = take_labels(keys);
    enum show show = take_show(keys);
    const char *fault = keys_end(keys);
    if (fault == NULL && (seed_text == NULL) == (hex == NULL)) {
        fault = "infer takes one of fill and hex";
    }
    struct inferd_in in[INFERD_TENSORS_MAX];
    struct inferd_out out[INFERD_TENSORS_MAX];
    uint32_t count = 0;
    if (fault == NULL) {
        fault = take_inputs(here, seed_text != NULL, seed_text != NULL ? strtoull(seed_text, NULL, 10) : 0, hex, in, &count);
    }
    if (fault != NULL) {
        answer_usage(fault);
        return;
    }
    const struct inferd_signature *signature = inferd_signature(here->session);
    for (uint32_t i = 0; i < signature->outputs_count; i++) {
        out[i].bytes = (size_t)signature->outputs[i].bytes;
        out[i].data = calloc(1, out[i].bytes + 1);
    }
    struct inferd_reply reply;
    uint64_t began_ns = inferd_now_ns();
    struct inferd_submit_options options = submit_options(&labels);
    int outcome = inferd_infer(here->session, in, count, out, signature->outputs_count, &options, timeout_ns, &reply);
    uint64_t waited_ns = inferd_now_ns() - began_ns;
    if (outcome > 0) {
        answer_outcome(here->session, &reply, out, show, waited_ns, UINT64_MAX);
    } else {
        answer_failure(here->session, outcome);
    }
    for (uint32_t i = 0; i < signature->outputs_count; i++) {
        free(out[i].data);
    }
}

static void forked(struct attached *here)
{
    static const int errors[] = {0, -EOWNERDEAD, -ECONNRESET, -EHOSTDOWN, -EAGAIN};
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int error = inferd_request(here->session), code = 0;
        while (code < 5 && errors[code] != error) {
            code++;
        }
        _exit(code);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
        answer_error("other", child < 0 ? "fork failed" : "the child did not exit by itself");
        return;
    }
    int code = WEXITSTATUS(status);
    printf("{\"ok\":true,\"child\":\"%s\"}\n", code < 5 ? error_name(errors[code]) : "other");
}

/* ---- lines ---- */

/* Verbs of a session whose only keys are those of `s`. */
static bool simple_verb(struct attached *here, const char *verb, struct keys *keys)
{
    bool known = strcmp(verb, "signature") == 0 || strcmp(verb, "info") == 0 || strcmp(verb, "request") == 0 ||
                 strcmp(verb, "fork") == 0;
    const char *fault = known ? keys_end(keys) : NULL;
    if (!known) {
        return false;
    }
    if (fault != NULL) {
        answer_usage(fault);
    } else if (verb[0] == 's') {
        signature(here);
    } else if (verb[0] == 'i') {
        answer_attached(here->session);
    } else if (verb[0] == 'r') {
        answer_done(inferd_request(here->session), here->session);
    } else {
        forked(here);
    }
    return true;
}

static void session_verb(struct attached *here, const char *verb, struct keys *keys)
{
    if (simple_verb(here, verb, keys)) {
        return;
    }
    if (strcmp(verb, "reattach") == 0) {
        uint64_t timeout_ns = keys_micros(keys, "timeout_us", 0);
        const char *fault = keys_end(keys);
        int error = fault == NULL ? inferd_reattach(here->session, timeout_ns) : 0;
        if (fault != NULL) {
            answer_usage(fault);
        } else if (error != 0) {
            answer_failure(here->session, error);
        } else {
            answer_attached(here->session);
        }
    } else if (strcmp(verb, "write") == 0) {
        write_input(here, keys);
    } else if (strcmp(verb, "submit") == 0) {
        submit(here, keys);
    } else if (strcmp(verb, "send") == 0) {
        send_many(here, keys);
    } else if (strcmp(verb, "wait") == 0 || strcmp(verb, "try") == 0 || strcmp(verb, "pollwait") == 0) {
        wait_for(here, keys, verb[0]);
    } else if (strcmp(verb, "abandon") == 0) {
        abandon(here, keys);
    } else if (strcmp(verb, "infer") == 0) {
        infer(here, keys);
    } else if (strcmp(verb, "loop") == 0) {
        loop_command(here, keys);
    } else {
        answer_usage("unknown verb");
    }
}

static void command(char *line)
{
    struct keys keys;
    char *rest = line, *verb = strsep(&rest, " ");
    keys_parse(&keys, rest != NULL ? rest : line + strlen(line));
    uint64_t s = keys_number(&keys, "s", 0);
    if (keys.fault != NULL || s >= SESSIONS_MAX) {
        answer_usage(keys.fault != NULL ? keys.fault : "s is at most 63");
        return;
    }
    struct attached *here = &sessions[s];
    bool plain = strcmp(verb, "versions") == 0 || strcmp(verb, "counters") == 0 || strcmp(verb, "detach") == 0;
    const char *fault = plain ? keys_end(&keys) : NULL;
    if (fault != NULL) {
        answer_usage(fault);
    } else if (strcmp(verb, "attach") == 0) {
        attach(here, &keys);
    } else if (strcmp(verb, "versions") == 0) {
        versions(here);
    } else if (strcmp(verb, "counters") == 0) {
        printf("{\"ok\":true,\"allocations\":%llu}\n", (unsigned long long)allocations());
    } else if (strcmp(verb, "detach") == 0) {
        forget(here);
        printf("{\"ok\":true}\n");
    } else if (here->session == NULL) {
        answer_error("not_attached", "attach first");
    } else {
        session_verb(here, verb, &keys);
    }
}

int main(void)
{
    char *line = NULL;
    size_t room = 0;
    for (ssize_t length; (length = getline(&line, &room, stdin)) > 0;) {
        line[strcspn(line, "\r\n")] = '\0';
        if (strcmp(line, "quit") == 0) {
            break;
        }
        command(line);
        if (fflush(stdout) != 0) {
            break;
        }
    }
    for (unsigned s = 0; s < SESSIONS_MAX; s++) {
        forget(&sessions[s]);
    }
    free(line);
    return 0;
}
