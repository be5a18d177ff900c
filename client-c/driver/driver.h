/*
 * driver.h - what the files of the C client's driver share; tests/DRIVER.md is the protocol.
 *
 * driver.c reads lines and has the verbs, answers.c writes the lines of JSON, keys.c takes `key=value`
 * words apart, loop.c is the verb `loop` with its ledger, bytes.c has the fill pattern and hexadecimal
 * digits, count.c counts calls of malloc. The driver decides nothing: it calls the library and says what came back.
 */
#ifndef INFERD_DRIVER_H
#define INFERD_DRIVER_H

#include <inferd.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KEYS_MAX 32
#define SESSIONS_MAX 64
#define TICKETS_MAX 65536

/* The `key=value` words of a command, taken out one by one; what is left over is a mistake. */
struct keys {
    char *names[KEYS_MAX], *values[KEYS_MAX];
    unsigned count;
    const char *fault; /* the first mistake, or NULL */
};

void keys_parse(struct keys *keys, char *words);
/* The value of a key, removed; NULL if it is absent. */
char *keys_text(struct keys *keys, const char *name);
/* A number of a key; `otherwise` if it is absent. A value that is no number is a mistake. */
uint64_t keys_number(struct keys *keys, const char *name, uint64_t otherwise);
/* The same; absence is a mistake. */
uint64_t keys_need(struct keys *keys, const char *name);
/* A signed number; false if it is absent. */
bool keys_signed(struct keys *keys, const char *name, int64_t *value);
/* Seconds, as a decimal fraction; false if it is absent. */
bool keys_seconds(struct keys *keys, const char *name, double *value);
/* Microseconds as nanoseconds, saturating. */
uint64_t keys_micros(struct keys *keys, const char *name, uint64_t otherwise_ns);
/* The first mistake, a key that is left over included; NULL if there is none. */
const char *keys_end(struct keys *keys);

/* The pattern of DRIVER.md. */
void fill(void *to, size_t bytes, uint64_t seed);
/* Whether `bytes` are the pattern of an input of `input_bytes`, repeated or cut. */
bool is_echo(const void *bytes, size_t count, size_t input_bytes, uint64_t seed);
/* Decodes exactly `bytes` bytes; false if the text is not that long, or has other characters. */
bool unhex(const char *text, size_t length, void *to, size_t bytes);
void print_hex(const void *bytes, size_t count);
uint64_t fnv1a(uint64_t hash, const void *bytes, size_t count);
#define FNV1A_START UINT64_C(0xcbf29ce484222325)

/* Calls of malloc, calloc, realloc and aligned_alloc by this process so far. */
uint64_t allocations(void);

/* An attached session, and the inputs written for its next request. */
struct attached {
    struct inferd_session *session; /* NULL: none */
    uint64_t serial;                /* which attach of the driver this was: tickets remember it */
    unsigned char *inputs[INFERD_TENSORS_MAX];
};

/* ---- answers.c ---- */

enum show { SHOW_HEX, SHOW_HASH, SHOW_NONE };

/* The error name of DRIVER.md. */
const char *error_name(int error);
void answer_error(const char *name, const char *message);
void answer_usage(const char *what);
/* A failure of the library, with its sentence. */
void answer_failure(const struct inferd_session *session, int error);
/* Nothing but `ok`, or a failure. */
void answer_done(int error, const struct inferd_session *session);
void answer_attached(struct inferd_session *session);
/* OUTCOME. The outputs are the copies, or stand in place where `copies` is NULL; `polls` UINT64_MAX is left out. */
void answer_outcome(struct inferd_session *session, const struct inferd_reply *reply, const struct inferd_out *copies,
                    enum show show, uint64_t waited_ns, uint64_t polls);
void print_string(const char *text);

/* The absolute deadline of a request submitted now; 0 for none. */
uint64_t deadline_from_now(bool given, int64_t deadline_us);

/* The verb `loop`. */
void loop_command(struct attached *here, struct keys *keys);

#endif
