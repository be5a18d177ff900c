/*
 * call.c - inferd_infer(): a slot, the inputs, the answer and the outputs in one call.
 *
 * Built from the same parts as the calls that it replaces. It returns only its own request's outcome,
 * never an earlier reply, and holds nothing when it returns.
 */
#include "internal.h"

/* Everything about the arguments is checked before anything is published. */
static int check(struct inferd_session *s, const struct inferd_in *inputs, uint32_t inputs_count,
                 const struct inferd_out *outputs, uint32_t outputs_count)
{
    const struct inferd_signature *signature = &s->signature;
    if (inputs_count != signature->inputs_count || outputs_count != signature->outputs_count) {
        return ifd_failf(s, -EINVAL, "infer: %u inputs and %u outputs given, the model has %u and %u", inputs_count, outputs_count,
                         signature->inputs_count, signature->outputs_count);
    }
    if ((inputs == NULL && inputs_count != 0) || (outputs == NULL && outputs_count != 0)) {
        return ifd_fail(s, -EINVAL, "infer: inputs and outputs must not be NULL; an output's data may");
    }
    for (uint32_t i = 0; i < inputs_count; i++) {
        uint64_t bytes = signature->inputs[i].bytes;
        if (inputs[i].bytes != bytes || (inputs[i].data == NULL && bytes != 0)) {
            return ifd_failf(s, -EINVAL, "infer: input %u (%s) has %zu bytes given, the model takes %llu", i,
                             signature->inputs[i].name, inputs[i].bytes, (unsigned long long)bytes);
        }
    }
    for (uint32_t i = 0; i < outputs_count; i++) {
        uint64_t bytes = signature->outputs[i].bytes;
        if (outputs[i].data != NULL && outputs[i].bytes != bytes) {
            return ifd_failf(s, -EINVAL, "infer: output %u (%s) has room for %zu bytes, the model gives %llu", i,
                             signature->outputs[i].name, outputs[i].bytes, (unsigned long long)bytes);
        }
    }
    return 0;
}

/* A free slot, waiting within the limit where only a reply that is still to come can free one. */
static int take_slot(struct inferd_session *s, struct ifd_waiter *waiter)
{
    for (;;) {
        int error = ifd_take_slot(s, waiter->limit_ns);
        if (error != -EAGAIN || !ifd_any_pending(s)) {
            return error;
        }
        switch (ifd_await_reply(s, waiter)) {
        case 0: break;
        case -ETIMEDOUT: return error;
        default: return ifd_daemon_lost(s);
        }
    }
}

int inferd_infer(struct inferd_session *session, const struct inferd_in *inputs, uint32_t inputs_count,
                 const struct inferd_out *outputs, uint32_t outputs_count, const struct inferd_submit_options *options,
                 uint64_t timeout_ns, struct inferd_reply *reply)
{
    struct inferd_session *s = session;
    int error = s == NULL ? -EINVAL : ifd_owner_check(s);
    if (error == 0) {
        error = check(s, inputs, inputs_count, outputs, outputs_count);
    }
    if (error != 0) {
        return error;
    }
    ifd_disarm(s);
    struct ifd_waiter waiter = ifd_waiter(s, inferd_now_ns(), timeout_ns);
    error = take_slot(s, &waiter);
    if (error != 0) {
        return error;
    }
    for (uint32_t i = 0; i < inputs_count; i++) {
        (void)inferd_write(s, i, inputs[i].data, inputs[i].bytes);
    }
    struct inferd_ticket ticket;
    error = inferd_submit(s, options, &ticket);
    if (error != 0) {
        return error;
    }
    struct inferd_reply answer;
    waiter.spin_until_ns = ifd_later(inferd_now_ns(), UINT64_C(1000) * s->spin_us);
    int outcome = ifd_wait(s, ticket, &waiter, &answer);
    if (outcome < 0) {
        return outcome;
    }
    for (uint32_t i = 0; outcome == INFERD_OK && i < outputs_count; i++) {
        if (outputs[i].data != NULL) {
            (void)inferd_read(s, &answer, i, outputs[i].data, outputs[i].bytes);
        }
    }
    (void)inferd_release(s, &answer);
    if (reply != NULL) {
        *reply = answer;
    }
    return outcome;
}
