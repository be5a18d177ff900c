/*
 * count.c - counts this process's allocations by standing in front of the C library's.
 *
 * Needs glibc, whose own entry points have a second name; elsewhere the count stays 0. Nothing of
 * libinferd refers to these: it is the linker that puts them before the C library's.
 */
#include "driver.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

static atomic_ullong calls;

uint64_t allocations(void)
{
    return atomic_load_explicit(&calls, memory_order_relaxed);
}

#if defined(__GLIBC__)
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static void count(void)
{
    atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
}

void *malloc(size_t bytes)
{
    count();
    return __libc_malloc(bytes);
}

void *calloc(size_t count_of, size_t bytes)
{
    count();
    return __libc_calloc(count_of, bytes);
}

void *realloc(void *at, size_t bytes)
{
    count();
    return __libc_realloc(at, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    count();
    return __libc_memalign(alignment, bytes);
}

int posix_memalign(void **at, size_t alignment, size_t bytes)
{
    count();
    *at = __libc_memalign(alignment, bytes);
    return *at == NULL ? ENOMEM : 0;
}
#endif
