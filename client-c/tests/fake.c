/*
 * fake.c - see fake.h. The signature is one f32[1, 45] input `obs` and two outputs, f32[1, 12] `action` and u8[3] `flags`.
 */
#include "fake.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

const char *check_name = "";

#define REQUEST_BYTES 65536u
#define REPLY_BYTES 65536u
#define REPLY_BASE (4096u + 128u)

/* ---- regions ---- */

static int region(struct fake *f, size_t bytes, int seals)
{
    if (f->backing == IFD_BACKING_POSIX) {
        char name[64];
        (void)snprintf(name, sizeof name, "/inferd.test.%d.%p", (int)getpid(), (void *)&bytes);
        int fd = shm_open(name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
        CHECK(fd >= 0 && shm_unlink(name) == 0 && posix_fallocate(fd, 0, (off_t)bytes) == 0);
        return fd;
    }
    int fd = memfd_create("inferd-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    if (f->fault == FAULT_UNSEALED) {
        seals &= ~F_SEAL_SHRINK;
    }
    CHECK(seals == 0 || fcntl(fd, F_ADD_SEALS, seals) == 0);
    return fd;
}

static struct ifd_tensor_record tensor(const char *name, uint32_t dtype, uint32_t rank, const uint64_t *shape, uint64_t offset,
                                       uint64_t bytes, uint32_t text_offset, uint32_t text_bytes)
{
    struct ifd_tensor_record record = {.dtype = dtype, .rank = rank, .offset = offset, .bytes = bytes,
                                       .text_offset = text_offset, .text_bytes = text_bytes, .time_axis = -1};
    (void)snprintf(record.name, sizeof record.name, "%s", name);
    memcpy(record.shape, shape, rank * sizeof *shape);
    return record;
}

static void write_signature(struct fake *f)
{
    static const char text[] = "x [m]\0y [m]\0";
    uint32_t at = sizeof(struct ifd_signature_header) + 3 * sizeof(struct ifd_tensor_record);
    struct ifd_signature_header header = {.inputs = 1, .outputs = 2, .flags = 1, .bytes = at + sizeof text};
    uint64_t obs[] = {1, f->fault == FAULT_OTHER_MODEL ? OBS_ELEMENTS + 1 : OBS_ELEMENTS}, action[] = {1, ACTION_ELEMENTS},
             flags[] = {3};
    struct ifd_tensor_record records[3] = {
        tensor("obs", f->fault == FAULT_SIGNATURE ? 99 : INFERD_F32, 2, obs, 64, obs[1] * 4, at, 5),
        tensor("action", INFERD_F32, 2, action, 64, ACTION_ELEMENTS * 4, at + 6, 5),
        tensor("flags", INFERD_U8, 1, flags, 128, 3, at + 12, 0),
    };
    struct ifd_region_header region_header = {.magic = IFD_REGION_MAGIC, .abi_major = INFERD_ABI_MAJOR, .generation = 7,
                                              .signature_bytes = header.bytes, .session = 42};
    memcpy(f->reply, &region_header, sizeof region_header);
    memcpy(f->reply + 64, &header, sizeof header);
    memcpy(f->reply + 64 + sizeof header, records, sizeof records);
    memcpy(f->reply + 64 + at, text, sizeof text);
}

/* ---- the daemon ---- */

static struct ifd_record_head head(struct fake *f, enum ifd_record_kind kind, size_t bytes)
{
    return (struct ifd_record_head){.magic = f->fault == FAULT_MAGIC ? 1 : IFD_ATTACH_MAGIC, .kind = (uint16_t)kind,
                                    .abi_major = f->fault == FAULT_ABI ? 2 : INFERD_ABI_MAJOR,
                                    .abi_minor = f->fault == FAULT_ABI ? 7 : INFERD_ABI_MINOR, .bytes = (uint16_t)bytes};
}

static void send_fds(int socket, const void *record, size_t bytes, const int *fds, size_t count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec part = {.iov_base = (void *)(uintptr_t)record, .iov_len = bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, count * sizeof(int));
    }
    (void)sendmsg(socket, &message, MSG_NOSIGNAL);
}

