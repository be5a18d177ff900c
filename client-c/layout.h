/*
 * layout.h - the bytes that this library shares with the daemon and its workers.
 *
 * docs/shm-layout.md is the normative text; the assertions below and those of ipc/src/layout.rs hold
 * both languages to it. All numbers are little-endian and every structure's padding is explicit.
 * Nothing here is used before it was copied into private memory and checked (attach.c, signature.c,
 * ring.c); the words alone are read and written in place, as atomics.
 */
#ifndef INFERD_LAYOUT_H
#define INFERD_LAYOUT_H

#include "inferd.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define IFD_ATTACH_MAGIC UINT64_C(0x3141647265666e69) /* "inferdA1" */
#define IFD_REGION_MAGIC UINT64_C(0x3152647265666e69) /* "inferdR1" */

/* Limits of ipc/src/limits.rs that this side needs. */
#define IFD_TENSOR_BYTES_MAX (UINT64_C(1) << 30)
#define IFD_SLOT_BYTES_MAX (UINT64_C(1) << 30)
#define IFD_REGION_BYTES_MAX (UINT64_C(1) << 32)
#define IFD_ELEMENT_TEXT_BYTES_MAX (UINT32_C(64) << 10)
#define IFD_ATTACH_MESSAGE_BYTES 384
#define IFD_SPIN_US_MAX UINT32_C(10000000)
#define IFD_CLIENT_SLEEP_SLICE_MS 10
#define IFD_CLIENT_SPIN_CHECK_US 1000
#define IFD_DOORBELL_DRAIN_MAX 64
#define IFD_CLOCK_STALE_MS 500
#define IFD_REATTACH_BACKOFF_MS 5
#define IFD_REATTACH_BACKOFF_MS_MAX 250
#define IFD_ATTACH_TIMEOUT_MS 2000
#define IFD_RECORD_FDS_MAX 8
#define IFD_CONNECT_PAUSE_MS 1
#define IFD_CLIENT_HISTORY 256u

#define IFD_HEADER_BYTES 64u
#define IFD_WORD_STRIDE 128u
#define IFD_WORDS_BYTES (4u * IFD_WORD_STRIDE)
#define IFD_SLOT_ALIGN 128u
#define IFD_TENSOR_ALIGN 64u
#define IFD_PAGE 4096u

/* Words of the request region, from geometry.request_base: written by this library. */
#define IFD_REQ_PUBLISHED (0u * IFD_WORD_STRIDE)
#define IFD_REQ_RELEASED (1u * IFD_WORD_STRIDE)
#define IFD_REQ_SLEEPING (2u * IFD_WORD_STRIDE)
#define IFD_REQ_SLEEPER_CPU (IFD_REQ_SLEEPING + 8u)
#define IFD_REQ_DOORBELL (3u * IFD_WORD_STRIDE)
/* Words of the reply region, from geometry.reply_base: written by the worker. */
#define IFD_REP_STATE (0u * IFD_WORD_STRIDE)
#define IFD_REP_SLEEPING (1u * IFD_WORD_STRIDE)
#define IFD_REP_SLEEPER_CPU (IFD_REP_SLEEPING + 8u)
#define IFD_REP_DOORBELL (2u * IFD_WORD_STRIDE)

/* Values of the sleeping words. */
#define IFD_AWAKE 0u
#define IFD_ASLEEP_FUTEX 1u
#define IFD_ASLEEP_SOCKET 2u

#define IFD_BACKING_MEMFD 1u
#define IFD_BACKING_POSIX 2u

enum ifd_record_kind { IFD_ATTACH = 1, IFD_ATTACHED = 2, IFD_MAPPED = 3, IFD_READY = 4 };

