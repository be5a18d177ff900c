/*
 * test_ring.c - requests and replies: both queues, credit, tickets, deadlines' labels, states, hang-up and fork.
 *
 * Each test is a sentence. The worker's end is called by hand, in this thread, so that every
 * interleaving below is the one that is written down.
 */
#include "fake.h"

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS UINT64_C(1000000)

static struct inferd_ticket submit(struct inferd_session *s, float value, uint64_t id)
{
    struct inferd_submit_options options = inferd_submit_defaults();
    struct inferd_ticket ticket;
    float obs[OBS_ELEMENTS];
    for (unsigned k = 0; k < OBS_ELEMENTS; k++) {
        obs[k] = value;
    }
    options.observation_id = id;
    CHECK_EQ(inferd_request(s), 0);
    CHECK_EQ(inferd_write(s, 0, obs, sizeof obs), 0);
    CHECK_EQ(inferd_submit(s, &options, &ticket), 0);
    return ticket;
}

static void a_request_is_written_and_its_reply_read_in_place(void)
{
    struct fake f;
    struct inferd_reply reply;
    struct inferd_ticket ticket;
    fake_start(&f, 4, INFERD_IN_ORDER, 1000);
    struct inferd_session *s = fake_attach(&f, NULL);
    CHECK(inferd_input(s, 0) == NULL);
    CHECK_EQ(inferd_submit(s, NULL, NULL), -EINVAL);
    CHECK_EQ(inferd_request(s), 0);
    float *obs = inferd_input(s, 0);
    CHECK(obs != NULL && (uintptr_t)obs % 64 == 0);
    CHECK_EQ(inferd_request(s), 0);
    CHECK(inferd_input(s, 0) == (void *)obs && inferd_input(s, 1) == NULL);
    obs[0] = 3;
    obs[OBS_ELEMENTS - 1] = 4;
    CHECK_EQ(fake_request_seq(&f, 0), 0);
    struct inferd_submit_options options = inferd_submit_defaults();
    options.observation_id = 77;
    options.deadline_ns = 123;
    options.executed = 5;
    uint64_t before_ns = inferd_now_ns();
    CHECK_EQ(inferd_submit(s, &options, &ticket), 0);
    CHECK_EQ(ticket.number, 0);
    CHECK_EQ(inferd_try(s, ticket, &reply), -EINPROGRESS);
    struct ifd_request_header header = fake_request(&f, 0);
    CHECK(header.seq == 1 && header.observation_id == 77 && header.deadline_ns == 123 && header.executed == 5);
    CHECK(header.flags == 0 && header.reset_seq == 0 && header.reserved[0] == 0 && header.reserved[1] == 0);
    CHECK(header.t_submit_ns >= before_ns && header.t_submit_ns <= inferd_now_ns() && fake_published(&f) == 1);
    CHECK(fake_input(&f, 0)[0] > 2.5f && fake_input(&f, 0)[OBS_ELEMENTS - 1] > 3.5f);

    fake_answer(&f, 0, INFERD_OK, INFERD_LATE | INFERD_STATE_RESET, 0, 9);
    CHECK_EQ(inferd_wait(s, ticket, INFERD_FOREVER, &reply), INFERD_OK);
    CHECK(reply.request == 0 && reply.observation_id == 77 && reply.generation == 7 && reply.step == 1);
    CHECK(reply.flags == (INFERD_LATE | INFERD_STATE_RESET) && reply.t_submit_ns == header.t_submit_ns);
    const float *action = inferd_output(s, &reply, 0);
    CHECK(action != NULL && (uintptr_t)action % 64 == 0 && action[11] > 8.5f);
    CHECK(inferd_output(s, &reply, 2) == NULL);
    unsigned char flags[3];
    CHECK_EQ(inferd_read(s, &reply, 1, flags, 3), 0);
    CHECK_EQ(flags[2], 9);
    CHECK_EQ(inferd_read(s, &reply, 1, flags, 2), -EINVAL);
    CHECK_EQ(fake_released(&f), 0);
    struct inferd_reply copy = reply;
    CHECK_EQ(inferd_release(s, &reply), 0);
    CHECK_EQ(fake_released(&f), 1);
    CHECK(inferd_output(s, &reply, 0) == NULL && inferd_output(s, &copy, 0) == NULL);
    CHECK_EQ(inferd_release(s, &reply), 0);
    CHECK_EQ(inferd_release(s, &copy), -EINVAL);
    CHECK_EQ(inferd_wait(s, ticket, 0, &reply), -ESTALE);
    inferd_detach(s);
    fake_stop(&f);
}

