/*
 * bytes.c - the fill pattern of tests/DRIVER.md, hexadecimal digits, and the FNV-1a hash.
 */
#include "driver.h"

#include <stdio.h>
#include <string.h>

static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint64_t word_at(uint64_t seed, size_t index)
{
    return mix(seed + index) & UINT64_C(0x3f3f3f3f3f3f3f3f);
}

void fill(void *to, size_t bytes, uint64_t seed)
{
    unsigned char *at = to;
    for (size_t i = 0; i * 8 < bytes; i++) {
        uint64_t word = word_at(seed, i);
        size_t left = bytes - i * 8;
        memcpy(at + i * 8, &word, left < 8 ? left : 8);
    }
}

bool is_echo(const void *bytes, size_t count, size_t input_bytes, uint64_t seed)
{
    const unsigned char *shown = bytes;
    if (input_bytes == 0) {
        return true;
    }
    for (size_t i = 0, k = 0; i < count; i++, k = k + 1 == input_bytes ? 0 : k + 1) {
        if (shown[i] != (unsigned char)(word_at(seed, k / 8) >> (8 * (k % 8)))) {
            return false;
        }
    }
    return true;
}

static int digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool unhex(const char *text, size_t length, void *to, size_t bytes)
{
    unsigned char *at = to;
    if (length != 2 * bytes) {
        return false;
    }
    for (size_t i = 0; i < bytes; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0) {
            return false;
        }
        at[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}

void print_hex(const void *bytes, size_t count)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *at = bytes;
    for (size_t i = 0; i < count; i++) {
        putchar(digits[at[i] >> 4]);
        putchar(digits[at[i] & 15]);
    }
}

uint64_t fnv1a(uint64_t hash, const void *bytes, size_t count)
{
    const unsigned char *at = bytes;
    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}
