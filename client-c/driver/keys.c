/*
 * keys.c - takes the words of a command apart; a line changes nothing before its keys are all understood.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void keys_parse(struct keys *keys, char *words)
{
    *keys = (struct keys){0};
    char *rest = words;
    for (char *word; (word = strtok_r(rest, " \t\r\n", &rest)) != NULL;) {
        char *equals = strchr(word, '=');
        if (equals == NULL || keys->count == KEYS_MAX) {
            keys->fault = equals == NULL ? "a word is not key=value" : "too many keys";
            return;
        }
        *equals = '\0';
        keys->names[keys->count] = word;
        keys->values[keys->count++] = equals + 1;
    }
}

char *keys_text(struct keys *keys, const char *name)
{
    for (unsigned i = 0; i < keys->count; i++) {
        if (keys->names[i] != NULL && strcmp(keys->names[i], name) == 0) {
            keys->names[i] = NULL;
            return keys->values[i];
        }
    }
    return NULL;
}

static void mistake(struct keys *keys, const char *what)
{
    keys->fault = keys->fault == NULL ? what : keys->fault;
}

uint64_t keys_number(struct keys *keys, const char *name, uint64_t otherwise)
{
    const char *text = keys_text(keys, name);
    if (text == NULL) {
        return otherwise;
    }
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0) {
        mistake(keys, "a value is not an unsigned number");
    }
    return value;
}

uint64_t keys_need(struct keys *keys, const char *name)
{
    for (unsigned i = 0; i < keys->count; i++) {
        if (keys->names[i] != NULL && strcmp(keys->names[i], name) == 0) {
            return keys_number(keys, name, 0);
        }
    }
    mistake(keys, "a key that this verb needs is missing");
    return 0;
}

bool keys_signed(struct keys *keys, const char *name, int64_t *value)
{
    const char *text = keys_text(keys, name);
    *value = 0;
    if (text == NULL) {
        return false;
    }
    char *end = NULL;
    errno = 0;
    *value = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0) {
        mistake(keys, "a value is not a number");
    }
    return true;
}

bool keys_seconds(struct keys *keys, const char *name, double *value)
{
    const char *text = keys_text(keys, name);
    *value = 0;
    if (text == NULL) {
        return false;
    }
    char *end = NULL;
    *value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(*value) || *value < 0) {
        mistake(keys, "a value is not a number of seconds");
    }
    return true;
}

uint64_t keys_micros(struct keys *keys, const char *name, uint64_t otherwise_ns)
{
    uint64_t none = UINT64_MAX, us = keys_number(keys, name, none);
    if (us == none) {
        return otherwise_ns;
    }
    return us > UINT64_MAX / 1000 ? UINT64_MAX : us * 1000;
}

const char *keys_end(struct keys *keys)
{
    for (unsigned i = 0; i < keys->count; i++) {
        if (keys->names[i] != NULL) {
            mistake(keys, "a key that this verb does not have");
        }
    }
    return keys->fault;
}