static void in_order_refuses_when_all_slots_are_in_flight_and_credit_is_a_contiguous_prefix(void)
{
    struct fake f;
    struct inferd_reply replies[3], reply;
    struct inferd_ticket t[3];
    fake_start(&f, 3, INFERD_IN_ORDER, 1000);
    struct inferd_session *s = fake_attach(&f, NULL);
    for (unsigned i = 0; i < 3; i++) {
        t[i] = submit(s, (float)i, i);
    }
    CHECK_EQ(inferd_request(s), -EAGAIN);
    CHECK(strstr(inferd_error(s), "in flight") != NULL);
    for (unsigned i = 0; i < 3; i++) {
        fake_answer(&f, i, i == 1 ? INFERD_EXPIRED : INFERD_OK, 0, 0, (float)i);
    }
    CHECK_EQ(inferd_wait(s, t[2], 0, &replies[2]), INFERD_OK);
    CHECK_EQ(inferd_wait(s, t[1], 0, &replies[1]), INFERD_EXPIRED);
    CHECK(inferd_output(s, &replies[1], 0) == NULL && replies[1].held == 0);
    CHECK_EQ(inferd_wait(s, t[0], 0, &replies[0]), INFERD_OK);
    CHECK_EQ(inferd_release(s, &replies[2]), 0);
    CHECK_EQ(fake_released(&f), 0);
    CHECK_EQ(inferd_request(s), -EAGAIN);
    CHECK_EQ(inferd_release(s, &replies[0]), 0);
    CHECK_EQ(fake_released(&f), 3);
    struct inferd_ticket next = submit(s, 0, 3);
    CHECK_EQ(next.number, 3);
    CHECK_EQ(inferd_try(s, t[1], &reply), -ESTALE);
    inferd_detach(s);
    fake_stop(&f);
}

static void latest_overwrites_the_oldest_slot_after_withdrawing_it(void)
{
    struct fake f;
    struct inferd_reply reply;
    struct inferd_ticket t[5];
    fake_start(&f, 2, INFERD_LATEST, 1000);
    struct inferd_session *s = fake_attach(&f, NULL);
    for (unsigned i = 0; i < 4; i++) {
        t[i] = submit(s, (float)i, 100 + i);
    }
    CHECK(fake_request_seq(&f, 2) == 3 && fake_request_seq(&f, 3) == 4 && fake_published(&f) == 4);
    CHECK_EQ(inferd_request(s), 0);
    CHECK_EQ(fake_request_seq(&f, 4), 0); /* withdrawn while it is written */
    CHECK_EQ(fake_request_seq(&f, 3), 4);
    t[4] = submit(s, 4, 104);
    CHECK_EQ(fake_request_seq(&f, 4), 5);
    fake_answer(&f, 4, INFERD_OK, 0, 4, 4);
    CHECK_EQ(inferd_wait(s, t[1], 0, &reply), INFERD_SUPERSEDED);
    CHECK(reply.request == 4 && reply.held == 0 && reply.ticket.number == 1);
    CHECK_EQ(inferd_wait(s, t[4], 0, &reply), INFERD_OK);
    CHECK(reply.skipped == 4 && reply.observation_id == 104);
    CHECK_EQ(inferd_try(s, t[0], &reply), INFERD_SUPERSEDED);
    CHECK_EQ(inferd_try(s, t[4], &reply), -ESTALE);
    inferd_detach(s);
    fake_stop(&f);
}

