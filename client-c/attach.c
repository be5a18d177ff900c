/*
 * attach.c - the handshake on attach.sock: ATTACH -> ATTACHED -> (verify, map, populate) -> MAPPED -> READY.
 *
 * A machine of steps that never wait, so that a control loop can reattach between two of its cycles;
 * the blocking calls drive the same machine with poll(2). The daemon's records are copied once and
 * checked, geometry and seals before anything is mapped. Whatever fails, descriptors and mappings of
 * the attempt are gone when the error is returned.
 */
#include "failpoint.h"
#include "internal.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- where the daemon is ---- */

static int set_dir(struct inferd_session *s, const char *rule, const char *dir, const char *below)
{
    s->dir_rule = rule;
    int bytes = snprintf(s->dir, sizeof s->dir, "%s%s", dir, below);
    if (bytes < 0 || (size_t)bytes >= sizeof s->dir) {
        return ifd_failf(s, -EINVAL, "attach: the directory named by %s is longer than %d bytes", rule, IFD_PATH_BYTES - 1);
    }
    return 0;
}

int ifd_find_dir(struct inferd_session *s, const char *wish)
{
    s->tried[0] = '\0';
    if (wish != NULL) {
        return set_dir(s, "options.runtime_dir", wish, "");
    }
    const char *dir = getenv("INFERD_RUNTIME_DIR");
    if (dir != NULL && *dir != '\0') {
        return set_dir(s, "$INFERD_RUNTIME_DIR", dir, "");
    }
    dir = getenv("XDG_RUNTIME_DIR");
    bool set = dir != NULL && *dir != '\0';
    if (set) {
        int error = set_dir(s, "$XDG_RUNTIME_DIR/inferd", dir, "/inferd");
        char socket[IFD_PATH_BYTES + 16];
        (void)snprintf(socket, sizeof socket, "%s/attach.sock", s->dir);
        if (error != 0 || access(socket, F_OK) == 0) {
            return error;
        }
    }
    (void)snprintf(s->tried, sizeof s->tried, "$INFERD_RUNTIME_DIR (not set); $XDG_RUNTIME_DIR/inferd (%s); ",
                   set ? "no attach.sock there" : "not set");
    return set_dir(s, "system default", "/run/inferd", "");
}

static int no_daemon(struct inferd_session *s, int error, const char *why)
{
    return ifd_failf(s, error, "no inferd daemon to connect to; start it, or set INFERD_RUNTIME_DIR. Tried: %s%s %s (%s)",
                     s->tried, s->dir_rule, s->dir, why);
}

/* The socket's address; a path that is too long for one goes through /proc, by an open descriptor of the directory. */
static int address_of(struct inferd_session *s, struct sockaddr_un *address, int *dir_fd)
{
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    *dir_fd = -1;
    if (strlen(s->dir) + sizeof "/attach.sock" <= sizeof address->sun_path) {
        memcpy(address->sun_path, s->dir, strlen(s->dir));
        memcpy(address->sun_path + strlen(s->dir), "/attach.sock", sizeof "/attach.sock");
        return 0;
    }
    *dir_fd = open(s->dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*dir_fd < 0) {
        return no_daemon(s, -ECONNREFUSED, strerror(errno));
    }
    (void)snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d/attach.sock", *dir_fd);
    return 0;
}

/* ---- records ---- */

static struct ifd_record_head head(enum ifd_record_kind kind, size_t bytes)
{
    return (struct ifd_record_head){
        .magic = IFD_ATTACH_MAGIC,
        .kind = (uint16_t)kind,
        .abi_major = INFERD_ABI_MAJOR,
        .abi_minor = INFERD_ABI_MINOR,
        .bytes = (uint16_t)bytes,
    };
}

