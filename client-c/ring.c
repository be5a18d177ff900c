/*
 * ring.c - the client's end of a session's rings: requests out, replies in, slots back.
 *
 * Publishing a request is one store of its slot's sequence number. Replies appear in order, are noted
 * in private memory once (ifd_absorb), and are matched with tickets there; the released count, which
 * is the worker's credit, advances over the contiguous released prefix only. in_order: reply r answers
 * request r. latest: replies answer growing request numbers, and what lies between was superseded.
 * The same algorithms and orderings as ipc/src/requester.rs and client-rs/src/tickets.rs.
 */
#include "failpoint.h"
#include "internal.h"

/* ---- what the worker says ---- */

/* Whether a request may be published. While the daemon drains it may: the answer is `shutting_down`. */
static int serving(struct inferd_session *s)
{
    s->state = atomic_load_explicit(ifd_rep_word(s, IFD_REP_STATE), memory_order_acquire);
    switch (s->state) {
    case INFERD_SERVING:
    case INFERD_DRAINING: return 0;
    case INFERD_RECOVERING:
    case INFERD_QUARANTINED:
        if (ifd_look_at_socket(s)) {
            return ifd_daemon_lost(s);
        }
        return ifd_fail(s, -EHOSTDOWN, s->state == INFERD_RECOVERING
                                           ? "the model is recovering: its worker died; use the fallback and try again"
                                           : "the model is quarantined: its workers keep dying; use the fallback "
                                             "(`inferctl models` says why)");
    default: s->lost = true; return ifd_daemon_lost(s);
    }
}

bool ifd_reply_ready(const struct inferd_session *s)
{
    const _Atomic uint64_t *seq = (const _Atomic uint64_t *)(const void *)ifd_reply_slot(s, s->next_reply);
    /* Acquire: pairs with the Release store of `seq` in Responder::publish. */
    return atomic_load_explicit(seq, memory_order_acquire) == s->next_reply + 1;
}

/* ---- bookkeeping, all in private memory ---- */

static struct ifd_record *record(struct inferd_session *s, uint64_t reply)
{
    return &s->records[reply % IFD_CLIENT_HISTORY];
}

static bool latest(const struct inferd_session *s)
{
    return s->link.geometry.queue == INFERD_LATEST;
}

/* The oldest request that no reply has answered or passed over. */
static uint64_t unanswered_from(const struct inferd_session *s)
{
    return s->next_reply == 0 ? 0 : s->records[(s->next_reply - 1) % IFD_CLIENT_HISTORY].header.request + 1;
}

bool ifd_any_pending(const struct inferd_session *s)
{
    return unanswered_from(s) < s->next_request;
}

static bool has_room(const struct inferd_session *s)
{
    return s->next_reply - s->released < s->link.geometry.slots;
}

static bool may_request(const struct inferd_session *s)
{
    return latest(s) || s->next_request - s->released < s->link.geometry.slots;
}

/* Gives a reply back; the worker learns of it once all replies before it are given back. */
static void release(struct inferd_session *s, uint64_t reply)
{
    uint64_t before = s->released;
    record(s, reply)->claim = IFD_RELEASED;
    while (s->released < s->next_reply && record(s, s->released)->claim == IFD_RELEASED) {
        s->released++;
    }
    if (s->released == before) {
        return;
    }
    /* Release: our reads of the slots happen before; pairs with the Acquire in Responder::credit. */
    atomic_store_explicit(ifd_req_word(s, IFD_REQ_RELEASED), s->released, memory_order_release);
    IFD_FAILPOINT("client.released");
    if (latest(s) && ifd_any_pending(s)) {
        ifd_ring_doorbell(s); /* the worker may sleep over a request that it had no room to answer */
    }
}

/* latest: releases unclaimed replies to requests older than `request`, whose outcome is known now. */
static void pass_over(struct inferd_session *s, uint64_t request)
{
    if (!latest(s)) {
        return;
    }
    for (uint64_t r = s->released; r < s->next_reply; r++) {
        if (record(s, r)->claim == IFD_UNCLAIMED && record(s, r)->header.request < request) {
            release(s, r);
        }
    }
}

/* latest, while `request` is pending: an unclaimed older reply must not keep the worker from running it. */
static void make_room_for(struct inferd_session *s, uint64_t request)
{
    if (!latest(s) || has_room(s)) {
        return;
    }
    for (uint64_t r = s->released; r < s->next_reply; r++) {
        if (record(s, r)->claim == IFD_UNCLAIMED && record(s, r)->header.request < request) {
            release(s, r);
            return;
        }
    }
}

static bool given_up(const struct inferd_session *s, uint64_t request)
{
    return latest(s) ? request < s->given_up : s->abandoned[request % s->link.geometry.slots];
}