static void latest_releases_older_unclaimed_replies_and_never_starves_the_newest(void)
{
    struct fake f;
    struct inferd_reply held, reply;
    fake_start(&f, 2, INFERD_LATEST, 1000);
    struct inferd_session *s = fake_attach(&f, NULL);
    struct inferd_ticket a = submit(s, 0, 0);
    fake_answer(&f, 0, INFERD_OK, 0, 0, 0);
    struct inferd_ticket b = submit(s, 1, 1);
    fake_answer(&f, 1, INFERD_OK, 0, 0, 1);
    struct inferd_ticket c = submit(s, 2, 2);
    /* Two unclaimed replies fill both slots: the worker may not answer c until c is asked for. */
    CHECK_EQ(fake_released(&f), 0);
    fake_set_sleeping(&f, IFD_ASLEEP_FUTEX);
    uint64_t bell = fake_doorbell(&f);
    CHECK_EQ(inferd_try(s, c, &reply), -EINPROGRESS);
    CHECK_EQ(fake_released(&f), 1);
    CHECK_EQ(fake_doorbell(&f), bell + 1); /* it slept over c: the slot that came free is rung for */
    fake_set_sleeping(&f, IFD_AWAKE);
    fake_answer(&f, 2, INFERD_OK, 0, 0, 2);
    CHECK_EQ(inferd_try(s, c, &held), INFERD_OK);
    CHECK_EQ(fake_released(&f), 2);
    CHECK_EQ(inferd_try(s, a, &reply), -ESTALE);
    CHECK_EQ(inferd_try(s, b, &reply), -ESTALE);
    CHECK_EQ(inferd_release(s, &held), 0);
    CHECK_EQ(fake_released(&f), 3);
    inferd_detach(s);
    fake_stop(&f);
}

static void a_worker_asleep_for_lack_of_credit_is_rung_though_its_last_reply_was_not_seen_yet(void)
{
    struct fake f;
    struct inferd_reply held;
    fake_start(&f, 2, INFERD_LATEST, 1000);
    struct inferd_session *s = fake_attach(&f, NULL);
    struct inferd_ticket a = submit(s, 0, 0);
    fake_answer(&f, 0, INFERD_OK, 0, 0, 0);
    CHECK_EQ(inferd_try(s, a, &held), INFERD_OK);
    (void)submit(s, 1, 1);
    fake_answer(&f, 1, INFERD_OK, 0, 0, 1); /* both slots are full, and only the worker knows */
    fake_set_sleeping(&f, IFD_ASLEEP_SOCKET);
    while (fake_socket_rang(&f)) {
    }
    CHECK_EQ(inferd_release(s, &held), 0);
    CHECK(fake_socket_rang(&f));
    inferd_detach(s);
    fake_stop(&f);
}

static void an_abandoned_reply_is_released_when_it_arrives(void)
{
    struct fake f;
    struct inferd_reply reply;
    fake_start(&f, 1, INFERD_IN_ORDER, 0);
    struct inferd_session *s = fake_attach(&f, NULL);
    struct inferd_ticket a = submit(s, 0, 0);
    uint64_t before_ns = inferd_now_ns();
    CHECK_EQ(inferd_wait(s, a, 15 * MS, &reply), -ETIMEDOUT);
    CHECK(inferd_now_ns() - before_ns >= 15 * MS);
    CHECK_EQ(fake_client_sleeps(&f), IFD_AWAKE);
    CHECK_EQ(inferd_request(s), -EAGAIN);
    CHECK_EQ(inferd_wait(s, a, 0, &reply), -ESTALE);
    fake_answer(&f, 0, INFERD_OK, 0, 0, 0);
    struct inferd_ticket b = submit(s, 1, 1); /* this looked at the replies */
    CHECK_EQ(fake_released(&f), 1);
    CHECK_EQ(inferd_abandon(s, b), 0);
    fake_answer(&f, 1, INFERD_OK, 0, 0, 1);
    CHECK_EQ(inferd_request(s), 0);
    CHECK_EQ(fake_released(&f), 2);
    CHECK_EQ(inferd_submit(s, NULL, NULL), 0); /* without a ticket: abandoned from the start */
    fake_answer(&f, 2, INFERD_OK, 0, 0, 2);
    CHECK_EQ(inferd_request(s), 0);
    CHECK_EQ(fake_released(&f), 3);
    CHECK_EQ(inferd_abandon(s, b), -ESTALE);
    inferd_detach(s);
    fake_stop(&f);
}