static int send_record(struct inferd_session *s, const void *record, size_t bytes)
{
    ssize_t sent = send(s->next.socket, record, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    /* EPIPE: the daemon closed its end; what it said before that is read next. */
    if (sent == (ssize_t)bytes || (sent < 0 && errno == EPIPE)) {
        return 0;
    }
    return ifd_failf(s, -ECONNRESET, "attach to %s: sending a record: %s", s->model, strerror(errno));
}

struct received {
    size_t bytes;
    int fds[IFD_RECORD_FDS_MAX];
    unsigned count;
};

static void close_all(struct received *got)
{
    for (unsigned i = 0; i < got->count; i++) {
        if (got->fds[i] >= 0) {
            (void)close(got->fds[i]);
        }
    }
    got->count = 0;
}

/* One message without waiting; owns its descriptors from the first moment, so that none leaks on any path. */
static int receive(struct inferd_session *s, void *buffer, size_t room, struct received *got)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * IFD_RECORD_FDS_MAX)];
    } control;
    struct iovec part = {.iov_base = buffer, .iov_len = room};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    *got = (struct received){0};
    ssize_t bytes = recvmsg(s->next.socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) {
        return -EINPROGRESS;
    }
    if (bytes <= 0) {
        return ifd_failf(s, -ECONNRESET, "attach to %s: the daemon hung up half-way; its log says why", s->model);
    }
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c != NULL; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            for (size_t i = 0; i < count && got->count < IFD_RECORD_FDS_MAX; i++) {
                memcpy(&got->fds[got->count++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            }
        }
    }
    got->bytes = (size_t)bytes;
    if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
        close_all(got);
        return ifd_failf(s, -EPROTO, "attach to %s: a record is too long, or its descriptors do not fit this process's limit "
                         "(ulimit -n)", s->model);
    }
    return 0;
}

/* Receives and checks one record; magic, ABI, kind and length in this order, so that a daemon of another ABI is told so. */
static int receive_record(struct inferd_session *s, enum ifd_record_kind kind, void *record, size_t bytes, struct received *got)
{
    _Alignas(8) unsigned char buffer[sizeof(struct ifd_attached_record) + 1];
    int error = receive(s, buffer, sizeof buffer, got);
    if (error != 0) {
        return error;
    }
    struct ifd_record_head h = {0};
    if (got->bytes >= sizeof h) {
        memcpy(&h, buffer, sizeof h);
    }
    if (h.magic != IFD_ATTACH_MAGIC) {
        error = ifd_failf(s, -EPROTO, "attach to %s: what answers is not an inferd daemon", s->model);
    } else if (h.abi_major != INFERD_ABI_MAJOR) {
        error = ifd_failf(s, -EPROTONOSUPPORT, "attach to %s: the daemon speaks ABI %u.%u, this library %d.%d; install the same "
                          "major version on both sides", s->model, h.abi_major, h.abi_minor, INFERD_ABI_MAJOR, INFERD_ABI_MINOR);
    } else if (h.kind != kind || h.bytes != got->bytes || got->bytes != bytes) {
        error = ifd_failf(s, -EPROTO, "attach to %s: the daemon sent record %u of %zu bytes where record %d of %zu was due",
                          s->model, h.kind, got->bytes, (int)kind, bytes);
    }
    if (error != 0) {
        close_all(got);
        return error;
    }
    memcpy(record, buffer, bytes);
    return 0;
}

/* What an attach status means here; the daemon's sentence is quoted. */
static int check_status(struct inferd_session *s, uint32_t status, const char *message)
{
    static const int errors[] = {
        [IFD_ATTACH_OK] = 0,
        [IFD_ATTACH_ABI_MISMATCH] = -EPROTONOSUPPORT,
        [IFD_ATTACH_UNKNOWN_MODEL] = -ENODEV,
        [IFD_ATTACH_UNAVAILABLE] = -EHOSTDOWN,
        [IFD_ATTACH_QUOTA] = -EDQUOT,
        [IFD_ATTACH_SHUTTING_DOWN] = -ESHUTDOWN,
        [IFD_ATTACH_CLOCK_SKEW] = -ETIME,
        [IFD_ATTACH_FORBIDDEN] = -EACCES,
        [IFD_ATTACH_BAD_REQUEST] = -EBADMSG,
        [IFD_ATTACH_NO_RESOURCES] = -ENOSPC,
        [IFD_ATTACH_BAD_REGION] = -EBADFD,
    };
    if (status >= sizeof errors / sizeof errors[0]) {
        return ifd_failf(s, -EPROTO, "attach to %s: attach status %u, which this library does not know", s->model, status);
    }
    if (status == IFD_ATTACH_OK) {
        return 0;
    }
    int error = errors[status];
    if (status == IFD_ATTACH_CLOCK_SKEW && inferd_now_ns() - s->next.clock_ns > UINT64_C(1000000) * IFD_CLOCK_STALE_MS) {
        error = -ESTALE; /* the daemon came so late that it took the wait for a clock of another namespace */
    }
    bool said = message[0] != '\0' && memchr(message, 0, IFD_ATTACH_MESSAGE_BYTES) != NULL;
    return ifd_failf(s, error, "attach to model %s refused: %s", s->model, said ? message : "the daemon gave no reason");
}

/* ---- geometry ---- */