static void forget_session(struct fake *f)
{
    if (f->request != NULL) {
        (void)munmap(f->request, REQUEST_BYTES);
        (void)munmap(f->reply, REPLY_BYTES);
        f->request = f->reply = NULL;
    }
    if (f->socket >= 0) {
        (void)close(f->socket);
        (void)close(f->doorbell);
    }
    f->socket = f->doorbell = -1;
}

static void grant(struct fake *f, const struct ifd_attach_record *wish, int fds[3])
{
    f->geometry = (struct ifd_geometry){
        .slots = wish->slots != 0 ? wish->slots : f->slots,
        .queue = wish->queue != 0 ? wish->queue : f->queue,
        .request_bytes = REQUEST_BYTES,
        .request_base = 128,
        .request_slots = 128 + IFD_WORDS_BYTES,
        .request_stride = 384,
        .reply_bytes = REPLY_BYTES,
        .reply_base = REPLY_BASE,
        .reply_slots = REPLY_BASE + IFD_WORDS_BYTES,
        .reply_stride = 256,
    };
    int size_seals = F_SEAL_SHRINK | F_SEAL_GROW;
    fds[0] = region(f, REQUEST_BYTES, size_seals);
    fds[1] = region(f, f->fault == FAULT_SIZE ? REPLY_BYTES * 2 : REPLY_BYTES, size_seals | F_SEAL_SEAL);
    f->request = mmap(NULL, REQUEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
    f->reply = mmap(NULL, REPLY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
    CHECK(f->request != MAP_FAILED && f->reply != MAP_FAILED);
    write_signature(f);
    f->next_reply = 0;
    fake_set_state(f, INFERD_SERVING);
    int bell[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, bell) == 0);
    f->doorbell = bell[0];
    fds[2] = bell[1];
    if (f->fault == FAULT_GEOMETRY) {
        f->geometry.request_stride = REQUEST_BYTES;
    }
}

static void serve(struct fake *f, int socket)
{
    struct ifd_attach_record wish;
    int fds[3];
    if (recv(socket, &wish, sizeof wish, 0) != (ssize_t)sizeof wish || f->fault == FAULT_HANG_UP) {
        (void)close(socket);
        return;
    }
    CHECK(wish.head.magic == IFD_ATTACH_MAGIC && wish.head.kind == IFD_ATTACH && wish.head.bytes == sizeof wish);
    if (f->fault == FAULT_SILENT) {
        f->socket = socket; /* kept open until the next attach */
        return;
    }
    struct ifd_attached_record attached = {.head = head(f, IFD_ATTACHED, sizeof attached), .backing = f->backing,
                                           .spin_us = f->spin_us, .session = 42, .generation = 7, .version = "9.9.9-fake"};
    if (f->fault == FAULT_STATUS) {
        attached.status = f->status;
        (void)snprintf(attached.message, sizeof attached.message, "the fake says %u; do something", f->status);
        send_fds(socket, &attached, sizeof attached, NULL, 0);
        (void)close(socket);
        return;
    }
    forget_session(f);
    grant(f, &wish, fds);
    attached.geometry = f->geometry;
    send_fds(socket, &attached, f->fault == FAULT_SHORT ? 100 : sizeof attached, fds, f->fault == FAULT_FEW_FDS ? 2 : 3);
    for (int i = 0; i < 3; i++) {
        (void)close(fds[i]);
    }
    f->socket = socket;
    struct ifd_mapped_record mapped;
    if (recv(socket, &mapped, sizeof mapped, 0) != (ssize_t)sizeof mapped) {
        return;
    }
    (void)usleep(f->extra_ms * 1000);
    struct ifd_ready_record ready = {.head = head(f, IFD_READY, sizeof ready)};
    ready.status = f->fault == FAULT_READY_STATUS ? f->status : 0;
    f->attaches++;
    send_fds(socket, &ready, sizeof ready, NULL, 0);
}

static void *daemon_thread(void *argument)
{
    struct fake *f = argument;
    for (;;) {
        struct pollfd ready[2] = {{.fd = f->listener, .events = POLLIN}, {.fd = f->stop[0], .events = POLLIN}};
        (void)poll(ready, 2, -1);
        if (ready[1].revents != 0) {
            return NULL;
        }
        int socket = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
        if (socket >= 0) {
            (void)pthread_mutex_lock(&f->lock);
            serve(f, socket);
            (void)pthread_mutex_unlock(&f->lock);
        }
    }
}

void fake_start(struct fake *f, uint32_t slots, uint32_t queue, uint32_t spin_us)
{
    memset(f, 0, sizeof *f);
    f->slots = slots;
    f->queue = queue;
    f->spin_us = spin_us;
    f->backing = IFD_BACKING_MEMFD;
    f->socket = f->doorbell = -1;
    (void)snprintf(f->dir, sizeof f->dir, "/tmp/inferd-fake.XXXXXX");
    CHECK(mkdtemp(f->dir) != NULL);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s/attach.sock", f->dir);
    f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(f->listener >= 0 && bind(f->listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(f->listener, 8) == 0);
    CHECK(pthread_mutex_init(&f->lock, NULL) == 0 && pipe2(f->stop, O_CLOEXEC) == 0);
    CHECK(pthread_create(&f->thread, NULL, daemon_thread, f) == 0);
}

void fake_hang_up(struct fake *f)
{
    (void)pthread_mutex_lock(&f->lock);
    (void)shutdown(f->socket, SHUT_RDWR);
    (void)shutdown(f->doorbell, SHUT_RDWR);
    (void)pthread_mutex_unlock(&f->lock);
}

void fake_stop(struct fake *f)
{
    char path[128];
    CHECK(write(f->stop[1], "x", 1) == 1 && pthread_join(f->thread, NULL) == 0);
    forget_session(f);
    (void)close(f->listener);
    (void)close(f->stop[0]);
    (void)close(f->stop[1]);
    (void)snprintf(path, sizeof path, "%s/attach.sock", f->dir);
    (void)unlink(path);
    (void)rmdir(f->dir);
    (void)pthread_mutex_destroy(&f->lock);
}

int fake_try_attach(struct fake *f, const struct inferd_attach_options *options, struct inferd_session **session, char *why)
{
    struct inferd_attach_options wishes = options != NULL ? *options : inferd_attach_defaults();
    wishes.runtime_dir = f->dir;
    wishes.error = why;
    wishes.error_bytes = why != NULL ? 512 : 0;
    int error = inferd_attach("go2", &wishes, session);
    /* The daemon's last store to `f` came before its READY; the lock makes that plain to the sanitizers. */
    if (f->fault != FAULT_SILENT) {
        (void)pthread_mutex_lock(&f->lock);
        (void)pthread_mutex_unlock(&f->lock);
    }
    return error;
}

struct inferd_session *fake_attach(struct fake *f, const struct inferd_attach_options *options)
{
    struct inferd_session *session = NULL;
    char why[512] = "";
    int error = fake_try_attach(f, options, &session, why);
    if (error != 0) {
        fprintf(stderr, "attach: %d %s\n", error, why);
    }
    CHECK_EQ(error, 0);
    return session;
}

/* ---- the worker ---- */

static _Atomic uint64_t *word(unsigned char *base, uint64_t at)
{
    return (_Atomic uint64_t *)(void *)(base + at);
}

static _Atomic uint64_t *req_word(struct fake *f, size_t at)
{
    return word(f->request, f->geometry.request_base + at);
}

static _Atomic uint64_t *rep_word(struct fake *f, size_t at)
{
    return word(f->reply, f->geometry.reply_base + at);
}

uint64_t fake_published(struct fake *f)
{
    return atomic_load(req_word(f, IFD_REQ_PUBLISHED));
}

uint64_t fake_released(struct fake *f)
{
    return atomic_load(req_word(f, IFD_REQ_RELEASED));
}

uint64_t fake_client_sleeps(struct fake *f)
{
    return atomic_load(req_word(f, IFD_REQ_SLEEPING));
}

uint64_t fake_doorbell(struct fake *f)
{
    return atomic_load(req_word(f, IFD_REQ_DOORBELL));
}

bool fake_socket_rang(struct fake *f)
{
    char byte;
    return recv(f->doorbell, &byte, 1, MSG_DONTWAIT) == 1;
}

void fake_set_sleeping(struct fake *f, uint64_t how)
{
    atomic_store(rep_word(f, IFD_REP_SLEEPING), how);
}

void fake_set_sleeper_cpu(struct fake *f, int cpu)
{
    atomic_store(rep_word(f, IFD_REP_SLEEPER_CPU), (uint64_t)cpu + 1);
}

static void futex(const _Atomic uint64_t *at, int operation, uint32_t value)
{
    (void)syscall(SYS_futex, (const void *)at, operation, value, NULL, NULL, 0);
}

static void wake_client(struct fake *f)
{
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t sleeping = atomic_load_explicit(req_word(f, IFD_REQ_SLEEPING), memory_order_relaxed);
    if (sleeping == IFD_ASLEEP_SOCKET) {
        char ring = 1;
        (void)send(f->doorbell, &ring, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    } else if (sleeping == IFD_ASLEEP_FUTEX) {
        atomic_fetch_add(rep_word(f, IFD_REP_DOORBELL), 1);
        futex(rep_word(f, IFD_REP_DOORBELL), FUTEX_WAKE, 1);
    }
}

void fake_set_state(struct fake *f, uint64_t state)
{
    atomic_store(rep_word(f, IFD_REP_STATE), state);
    wake_client(f);
}

static unsigned char *request_slot(struct fake *f, uint64_t number)
{
    return f->request + f->geometry.request_slots + number % f->geometry.slots * f->geometry.request_stride;
}

uint64_t fake_request_seq(struct fake *f, uint64_t number)
{
    return atomic_load_explicit((_Atomic uint64_t *)(void *)request_slot(f, number), memory_order_acquire);
}

struct ifd_request_header fake_request(struct fake *f, uint64_t number)
{
    struct ifd_request_header header = {0};
    if (fake_request_seq(f, number) == number + 1) {
        memcpy(&header, request_slot(f, number), sizeof header);
    }
    return header;
}

const float *fake_input(struct fake *f, uint64_t number)
{
    return (const float *)(const void *)(request_slot(f, number) + 64);
}

void fake_publish(struct fake *f, struct ifd_reply_header header, float value)
{
    uint64_t r = f->next_reply++;
    unsigned char *slot = f->reply + f->geometry.reply_slots + r % ifd_reply_count(&f->geometry) * f->geometry.reply_stride;
    float *action = (float *)(void *)(slot + 64);
    for (unsigned k = 0; k < ACTION_ELEMENTS; k++) {
        action[k] = value;
    }
    memset(slot + 128, (int)value, 3);
    memcpy(slot + 8, (const unsigned char *)&header + 8, sizeof header - 8);
    atomic_store_explicit((_Atomic uint64_t *)(void *)slot, r + 1, memory_order_release);
    wake_client(f);
}

void fake_answer(struct fake *f, uint64_t request, uint32_t status, uint32_t flags, uint32_t skipped, float value)
{
    struct ifd_request_header asked = fake_request(f, request);
    uint64_t now_ns = inferd_now_ns();
    fake_publish(f, (struct ifd_reply_header){.request = request, .observation_id = asked.observation_id, .t_start_ns = now_ns,
                                              .t_done_ns = now_ns, .status = status, .flags = flags, .generation = 7,
                                              .skipped = skipped, .step = request + 1}, value);
}

static void *worker_thread(void *argument)
{
    struct fake_worker *w = argument;
    struct fake *f = w->f;
    for (uint64_t n = 0; n < w->count;) {
        if (fake_request_seq(f, n) == n + 1) {
            fake_answer(f, n, INFERD_OK, 0, 0, fake_input(f, n)[0] + 1);
            n++;
            continue;
        }
        /* The sleep handshake of docs/shm-layout.md, and no timeout: a lost wake hangs the test. */
        uint64_t before = atomic_load(req_word(f, IFD_REQ_DOORBELL));
        atomic_store_explicit(rep_word(f, IFD_REP_SLEEPING), IFD_ASLEEP_FUTEX, memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst);
        if (fake_request_seq(f, n) != n + 1) {
            futex(req_word(f, IFD_REQ_DOORBELL), FUTEX_WAIT, (uint32_t)before);
        }
        atomic_store_explicit(rep_word(f, IFD_REP_SLEEPING), IFD_AWAKE, memory_order_relaxed);
    }
    return NULL;
}

void fake_worker_start(struct fake_worker *w, struct fake *f, uint64_t count)
{
    *w = (struct fake_worker){.f = f, .count = count};
    CHECK(pthread_create(&w->thread, NULL, worker_thread, w) == 0);
}

void fake_worker_join(struct fake_worker *w)
{
    CHECK(pthread_join(w->thread, NULL) == 0);
}