/* Checks one reply header against what was published, and notes it. NULL, or how the peer lied. */
static const char *arrive(struct inferd_session *s, const struct ifd_reply_header *header)
{
    uint64_t reply = s->next_reply, request = header->request;
    if (request >= s->next_request || request < unanswered_from(s)) {
        return "a reply to a request that is not in flight";
    }
    if (!latest(s) && request != reply) {
        return "a reply out of order";
    }
    if (header->status < INFERD_OK || header->status > INFERD_UNAVAILABLE) {
        return "a reply with an unknown status";
    }
    *record(s, reply) = (struct ifd_record){.header = *header, .claim = IFD_UNCLAIMED};
    s->next_reply++;
    s->generation = header->generation;
    s->fruitless_ns = 0;
    if (given_up(s, request)) {
        release(s, reply);
    }
    return NULL;
}

int ifd_absorb(struct inferd_session *s)
{
    while (ifd_reply_ready(s)) {
        struct ifd_reply_header header;
        if (!has_room(s)) {
            return ifd_peer_fault(s, "a reply in a slot that was not released");
        }
        memcpy(&header, ifd_reply_slot(s, s->next_reply), sizeof header);
        IFD_FAILPOINT("client.polled");
        const char *fault = arrive(s, &header);
        if (fault != NULL) {
            return ifd_peer_fault(s, fault);
        }
    }
    return 0;
}

/* ---- outcomes ---- */

/* The oldest remembered reply whose request is `request` or newer. False if that may be one that is forgotten. */
static bool answering(struct inferd_session *s, uint64_t request, uint64_t *reply)
{
    /* Nearly always the newest reply: no search. */
    if (s->next_reply != 0 && record(s, s->next_reply - 1)->header.request == request) {
        *reply = s->next_reply - 1;
        return true;
    }
    uint64_t low = s->next_reply > IFD_CLIENT_HISTORY ? s->next_reply - IFD_CLIENT_HISTORY : 0, high = s->next_reply;
    uint64_t oldest = low;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (record(s, middle)->header.request < request) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    *reply = low;
    bool here = low < s->next_reply;
    return here && (low > oldest || oldest == 0 || record(s, low)->header.request == request);
}

int ifd_lost_outcome(struct inferd_ticket ticket, struct inferd_reply *reply)
{
    *reply = (struct inferd_reply){.ticket = ticket, .status = INFERD_DAEMON_LOST, .request = ticket.number};
    return INFERD_DAEMON_LOST;
}

static uint64_t submit_time(const struct inferd_session *s, uint64_t request)
{
    return s->next_request - request > IFD_CLIENT_HISTORY ? 0 : s->t_submit_ns[request % IFD_CLIENT_HISTORY];
}

/* Hands a reply to the caller. Only outputs that are valid are worth holding a slot for. */
static int claim(struct inferd_session *s, struct inferd_ticket ticket, uint64_t number, struct inferd_reply *reply)
{
    const struct ifd_reply_header *header = &record(s, number)->header;
    bool ok = header->status == INFERD_OK;
    *reply = (struct inferd_reply){
        .ticket = ticket,
        .status = header->status,
        .flags = header->flags,
        .request = header->request,
        .observation_id = header->observation_id,
        .t_submit_ns = submit_time(s, header->request),
        .t_start_ns = header->t_start_ns,
        .t_done_ns = header->t_done_ns,
        .step = header->step,
        .generation = header->generation,
        .skipped = header->skipped,
        .held = ok ? number + 1 : 0,
    };
    if (ok) {
        record(s, number)->claim = IFD_HELD;
        s->held++;
    } else {
        release(s, number);
    }
    pass_over(s, reply->request);
    return (int)reply->status;
}

int ifd_outcome(struct inferd_session *s, struct inferd_ticket ticket, struct inferd_reply *reply)
{
    static const char spent[] = "this ticket's outcome was taken, given up, or lies too far back; wait for each ticket once";
    uint64_t number = ticket.number, r = 0;
    if (ticket.epoch == 0 || ticket.epoch > s->epoch || (ticket.epoch == s->epoch && number >= s->next_request)) {
        return ifd_fail(s, -EINVAL, "this ticket was never submitted in this session");
    }
    if (ticket.epoch < s->epoch) {
        return ifd_lost_outcome(ticket, reply);
    }
    if (number >= unanswered_from(s)) {
        if (given_up(s, number)) {
            return ifd_fail(s, -ESTALE, spent);
        }
        make_room_for(s, number);
        return -EINPROGRESS;
    }
    if (!answering(s, number, &r)) {
        return ifd_fail(s, -ESTALE, spent);
    }
    if (record(s, r)->header.request == number) {
        return record(s, r)->claim == IFD_UNCLAIMED ? claim(s, ticket, r, reply) : ifd_fail(s, -ESTALE, spent);
    }
    pass_over(s, number);
    *reply = (struct inferd_reply){.ticket = ticket, .status = INFERD_SUPERSEDED, .request = record(s, r)->header.request};
    return INFERD_SUPERSEDED;
}