static const char *side_fault(uint64_t bytes, uint64_t base, uint64_t slots, uint64_t stride, uint64_t count)
{
    if (bytes == 0 || bytes > IFD_REGION_BYTES_MAX || bytes % IFD_PAGE != 0) {
        return "region size";
    }
    if (stride < IFD_SLOT_ALIGN || stride > IFD_SLOT_BYTES_MAX) {
        return "slot size";
    }
    if (base % IFD_SLOT_ALIGN != 0 || slots % IFD_SLOT_ALIGN != 0 || stride % IFD_SLOT_ALIGN != 0) {
        return "alignment";
    }
    if (base > bytes || slots > bytes || slots < base + IFD_WORDS_BYTES) {
        return "words and slots overlap";
    }
    return stride * count > bytes - slots ? "slots outside the region" : NULL;
}

const char *ifd_geometry_fault(const struct ifd_geometry *g)
{
    if (g->slots < 1 || g->slots > INFERD_SLOTS_MAX) {
        return "slots out of range";
    }
    if (g->queue != INFERD_IN_ORDER && g->queue != INFERD_LATEST) {
        return "unknown queue";
    }
    const char *fault = side_fault(g->request_bytes, g->request_base, g->request_slots, g->request_stride, g->slots);
    if (fault == NULL) {
        fault = side_fault(g->reply_bytes, g->reply_base, g->reply_slots, g->reply_stride, ifd_reply_count(g));
    }
    return fault == NULL && g->reply_base < IFD_HEADER_BYTES ? "words overlap the region's header" : fault;
}

/* ---- the machine ---- */

void ifd_link_close(struct ifd_link *link, bool in_child)
{
    if (link->socket >= 0) {
        if (!in_child) {
            (void)shutdown(link->socket, SHUT_RDWR); /* ends the session also where a forked child holds a copy */
        }
        (void)close(link->socket);
    }
    if (link->doorbell_socket >= 0) {
        (void)close(link->doorbell_socket);
    }
    if (!in_child) { /* a child has none of the mappings: unmapping would hit whatever lies there now */
        ifd_region_unmap(&link->request);
        ifd_region_unmap(&link->reply);
    }
    *link = (struct ifd_link){.phase = IFD_IDLE, .socket = -1, .doorbell_socket = -1};
}

static int give_up(struct inferd_session *s, int error)
{
    ifd_link_close(&s->next, false);
    return error;
}

int ifd_attach_begin(struct inferd_session *s)
{
    struct sockaddr_un address;
    int dir_fd = -1;
    s->next = (struct ifd_link){.phase = IFD_IDLE, .socket = -1, .doorbell_socket = -1};
    int error = address_of(s, &address, &dir_fd);
    if (error != 0) {
        return error;
    }
    s->next.socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->next.socket < 0) {
        error = ifd_failf(s, -ENOMEM, "attach: no socket: %s", strerror(errno));
    } else if (connect(s->next.socket, (const struct sockaddr *)&address, sizeof address) != 0) {
        switch (errno) {
        case EAGAIN:
        case EINTR: error = no_daemon(s, -EAGAIN, "it does not accept: stopped or overloaded"); break;
        case ENOENT: error = no_daemon(s, -ECONNREFUSED, "no attach.sock there"); break;
        case ECONNREFUSED: error = no_daemon(s, -ECONNREFUSED, "a stale socket: nobody listens"); break;
        case EACCES: error = no_daemon(s, -EACCES, "permission denied; join the socket's group"); break;
        default: error = no_daemon(s, -ECONNREFUSED, strerror(errno)); break;
        }
    }
    if (dir_fd >= 0) {
        (void)close(dir_fd);
    }
    if (error != 0) {
        return give_up(s, error);
    }
    IFD_FAILPOINT("client.connected");
    struct ifd_attach_record wish = {
        .head = head(IFD_ATTACH, sizeof wish),
        .slots = s->wish_slots,
        .queue = s->wish_queue,
        .pid = (uint32_t)getpid(),
        .clock_ns = s->next.clock_ns = inferd_now_ns(),
    };
    memcpy(wish.model, s->model, sizeof wish.model);
    error = send_record(s, &wish, sizeof wish);
    if (error != 0) {
        return give_up(s, error);
    }
    s->next.phase = IFD_ATTACHED_DUE;
    IFD_FAILPOINT("client.attach.sent");
    return 0;
}