static void tickets_that_were_never_given_are_refused(void)
{
    struct fake f;
    struct inferd_reply reply;
    fake_start(&f, 2, INFERD_LATEST, 0);
    struct inferd_session *s = fake_attach(&f, NULL);
    struct inferd_ticket none = {0, 0}, future = submit(s, 0, 0);
    future.number++;
    CHECK_EQ(inferd_wait(s, none, 0, &reply), -EINVAL);
    CHECK_EQ(inferd_wait(s, future, 0, &reply), -EINVAL);
    CHECK_EQ(inferd_abandon(s, future), -EINVAL);
    future.epoch++;
    CHECK_EQ(inferd_try(s, future, &reply), -EINVAL);
    CHECK_EQ(inferd_try(NULL, future, &reply), -EINVAL);
    CHECK_EQ(inferd_try(s, future, NULL), -EINVAL);
    inferd_detach(s);
    fake_stop(&f);
}

static void a_reset_is_named_by_every_later_request(void)
{
    struct fake f;
    fake_start(&f, 4, INFERD_LATEST, 0);
    struct inferd_session *s = fake_attach(&f, NULL);
    (void)submit(s, 0, 0);
    struct inferd_submit_options options = inferd_submit_defaults();
    options.flags = INFERD_RESET;
    CHECK_EQ(inferd_request(s), 0);
    CHECK_EQ(inferd_submit(s, &options, NULL), 0);
    CHECK(fake_request(&f, 1).flags == INFERD_RESET && fake_request(&f, 1).reset_seq == 2);
    (void)submit(s, 0, 0);
    CHECK(fake_request(&f, 2).flags == 0 && fake_request(&f, 2).reset_seq == 2);
    CHECK_EQ(inferd_reset(s), 0);
    (void)submit(s, 0, 0);
    CHECK(fake_request(&f, 3).flags == INFERD_RESET && fake_request(&f, 3).reset_seq == 4);
    (void)submit(s, 0, 0);
    CHECK(fake_request(&f, 4).flags == 0 && fake_request(&f, 4).reset_seq == 4);
    CHECK_EQ(inferd_request(s), 0);
    options.flags = 2;
    CHECK_EQ(inferd_submit(s, &options, NULL), -EINVAL);
    inferd_detach(s);
    fake_stop(&f);
}

static void while_no_worker_serves_nothing_is_published(void)
{
    struct fake f;
    struct inferd_ticket ticket;
    fake_start(&f, 4, INFERD_IN_ORDER, 0);
    struct inferd_attach_options options = inferd_attach_defaults();
    options.flags = INFERD_NO_REATTACH;
    struct inferd_session *s = fake_attach(&f, &options);
    CHECK_EQ(inferd_request(s), 0);
    fake_set_state(&f, INFERD_RECOVERING);
    CHECK_EQ(inferd_submit(s, NULL, &ticket), -EHOSTDOWN);
    CHECK_EQ(inferd_request(s), -EHOSTDOWN);
    fake_set_state(&f, INFERD_QUARANTINED);
    CHECK_EQ(inferd_request(s), -EHOSTDOWN);
    CHECK(strstr(inferd_error(s), "quarantined") != NULL && fake_published(&f) == 0);
    fake_set_state(&f, INFERD_DRAINING);
    CHECK_EQ(inferd_submit(s, NULL, &ticket), 0); /* the daemon answers `shutting_down` */
    struct inferd_info info = {.size = sizeof info};
    CHECK(inferd_info(s, &info) == 0 && info.state == INFERD_DRAINING && info.in_flight == 1);
    CHECK(info.session == 42 && info.generation == 7 && info.slots == 4 && info.queue == INFERD_IN_ORDER && info.epoch == 1);
    fake_set_state(&f, 99);
    CHECK_EQ(inferd_request(s), -ECONNRESET);
    inferd_detach(s);
    fake_stop(&f);
}