enum ifd_attach_status {
    IFD_ATTACH_OK = 0,
    IFD_ATTACH_ABI_MISMATCH = 1,
    IFD_ATTACH_UNKNOWN_MODEL = 2,
    IFD_ATTACH_UNAVAILABLE = 3,
    IFD_ATTACH_QUOTA = 4,
    IFD_ATTACH_SHUTTING_DOWN = 5,
    IFD_ATTACH_CLOCK_SKEW = 6,
    IFD_ATTACH_FORBIDDEN = 7,
    IFD_ATTACH_BAD_REQUEST = 8,
    IFD_ATTACH_NO_RESOURCES = 9,
    IFD_ATTACH_BAD_REGION = 10
};

struct ifd_request_header {
    uint64_t seq; /* request number + 1; 0 while withdrawn; stored last */
    uint64_t observation_id;
    uint64_t t_submit_ns;
    uint64_t deadline_ns;
    uint32_t flags;
    uint32_t executed;
    uint64_t reset_seq; /* seq of the newest request, this one included, that carried the reset flag */
    uint64_t reserved[2];
};

struct ifd_reply_header {
    uint64_t seq; /* reply number + 1; stored last */
    uint64_t request;
    uint64_t observation_id;
    uint64_t t_start_ns;
    uint64_t t_done_ns;
    uint32_t status;
    uint32_t flags;
    uint32_t generation;
    uint32_t skipped;
    uint64_t step;
};

struct ifd_geometry {
    uint32_t slots;
    uint32_t queue;
    uint64_t request_bytes;
    uint64_t request_base;
    uint64_t request_slots;
    uint64_t request_stride;
    uint64_t reply_bytes;
    uint64_t reply_base;
    uint64_t reply_slots;
    uint64_t reply_stride;
};

struct ifd_region_header {
    uint64_t magic;
    uint16_t abi_major;
    uint16_t abi_minor;
    uint32_t signature_bytes;
    uint64_t session;
    uint32_t generation;
    uint32_t reserved;
    uint64_t reserved2[4];
};

struct ifd_signature_header {
    uint32_t inputs;
    uint32_t outputs;
    uint32_t flags; /* bit 0: stateful */
    uint32_t bytes; /* header, records and text */
};

struct ifd_tensor_record {
    char name[64];
    uint32_t dtype;
    uint32_t rank;
    uint64_t shape[8];
    uint64_t offset; /* from the start of the slot */
    uint64_t bytes;
    uint32_t text_offset; /* from the start of the signature */
    uint32_t text_bytes;
    int32_t time_axis;
    uint32_t reserved;
};

struct ifd_record_head {
    uint64_t magic;
    uint16_t kind;
    uint16_t abi_major;
    uint16_t abi_minor;
    uint16_t bytes;
};

struct ifd_attach_record {
    struct ifd_record_head head;
    char model[64];
    uint32_t slots;
    uint32_t queue;
    uint32_t flags;
    uint32_t pid;
    uint64_t clock_ns;
};

struct ifd_attached_record {
    struct ifd_record_head head;
    uint32_t status;
    uint32_t generation;
    uint64_t session;
    struct ifd_geometry geometry;
    uint32_t backing;
    uint32_t spin_us;
    char version[32];
    char message[IFD_ATTACH_MESSAGE_BYTES];
};

struct ifd_mapped_record {
    struct ifd_record_head head;
};

struct ifd_ready_record {
    struct ifd_record_head head;
    uint32_t status;
    uint32_t reserved;
    char message[IFD_ATTACH_MESSAGE_BYTES];
};