/* Verifies, maps and populates both regions, and reads the signature. */
static int import(struct inferd_session *s, const struct ifd_attached_record *record, const int fds[2])
{
    struct ifd_link *link = &s->next;
    const char *fault = ifd_geometry_fault(&record->geometry);
    if (fault != NULL) {
        return ifd_failf(s, -EPROTO, "attach to %s: the session's geometry is impossible: %s", s->model, fault);
    }
    if (record->backing != IFD_BACKING_MEMFD && record->backing != IFD_BACKING_POSIX) {
        return ifd_failf(s, -EPROTO, "attach to %s: an unknown backing %u", s->model, record->backing);
    }
    link->geometry = record->geometry;
    link->backing = record->backing;
    link->generation = record->generation;
    link->session = record->session;
    link->spin_us = record->spin_us < IFD_SPIN_US_MAX ? record->spin_us : IFD_SPIN_US_MAX;
    memcpy(link->version, record->version, sizeof link->version);
    link->version[sizeof link->version - 1] = '\0';
    int error = ifd_region_map(s, fds[0], IFD_REQUEST_REGION, record->backing, record->geometry.request_bytes, &link->request);
    if (error == 0) {
        error = ifd_region_map(s, fds[1], IFD_REPLY_REGION, record->backing, record->geometry.reply_bytes, &link->reply);
    }
    return error != 0 ? error : ifd_signature_read(s, link);
}

static int on_attached(struct inferd_session *s)
{
    struct ifd_attached_record record;
    struct received got;
    int error = receive_record(s, IFD_ATTACHED, &record, sizeof record, &got);
    if (error != 0) {
        return error;
    }
    error = check_status(s, record.status, record.message);
    if (error == 0 && got.count != 3) {
        error = ifd_failf(s, -EPROTO, "attach to %s: %u descriptors with ATTACHED where 3 belong", s->model, got.count);
    }
    IFD_FAILPOINT("client.attached");
    if (error == 0) {
        error = import(s, &record, got.fds);
    }
    if (error == 0) {
        s->next.doorbell_socket = got.fds[2];
        got.fds[2] = -1;
    }
    close_all(&got); /* the mappings stay */
    if (error != 0) {
        return error;
    }
    IFD_FAILPOINT("client.mapped");
    struct ifd_mapped_record mapped = {.head = head(IFD_MAPPED, sizeof mapped)};
    s->next.phase = IFD_READY_DUE;
    error = send_record(s, &mapped, sizeof mapped);
    IFD_FAILPOINT("client.mapped.sent");
    return error;
}

int ifd_attach_advance(struct inferd_session *s)
{
    int error = 0;
    if (s->next.phase == IFD_ATTACHED_DUE) {
        error = on_attached(s);
    }
    if (error == 0 && s->next.phase == IFD_READY_DUE) {
        struct ifd_ready_record record;
        struct received got;
        error = receive_record(s, IFD_READY, &record, sizeof record, &got);
        if (error == 0) {
            close_all(&got);
            error = check_status(s, record.status, record.message);
        }
        if (error == 0) {
            IFD_FAILPOINT("client.ready");
            s->next.phase = IFD_SERVED;
        }
    }
    return error == 0 || error == -EINPROGRESS ? error : give_up(s, error);
}

/* One attach, with waiting; -ESTALE: the daemon answered too late to judge our clock. */
static int attach_once(struct inferd_session *s, uint64_t deadline_ns)
{
    int error = 0;
    while (s->next.phase == IFD_IDLE) {
        error = ifd_attach_begin(s);
        if (error == -EAGAIN && inferd_now_ns() < deadline_ns) {
            (void)poll(NULL, 0, IFD_CONNECT_PAUSE_MS); /* its backlog is full */
        } else if (error != 0) {
            return error == -EAGAIN ? -ECONNREFUSED : error;
        }
    }
    while ((error = ifd_attach_advance(s)) == -EINPROGRESS) {
        uint64_t now_ns = inferd_now_ns();
        if (now_ns >= deadline_ns) {
            return ifd_failf(s, -ETIMEDOUT, "attach to %s: the daemon did not answer in time; it may be stopped, or the timeout "
                             "too short", s->model);
        }
        uint64_t left_ms = (deadline_ns - now_ns) / UINT64_C(1000000) + 1;
        struct pollfd readable = {.fd = s->next.socket, .events = POLLIN};
        (void)poll(&readable, 1, left_ms > 1000 ? 1000 : (int)left_ms);
    }
    return error;
}

int ifd_attach_run(struct inferd_session *s, uint64_t deadline_ns)
{
    int error;
    do {
        error = attach_once(s, deadline_ns);
    } while (error == -ESTALE && inferd_now_ns() < deadline_ns);
    return error == -ESTALE ? ifd_failf(s, -ETIMEDOUT, "attach to %s: the daemon answers too late", s->model) : error;
}