static void a_reply_that_contradicts_what_was_published_ends_the_session(void)
{
    static const struct {
        uint32_t queue;
        struct ifd_reply_header lie;
    } cases[] = {
        {INFERD_IN_ORDER, {.request = 1, .status = INFERD_OK}},
        {INFERD_IN_ORDER, {.request = 0, .status = 9}},
        {INFERD_IN_ORDER, {.request = 0, .status = 0}},
        {INFERD_LATEST, {.request = 2, .status = INFERD_OK}},
        {INFERD_LATEST, {.request = UINT64_MAX, .status = INFERD_OK}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fake f;
        struct inferd_reply reply;
        fake_start(&f, 4, cases[i].queue, 0);
        struct inferd_session *s = fake_attach(&f, NULL);
        struct inferd_ticket a = submit(s, 0, 0);
        (void)submit(s, 0, 0);
        fake_publish(&f, cases[i].lie, 0);
        CHECK_EQ(inferd_wait(s, a, INFERD_FOREVER, &reply), -EPROTO);
        CHECK(strstr(inferd_error(s), "broke the protocol") != NULL);
        inferd_detach(s);
        fake_stop(&f);
    }
}

static void a_reply_beyond_what_was_released_ends_the_session_and_not_the_callers_time(void)
{
    struct fake f;
    struct inferd_reply held[2], reply;
    fake_start(&f, 2, INFERD_LATEST, 1000);
    struct inferd_session *s = fake_attach(&f, NULL);
    for (unsigned n = 0; n < 2; n++) {
        struct inferd_ticket ticket = submit(s, (float)n, n);
        fake_answer(&f, n, INFERD_OK, 0, 0, (float)n);
        CHECK_EQ(inferd_wait(s, ticket, INFERD_FOREVER, &held[n]), INFERD_OK);
    }
    struct inferd_ticket newest = submit(s, 2, 2);
    CHECK_EQ(inferd_wait(s, newest, 2 * MS, &reply), -ETIMEDOUT); /* there is no room for its answer */
    newest = submit(s, 3, 3);
    fake_answer(&f, 3, INFERD_OK, 0, 0, 3);
    CHECK_EQ(inferd_wait(s, newest, 2 * MS, &reply), -EPROTO);
    CHECK(strstr(inferd_error(s), "not released") != NULL);
    inferd_detach(s);
    fake_stop(&f);
}

static void after_a_hang_up_the_slot_is_looked_at_once_more(void)
{
    for (uint32_t spin_us = 0; spin_us <= 5000; spin_us += 5000) {
        struct fake f;
        struct inferd_reply reply;
        fake_start(&f, 4, INFERD_IN_ORDER, spin_us);
        struct inferd_attach_options options = inferd_attach_defaults();
        options.flags = INFERD_NO_REATTACH;
        struct inferd_session *s = fake_attach(&f, &options);
        struct inferd_ticket a = submit(s, 0, 0), b = submit(s, 1, 1);
        fake_answer(&f, 0, INFERD_OK, 0, 0, 5);
        fake_hang_up(&f);
        CHECK_EQ(inferd_wait(s, b, INFERD_FOREVER, &reply), INFERD_DAEMON_LOST);
        CHECK_EQ(inferd_wait(s, a, INFERD_FOREVER, &reply), INFERD_OK);
        CHECK_EQ(inferd_release(s, &reply), 0);
        CHECK_EQ(inferd_try(s, b, &reply), INFERD_DAEMON_LOST);
        CHECK_EQ(inferd_request(s), -ECONNRESET);
        CHECK_EQ(inferd_poll_arm(s), 1);
        inferd_detach(s);
        fake_stop(&f);
    }
}

static void a_try_loop_notices_the_hang_up_within_milliseconds(void)
{
    struct fake f;
    struct inferd_reply reply;
    int outcome;
    fake_start(&f, 4, INFERD_LATEST, 0);
    struct inferd_session *s = fake_attach(&f, NULL);
    struct inferd_ticket a = submit(s, 0, 0);
    CHECK_EQ(inferd_try(s, a, &reply), -EINPROGRESS);
    fake_hang_up(&f);
    uint64_t before_ns = inferd_now_ns();
    while ((outcome = inferd_try(s, a, &reply)) == -EINPROGRESS) {
        CHECK(inferd_now_ns() - before_ns < 1000 * MS);
    }
    CHECK_EQ(outcome, INFERD_DAEMON_LOST);
    inferd_detach(s);
    fake_stop(&f);
}

static void one_call_returns_its_own_reply_only(void)
{
    struct fake f;
    struct fake_worker w;
    struct inferd_reply reply;
    float obs[OBS_ELEMENTS] = {41}, action[ACTION_ELEMENTS] = {0};
    struct inferd_in in = {obs, sizeof obs};
    struct inferd_out out[2] = {{action, sizeof action}, {NULL, 0}};
    fake_start(&f, 2, INFERD_IN_ORDER, 100);
    struct inferd_session *s = fake_attach(&f, NULL);
    CHECK_EQ(inferd_infer(s, &in, 2, out, 2, NULL, 0, &reply), -EINVAL);
    in.bytes--;
    CHECK_EQ(inferd_infer(s, &in, 1, out, 2, NULL, 0, &reply), -EINVAL);
    CHECK(strstr(inferd_error(s), "obs") != NULL);
    in.bytes++;
    out[0].bytes++;
    CHECK_EQ(inferd_infer(s, &in, 1, out, 2, NULL, 0, &reply), -EINVAL);
    out[0].bytes--;
    CHECK_EQ(fake_published(&f), 0);

    struct inferd_ticket earlier = submit(s, 1, 0);
    CHECK_EQ(inferd_infer(s, &in, 1, out, 2, NULL, MS, &reply), -ETIMEDOUT); /* abandoned */
    CHECK_EQ(inferd_infer(s, &in, 1, out, 2, NULL, MS, &reply), -EAGAIN);
    CHECK_EQ(inferd_abandon(s, earlier), 0);
    fake_worker_start(&w, &f, 3);
    CHECK_EQ(inferd_infer(s, &in, 1, out, 2, NULL, 5000 * MS, &reply), INFERD_OK);
    CHECK(reply.request == 2 && action[0] > 41.5f && action[0] < 42.5f && reply.held == 0);
    fake_worker_join(&w);
    CHECK_EQ(fake_released(&f), 3);
    inferd_detach(s);
    fake_stop(&f);
}

static void the_pollable_descriptor_rings_once_when_armed(void)
{
    struct fake f;
    struct inferd_reply reply;
    fake_start(&f, 4, INFERD_IN_ORDER, 0);
    struct inferd_session *s = fake_attach(&f, NULL);
    int fd = inferd_poll_fd(s);
    CHECK(fd >= 0);
    struct inferd_ticket a = submit(s, 0, 0);
    CHECK_EQ(inferd_poll_arm(s), 0);
    CHECK_EQ(fake_client_sleeps(&f), IFD_ASLEEP_SOCKET);
    CHECK_EQ(inferd_try(s, a, &reply), -EINPROGRESS);
    CHECK_EQ(fake_client_sleeps(&f), IFD_ASLEEP_SOCKET); /* a fruitless try leaves it armed */
    fake_answer(&f, 0, INFERD_OK, 0, 0, 0);
    char byte;
    CHECK_EQ(recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT), 1);
    CHECK_EQ(inferd_poll_arm(s), 1);
    CHECK_EQ(inferd_try(s, a, &reply), INFERD_OK);
    CHECK_EQ(fake_client_sleeps(&f), IFD_AWAKE);
    CHECK(recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0);
    CHECK_EQ(inferd_release(s, &reply), 0);
    CHECK_EQ(inferd_poll_arm(s), 0);
    fake_set_state(&f, INFERD_RECOVERING); /* another state rings, too */
    CHECK_EQ(recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT), 1);
    CHECK_EQ(inferd_poll_disarm(s), 0);
    CHECK_EQ(fake_client_sleeps(&f), IFD_AWAKE);
    inferd_detach(s);
    fake_stop(&f);
}