/* ---- requests ---- */

int ifd_take_slot(struct inferd_session *s, uint64_t until_ns)
{
    int error = s->lost ? ifd_reattach_if_wanted(s, until_ns) : 0;
    if (error == 0) {
        error = ifd_absorb(s); /* abandoned replies are released as they arrive */
    }
    if (error == 0) {
        error = serving(s);
    }
    if (error != 0 || s->taken) {
        return error;
    }
    if (!may_request(s)) {
        if (ifd_look_at_socket(s)) {
            return ifd_daemon_lost(s);
        }
        return ifd_fail(s, -EAGAIN, "all slots are in flight or held; wait for a ticket, release a reply, or abandon one");
    }
    if (latest(s)) {
        _Atomic uint64_t *seq = (_Atomic uint64_t *)(void *)ifd_request_slot(s, s->next_request);
        atomic_store_explicit(seq, 0, memory_order_relaxed);
        /* Release fence: whoever sees any byte of the new tensors sees the withdrawal when it looks at `seq` again
         * (pairs with the Acquire fence in Responder::confirm). */
        atomic_thread_fence(memory_order_release);
    }
    IFD_FAILPOINT("client.begun");
    s->taken = true;
    return 0;
}

int inferd_request(struct inferd_session *session)
{
    int error = session == NULL ? -EINVAL : ifd_owner_check(session);
    return error != 0 ? error : ifd_take_slot(session, 0);
}

void *inferd_input(struct inferd_session *session, uint32_t input)
{
    if (session == NULL || ifd_owner_check(session) != 0 || !session->taken || input >= session->signature.inputs_count) {
        return NULL;
    }
    return ifd_request_slot(session, session->next_request) + session->input_at[input];
}

int inferd_write(struct inferd_session *session, uint32_t input, const void *data, size_t bytes)
{
    int error = session == NULL ? -EINVAL : ifd_owner_check(session);
    if (error != 0) {
        return error;
    }
    void *place = inferd_input(session, input);
    if (place == NULL) {
        return ifd_fail(session, -EINVAL, "write: no slot is taken (call inferd_request() first), or there is no such input");
    }
    if (bytes != session->signature.inputs[input].bytes || (data == NULL && bytes != 0)) {
        return ifd_fail(session, -EINVAL, "write: the input has another length; see inferd_signature()");
    }
    if (bytes != 0) {
        memcpy(place, data, bytes);
    }
    return 0;
}

int inferd_reset(struct inferd_session *session)
{
    int error = session == NULL ? -EINVAL : ifd_owner_check(session);
    if (error == 0) {
        session->reset_next = true;
    }
    return error;
}

/* Copies what exists in the caller's version of the struct over the defaults. */
static bool read_submit_options(const struct inferd_submit_options *given, struct inferd_submit_options *options)
{
    *options = inferd_submit_defaults();
    if (given == NULL) {
        return true;
    }
    if (given->size < 2 * sizeof(uint32_t)) {
        return false;
    }
    size_t size = given->size < sizeof *options ? given->size : sizeof *options;
    memcpy(options, given, size);
    return (options->flags & ~INFERD_RESET) == 0;
}

static void publish(struct inferd_session *s, const struct inferd_submit_options *options)
{
    uint64_t seq = s->next_request + 1;
    bool reset = s->reset_next || (options->flags & INFERD_RESET) != 0;
    if (reset) {
        s->reset_seq = seq;
    }
    uint64_t now_ns = inferd_now_ns();
    struct ifd_request_header header = {
        .observation_id = options->observation_id,
        .t_submit_ns = now_ns,
        .deadline_ns = options->deadline_ns,
        .flags = reset ? INFERD_RESET : 0,
        .executed = options->executed,
        .reset_seq = s->reset_seq,
    };
    unsigned char *slot = ifd_request_slot(s, s->next_request);
    memcpy(slot + sizeof seq, (const unsigned char *)&header + sizeof seq, sizeof header - sizeof seq);
    s->t_submit_ns[s->next_request % IFD_CLIENT_HISTORY] = now_ns;
    if (!latest(s)) {
        s->abandoned[s->next_request % s->link.geometry.slots] = false;
    }
    ifd_streaming_store_fence();
    IFD_FAILPOINT("client.header");
    /* Release: pairs with the Acquire load of `seq` in Responder::take. */
    atomic_store_explicit((_Atomic uint64_t *)(void *)slot, seq, memory_order_release);
    IFD_FAILPOINT("client.published");
    atomic_store_explicit(ifd_req_word(s, IFD_REQ_PUBLISHED), seq, memory_order_release);
    IFD_FAILPOINT("client.hinted");
    s->taken = false;
    s->reset_next = false;
    s->next_request = seq;
    s->fruitless_ns = 0;
    ifd_ring_doorbell(s);
}