#define IFD_AT(type, field, offset) \
    _Static_assert(offsetof(struct type, field) == (offset), "docs/shm-layout.md: " #type "." #field)
#define IFD_BYTES(type, bytes) _Static_assert(sizeof(struct type) == (bytes), "docs/shm-layout.md: size of " #type)

IFD_BYTES(ifd_request_header, 64);
IFD_AT(ifd_request_header, seq, 0);
IFD_AT(ifd_request_header, observation_id, 8);
IFD_AT(ifd_request_header, t_submit_ns, 16);
IFD_AT(ifd_request_header, deadline_ns, 24);
IFD_AT(ifd_request_header, flags, 32);
IFD_AT(ifd_request_header, executed, 36);
IFD_AT(ifd_request_header, reset_seq, 40);
IFD_AT(ifd_request_header, reserved, 48);

IFD_BYTES(ifd_reply_header, 64);
IFD_AT(ifd_reply_header, seq, 0);
IFD_AT(ifd_reply_header, request, 8);
IFD_AT(ifd_reply_header, observation_id, 16);
IFD_AT(ifd_reply_header, t_start_ns, 24);
IFD_AT(ifd_reply_header, t_done_ns, 32);
IFD_AT(ifd_reply_header, status, 40);
IFD_AT(ifd_reply_header, flags, 44);
IFD_AT(ifd_reply_header, generation, 48);
IFD_AT(ifd_reply_header, skipped, 52);
IFD_AT(ifd_reply_header, step, 56);

IFD_BYTES(ifd_geometry, 72);
IFD_AT(ifd_geometry, slots, 0);
IFD_AT(ifd_geometry, queue, 4);
IFD_AT(ifd_geometry, request_bytes, 8);
IFD_AT(ifd_geometry, request_base, 16);
IFD_AT(ifd_geometry, request_slots, 24);
IFD_AT(ifd_geometry, request_stride, 32);
IFD_AT(ifd_geometry, reply_bytes, 40);
IFD_AT(ifd_geometry, reply_base, 48);
IFD_AT(ifd_geometry, reply_slots, 56);
IFD_AT(ifd_geometry, reply_stride, 64);

IFD_BYTES(ifd_region_header, 64);
IFD_AT(ifd_region_header, magic, 0);
IFD_AT(ifd_region_header, abi_major, 8);
IFD_AT(ifd_region_header, abi_minor, 10);
IFD_AT(ifd_region_header, signature_bytes, 12);
IFD_AT(ifd_region_header, session, 16);
IFD_AT(ifd_region_header, generation, 24);
IFD_AT(ifd_region_header, reserved, 28);

IFD_BYTES(ifd_signature_header, 16);
IFD_BYTES(ifd_tensor_record, 168);
IFD_AT(ifd_tensor_record, name, 0);
IFD_AT(ifd_tensor_record, dtype, 64);
IFD_AT(ifd_tensor_record, rank, 68);
IFD_AT(ifd_tensor_record, shape, 72);
IFD_AT(ifd_tensor_record, offset, 136);
IFD_AT(ifd_tensor_record, bytes, 144);
IFD_AT(ifd_tensor_record, text_offset, 152);
IFD_AT(ifd_tensor_record, text_bytes, 156);
IFD_AT(ifd_tensor_record, time_axis, 160);

IFD_BYTES(ifd_record_head, 16);
IFD_AT(ifd_record_head, kind, 8);
IFD_AT(ifd_record_head, bytes, 14);
IFD_BYTES(ifd_attach_record, 104);
IFD_AT(ifd_attach_record, model, 16);
IFD_AT(ifd_attach_record, slots, 80);
IFD_AT(ifd_attach_record, clock_ns, 96);
IFD_BYTES(ifd_attached_record, 528);
IFD_AT(ifd_attached_record, status, 16);
IFD_AT(ifd_attached_record, session, 24);
IFD_AT(ifd_attached_record, geometry, 32);
IFD_AT(ifd_attached_record, backing, 104);
IFD_AT(ifd_attached_record, spin_us, 108);
IFD_AT(ifd_attached_record, version, 112);
IFD_AT(ifd_attached_record, message, 144);
IFD_BYTES(ifd_mapped_record, 16);
IFD_BYTES(ifd_ready_record, 408);
IFD_AT(ifd_ready_record, status, 16);
IFD_AT(ifd_ready_record, message, 24);

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are little-endian, and futexes look at their low half");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "words in shared memory are lock-free 64-bit atomics (ARMv7 or newer)");
_Static_assert(sizeof(_Atomic uint64_t) == 8, "an atomic word has no lock beside it");
_Static_assert(INFERD_ABI_MAJOR == 1 && INFERD_ABI_MINOR == 0, "the layout below is that of ABI 1.0");

#endif