static void a_sleeping_worker_is_rung_the_way_it_asks_for(void)
{
    struct fake f;
    fake_start(&f, 4, INFERD_IN_ORDER, 0);
    struct inferd_session *s = fake_attach(&f, NULL);
    (void)submit(s, 0, 0);
    CHECK(fake_doorbell(&f) == 0 && !fake_socket_rang(&f));
    fake_set_sleeping(&f, IFD_ASLEEP_FUTEX);
    (void)submit(s, 0, 0);
    CHECK(fake_doorbell(&f) == 1 && !fake_socket_rang(&f));
    fake_set_sleeping(&f, IFD_ASLEEP_SOCKET);
    (void)submit(s, 0, 0);
    CHECK(fake_doorbell(&f) == 1 && fake_socket_rang(&f) && !fake_socket_rang(&f));
    inferd_detach(s);
    fake_stop(&f);
}

static int in_child(struct inferd_session *s)
{
    struct inferd_reply reply = {.held = 1};
    struct inferd_ticket ticket = {1, 0};
    struct inferd_info info = {.size = sizeof info};
    bool refused = inferd_request(s) == -EOWNERDEAD && inferd_submit(s, NULL, &ticket) == -EOWNERDEAD &&
                   inferd_wait(s, ticket, 0, &reply) == -EOWNERDEAD && inferd_try(s, ticket, &reply) == -EOWNERDEAD &&
                   inferd_release(s, &reply) == -EOWNERDEAD && inferd_abandon(s, ticket) == -EOWNERDEAD &&
                   inferd_infer(s, NULL, 0, NULL, 0, NULL, 0, NULL) == -EOWNERDEAD && inferd_poll_arm(s) == -EOWNERDEAD &&
                   inferd_poll_disarm(s) == -EOWNERDEAD && inferd_poll_fd(s) == -EOWNERDEAD && inferd_reset(s) == -EOWNERDEAD &&
                   inferd_reattach(s, 0) == -EOWNERDEAD && inferd_info(s, &info) == -EOWNERDEAD &&
                   inferd_write(s, 0, NULL, 0) == -EOWNERDEAD && inferd_read(s, &reply, 0, NULL, 0) == -EOWNERDEAD &&
                   inferd_input(s, 0) == NULL && inferd_output(s, &reply, 0) == NULL && inferd_signature(s)->inputs_count == 1;
    inferd_detach(s);
    return refused ? 0 : 1;
}

