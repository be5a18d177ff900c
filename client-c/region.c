/*
 * region.c - verifying, mapping and populating the regions that the daemon hands over.
 *
 * What always holds: a region is mapped only after its size, and for a memfd the seals that keep that
 * size, were verified; its pages are present, so that no request pays for a page fault; and a forked
 * child does not inherit the mapping. Also here: the page that tells a child from its parent.
 */
#include "internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef F_GET_SEALS
#define F_GET_SEALS 1034
#define F_SEAL_SEAL 1
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#endif

bool ifd_disabled(const char *feature)
{
    const char *list = getenv("INFERD_DISABLE");
    size_t length = strlen(feature);
    while (list != NULL && *list != '\0') {
        list += strspn(list, ", ");
        size_t word = strcspn(list, ", ");
        if (word == length && memcmp(list, feature, length) == 0) {
            return true;
        }
        list += word;
    }
    return false;
}

static int verify(struct inferd_session *s, int fd, enum ifd_kind kind, uint32_t backing, uint64_t bytes)
{
    struct stat stat;
    if (fstat(fd, &stat) != 0) {
        return ifd_failf(s, -EPROTO, "attach: cannot look at a region (%s)", strerror(errno));
    }
    if (!S_ISREG(stat.st_mode) || stat.st_size < 0 || (uint64_t)stat.st_size != bytes) {
        return ifd_fail(s, -EPROTO, "attach: a region has another size than announced; install one release on both sides");
    }
    if (backing == IFD_BACKING_POSIX) {
        return 0; /* named segments cannot be sealed: crash isolation only */
    }
    int seals = fcntl(fd, F_GET_SEALS);
    int need = F_SEAL_SHRINK | F_SEAL_GROW | (kind == IFD_REPLY_REGION ? F_SEAL_SEAL : 0);
    if (seals < 0 || (seals & need) != need) {
        return ifd_fail(s, -EPROTO, "attach: a region's size is not sealed; install one release on both sides");
    }
    return 0;
}

void ifd_region_populate(const struct ifd_region *region, bool writable, bool may_advise)
{
    if (may_advise && madvise(region->base, region->bytes, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) == 0) {
        return;
    }
    /* Kernels before 5.14. Nobody else writes the request region, and writing back what was read changes nothing. */
    for (size_t at = 0; at < region->bytes; at += IFD_PAGE) {
        volatile unsigned char *byte = region->base + at;
        unsigned char value = *byte;
        if (writable) {
            *byte = value;
        }
    }
}

int ifd_region_map(struct inferd_session *s, int fd, enum ifd_kind kind, uint32_t backing, uint64_t bytes,
                   struct ifd_region *region)
{
    int error = verify(s, fd, kind, backing, bytes);
    if (error != 0) {
        return error;
    }
    if (bytes > (uint64_t)PTRDIFF_MAX) {
        return ifd_fail(s, -ENOMEM, "attach: a region is larger than this process's address space; use fewer slots");
    }
    bool writable = kind == IFD_REQUEST_REGION;
    void *base = mmap(NULL, (size_t)bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return ifd_failf(s, -ENOMEM, "attach: mapping a region of %llu bytes: %s; free memory or use fewer slots",
                         (unsigned long long)bytes, strerror(errno));
    }
    *region = (struct ifd_region){.base = base, .bytes = (size_t)bytes};
    (void)madvise(base, region->bytes, MADV_DONTFORK);
    ifd_region_populate(region, writable, !ifd_disabled("madv_populate"));
    if ((s->flags & INFERD_LOCK_MEMORY) != 0) {
        (void)mlock(base, region->bytes); /* where it is allowed; else go on without */
    }
    return 0;
}

void ifd_region_unmap(struct ifd_region *region)
{
    if (region->base != NULL) {
        (void)munmap(region->base, region->bytes);
    }
    *region = (struct ifd_region){0};
}

const _Atomic uint32_t *ifd_owner_mark_new(void)
{
    void *page = mmap(NULL, IFD_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        return NULL;
    }
    if (ifd_disabled("wipe_on_fork") || madvise(page, IFD_PAGE, MADV_WIPEONFORK) != 0) {
        (void)munmap(page, IFD_PAGE);
        return NULL;
    }
    _Atomic uint32_t *mark = page;
    atomic_store_explicit(mark, 1, memory_order_relaxed);
    return mark;
}

void ifd_owner_mark_free(const _Atomic uint32_t *mark)
{
    if (mark != NULL) {
        (void)munmap((void *)(uintptr_t)mark, IFD_PAGE);
    }
}