int inferd_submit(struct inferd_session *session, const struct inferd_submit_options *options, struct inferd_ticket *ticket)
{
    struct inferd_session *s = session;
    int error = s == NULL ? -EINVAL : ifd_owner_check(s);
    if (error != 0) {
        return error;
    }
    struct inferd_submit_options labels;
    if (!s->taken) {
        return ifd_fail(s, -EINVAL, "submit: no slot is taken; call inferd_request() first");
    }
    if (!read_submit_options(options, &labels)) {
        return ifd_fail(s, -EINVAL, "submit: options have no size or an unknown flag; begin with inferd_submit_defaults()");
    }
    error = s->lost ? ifd_daemon_lost(s) : serving(s);
    if (error != 0) {
        return error;
    }
    struct inferd_ticket named = {.epoch = s->epoch, .number = s->next_request};
    publish(s, &labels);
    if (ticket != NULL) {
        *ticket = named;
    } else if (!latest(s)) {
        s->abandoned[named.number % s->link.geometry.slots] = true;
    }
    return 0;
}

/* ---- replies ---- */

/* Whether the caller holds this reply's slot in the session as it stands. */
static bool holds(const struct inferd_session *s, const struct inferd_reply *reply)
{
    uint64_t number = reply->held - 1;
    return reply->held != 0 && reply->ticket.epoch == s->epoch && s->link.reply.base != NULL && number >= s->released &&
           number < s->next_reply && s->records[number % IFD_CLIENT_HISTORY].claim == IFD_HELD;
}

const void *inferd_output(const struct inferd_session *session, const struct inferd_reply *reply, uint32_t output)
{
    if (session == NULL || reply == NULL || ifd_owner_check(session) != 0 || !holds(session, reply) ||
        output >= session->signature.outputs_count) {
        return NULL;
    }
    return ifd_reply_slot(session, reply->held - 1) + session->output_at[output];
}

int inferd_read(struct inferd_session *session, const struct inferd_reply *reply, uint32_t output, void *data, size_t bytes)
{
    int error = session == NULL ? -EINVAL : ifd_owner_check(session);
    if (error != 0) {
        return error;
    }
    const void *place = inferd_output(session, reply, output);
    if (place == NULL) {
        return ifd_fail(session, -EINVAL, "read: the reply is not held (its status is not ok, or it was released), or there "
                                          "is no such output");
    }
    if (bytes != session->signature.outputs[output].bytes || (data == NULL && bytes != 0)) {
        return ifd_fail(session, -EINVAL, "read: the output has another length; see inferd_signature()");
    }
    if (bytes != 0) {
        memcpy(data, place, bytes);
    }
    return 0;
}

int inferd_release(struct inferd_session *session, struct inferd_reply *reply)
{
    struct inferd_session *s = session;
    int error = s == NULL || reply == NULL ? -EINVAL : ifd_owner_check(s);
    if (error != 0) {
        return error;
    }
    if (reply->held == 0 || reply->ticket.epoch != s->epoch) {
        reply->held = 0;
        return 0;
    }
    if (!holds(s, reply)) {
        return ifd_fail(s, -EINVAL, "release: this reply was released before");
    }
    s->held--;
    release(s, reply->held - 1);
    reply->held = 0;
    return 0;
}

int inferd_abandon(struct inferd_session *session, struct inferd_ticket ticket)
{
    struct inferd_session *s = session;
    int error = s == NULL ? -EINVAL : ifd_owner_check(s);
    if (error != 0) {
        return error;
    }
    if (ticket.epoch == 0 || ticket.epoch > s->epoch || (ticket.epoch == s->epoch && ticket.number >= s->next_request)) {
        return ifd_fail(s, -EINVAL, "abandon: this ticket was never submitted in this session");
    }
    if (ticket.epoch < s->epoch || s->link.reply.base == NULL) {
        return 0;
    }
    uint64_t reply = 0;
    if (latest(s)) {
        if (s->given_up <= ticket.number) {
            s->given_up = ticket.number + 1;
            pass_over(s, s->given_up);
        }
    } else if (ticket.number >= s->next_reply) {
        s->abandoned[ticket.number % s->link.geometry.slots] = true;
    } else if (answering(s, ticket.number, &reply) && record(s, reply)->claim == IFD_UNCLAIMED) {
        release(s, reply);
    } else {
        return ifd_fail(s, -ESTALE, "abandon: this ticket's outcome was taken or given up before");
    }
    return 0;
}
