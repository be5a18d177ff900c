/*
 * test_alloc.c - nothing allocates after inferd_attach() has returned, whatever is called and whatever fails.
 *
 * Linked with driver/count.c, which stands in front of malloc. The daemon's end lives in this process too,
 * and allocates only while it starts and stops.
 */
#include "fake.h"

uint64_t allocations(void);

static void a_session_allocates_only_while_it_attaches(void)
{
    struct fake f;
    struct inferd_reply reply;
    struct inferd_ticket ticket;
    struct inferd_info info = {.size = sizeof info};
    float obs[OBS_ELEMENTS] = {0}, action[ACTION_ELEMENTS];
    unsigned char flags[3];
    struct inferd_in in = {obs, sizeof obs};
    struct inferd_out out[2] = {{action, sizeof action}, {flags, sizeof flags}};
    fake_start(&f, 2, INFERD_IN_ORDER, 20);
    uint64_t none = allocations();
    struct inferd_session *s = fake_attach(&f, NULL);
    CHECK(allocations() > none);
    uint64_t before = allocations();
    for (unsigned n = 0; n < 1000; n++) {
        CHECK_EQ(inferd_request(s), 0);
        CHECK_EQ(inferd_write(s, 0, obs, sizeof obs), 0);
        CHECK_EQ(inferd_submit(s, NULL, &ticket), 0);
        CHECK_EQ(inferd_try(s, ticket, &reply), -EINPROGRESS);
        CHECK_EQ(inferd_poll_arm(s), 0);
        fake_answer(&f, n, INFERD_OK, 0, 0, 1);
        CHECK_EQ(inferd_wait(s, ticket, INFERD_FOREVER, &reply), INFERD_OK);
        CHECK_EQ(inferd_read(s, &reply, 0, action, sizeof action), 0);
        CHECK_EQ(inferd_release(s, &reply), 0);
    }
    CHECK_EQ(inferd_infer(s, &in, 1, out, 2, NULL, 100000, &reply), -ETIMEDOUT);
    CHECK_EQ(inferd_infer(s, &in, 2, out, 2, NULL, 100000, &reply), -EINVAL);
    CHECK_EQ(inferd_info(s, &info), 0);
    fake_set_state(&f, INFERD_RECOVERING);
    CHECK_EQ(inferd_request(s), -EHOSTDOWN);
    fake_set_state(&f, INFERD_SERVING);
    fake_hang_up(&f);
    CHECK_EQ(inferd_reattach(s, UINT64_C(5000000000)), 0);
    CHECK_EQ(inferd_request(s), 0);
    CHECK_EQ(inferd_submit(s, NULL, &ticket), 0);
    CHECK_EQ(inferd_abandon(s, ticket), 0);
    CHECK_EQ(allocations(), before);
    inferd_detach(s);
    fake_stop(&f);
}

int main(void)
{
    RUN(a_session_allocates_only_while_it_attaches);
    return 0;
}