static void fork_and_check(void)
{
    struct fake f;
    struct inferd_reply reply;
    int status = -1;
    fake_start(&f, 4, INFERD_IN_ORDER, 0);
    struct inferd_session *s = fake_attach(&f, NULL);
    struct inferd_ticket a = submit(s, 0, 0);
    pid_t child = fork();
    if (child == 0) {
        _exit(in_child(s));
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    fake_answer(&f, 0, INFERD_OK, 0, 0, 0);
    CHECK_EQ(inferd_wait(s, a, 1000 * MS, &reply), INFERD_OK); /* the parent's session goes on */
    inferd_detach(s);
    fake_stop(&f);
}

static void a_forked_child_gets_an_error_with_and_without_wipe_on_fork(void)
{
    fork_and_check();
    CHECK_EQ(setenv("INFERD_DISABLE", "futex_waitv, wipe_on_fork,madv_populate", 1), 0);
    fork_and_check();
    CHECK_EQ(unsetenv("INFERD_DISABLE"), 0);
}

int main(void)
{
    RUN(a_request_is_written_and_its_reply_read_in_place);
    RUN(in_order_refuses_when_all_slots_are_in_flight_and_credit_is_a_contiguous_prefix);
    RUN(latest_overwrites_the_oldest_slot_after_withdrawing_it);
    RUN(latest_releases_older_unclaimed_replies_and_never_starves_the_newest);
    RUN(a_worker_asleep_for_lack_of_credit_is_rung_though_its_last_reply_was_not_seen_yet);
    RUN(an_abandoned_reply_is_released_when_it_arrives);
    RUN(tickets_that_were_never_given_are_refused);
    RUN(a_reset_is_named_by_every_later_request);
    RUN(while_no_worker_serves_nothing_is_published);
    RUN(a_reply_that_contradicts_what_was_published_ends_the_session);
    RUN(a_reply_beyond_what_was_released_ends_the_session_and_not_the_callers_time);
    RUN(after_a_hang_up_the_slot_is_looked_at_once_more);
    RUN(a_try_loop_notices_the_hang_up_within_milliseconds);
    RUN(one_call_returns_its_own_reply_only);
    RUN(the_pollable_descriptor_rings_once_when_armed);
    RUN(a_sleeping_worker_is_rung_the_way_it_asks_for);
    RUN(a_forked_child_gets_an_error_with_and_without_wipe_on_fork);
    return 0;
}
