/*
 * test_attach.c - the handshake, right and wrong in every way that the fake daemon knows; regions; reattach.
 *
 * Every refusal must end in one typed error with a sentence, and leave no descriptor and no mapping.
 */
#include "fake.h"

#include <dirent.h>
#include <sys/mman.h>
#include <unistd.h>

#define MS UINT64_C(1000000)

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *dir = opendir("/proc/self/fd");
    CHECK(dir != NULL);
    while (readdir(dir) != NULL) {
        count++;
    }
    (void)closedir(dir);
    return count;
}

static unsigned mapped_regions(void)
{
    char line[512];
    unsigned count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        count += strstr(line, "inferd") != NULL;
    }
    (void)fclose(maps);
    return count;
}

static void the_session_says_what_was_granted(void)
{
    struct fake f;
    struct inferd_info info = {.size = sizeof info};
    fake_start(&f, 3, INFERD_LATEST, 77);
    unsigned fds = open_descriptors(), maps = mapped_regions();
    struct inferd_session *s = fake_attach(&f, NULL);
    CHECK_EQ(inferd_info(s, &info), 0);
    CHECK(info.slots == 3 && info.queue == INFERD_LATEST && info.spin_us == 77 && info.named == 0 && info.state == INFERD_SERVING);
    CHECK(strcmp(inferd_daemon_version(s), "9.9.9-fake") == 0 && strcmp(inferd_error(s), "") == 0);
    const struct inferd_signature *signature = inferd_signature(s);
    CHECK(signature->inputs_count == 1 && signature->outputs_count == 2 && signature->stateful == 1);
    const struct inferd_tensor *obs = &signature->inputs[0];
    CHECK(strcmp(obs->name, "obs") == 0 && strcmp(obs->elements, "x [m]") == 0 && obs->rank == 2 && obs->shape[1] == OBS_ELEMENTS);
    CHECK(obs->bytes == 4 * OBS_ELEMENTS && obs->dtype == INFERD_F32 && obs->time_axis == -1);
    CHECK(strcmp(signature->outputs[1].name, "flags") == 0 && signature->outputs[1].elements[0] == '\0');
    info.size = 4;
    CHECK_EQ(inferd_info(s, &info), -EINVAL);
    inferd_detach(s);
    (void)usleep(20000);
    struct inferd_attach_options options = inferd_attach_defaults();
    options.slots = 2;
    options.queue = INFERD_IN_ORDER;
    options.spin_us = 5;
    options.flags = INFERD_LOCK_MEMORY;
    f.backing = IFD_BACKING_POSIX;
    s = fake_attach(&f, &options);
    info.size = sizeof info;
    CHECK_EQ(inferd_info(s, &info), 0);
    CHECK(info.slots == 2 && info.queue == INFERD_IN_ORDER && info.spin_us == 5 && info.named == 1);
    inferd_detach(s);
    inferd_detach(NULL);
    /* What is left is the fake's own end of the last session. */
    CHECK(open_descriptors() <= fds + 2 && mapped_regions() <= maps + 2);
    fake_stop(&f);
}

static void expect(enum fault fault, uint32_t status, int error, const char *word)
{
    struct fake f;
    struct inferd_session *s;
    char why[512] = "";
    fake_start(&f, 4, INFERD_LATEST, 0);
    f.fault = fault;
    f.status = status;
    struct inferd_attach_options options = inferd_attach_defaults();
    options.timeout_ns = fault == FAULT_SILENT ? 30 * MS : 5000 * MS;
    unsigned fds = open_descriptors();
    int got = fake_try_attach(&f, &options, &s, why);
    if (got != error || strstr(why, word) == NULL || s != NULL) {
        fprintf(stderr, "fault %d status %u: %d, %s\n", (int)fault, status, got, why);
        abort();
    }
    CHECK(open_descriptors() <= fds + 3);
    fake_stop(&f);
}

static void every_refusal_is_typed_and_says_why(void)
{
    static const int errors[] = {0, -EPROTONOSUPPORT, -ENODEV, -EHOSTDOWN, -EDQUOT, -ESHUTDOWN, -ETIME, -EACCES, -EBADMSG,
                                 -ENOSPC, -EBADFD};
    for (uint32_t status = 1; status < sizeof errors / sizeof errors[0]; status++) {
        expect(FAULT_STATUS, status, errors[status], "do something");
    }
    expect(FAULT_STATUS, 99, -EPROTO, "attach status 99");
    expect(FAULT_READY_STATUS, IFD_ATTACH_BAD_REGION, -EBADFD, "no reason");
    expect(FAULT_ABI, 0, -EPROTONOSUPPORT, "ABI 2.7, this library 1.0");
    expect(FAULT_MAGIC, 0, -EPROTO, "not an inferd daemon");
    expect(FAULT_SHORT, 0, -EPROTO, "100 bytes");
    expect(FAULT_HANG_UP, 0, -ECONNRESET, "hung up");
    expect(FAULT_SILENT, 0, -ETIMEDOUT, "in time");
    expect(FAULT_FEW_FDS, 0, -EPROTO, "2 descriptors");
    expect(FAULT_GEOMETRY, 0, -EPROTO, "slots outside the region");
    expect(FAULT_UNSEALED, 0, -EPROTO, "not sealed");
    expect(FAULT_SIZE, 0, -EPROTO, "another size");
    expect(FAULT_SIGNATURE, 0, -EPROTO, "dtype");
}

static void a_missing_daemon_is_told_with_every_place_that_was_tried(void)
{
    struct inferd_session *s;
    char why[512] = "";
    struct inferd_attach_options options = inferd_attach_defaults();
    options.error = why;
    options.error_bytes = sizeof why;
    CHECK(setenv("INFERD_RUNTIME_DIR", "", 1) == 0 && setenv("XDG_RUNTIME_DIR", "/nonexistent", 1) == 0);
    int error = inferd_attach("go2", &options, &s);
    if (error == -ECONNREFUSED) { /* else a daemon runs on this machine */
        CHECK(strstr(why, "/run/inferd") != NULL && strstr(why, "XDG_RUNTIME_DIR/inferd (no attach.sock there)") != NULL);
    } else if (error == 0 || s != NULL) {
        inferd_detach(s);
    }
    CHECK(setenv("INFERD_RUNTIME_DIR", "/nonexistent/inferd", 1) == 0);
    CHECK_EQ(inferd_attach("go2", &options, &s), -ECONNREFUSED);
    CHECK(strstr(why, "$INFERD_RUNTIME_DIR /nonexistent/inferd (no attach.sock there)") != NULL);
    CHECK(unsetenv("INFERD_RUNTIME_DIR") == 0);
    static const char *const bad[] = {"", "../x", "a/b", "-rf", ".hidden", "a b",
                                      "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK_EQ(inferd_attach(bad[i], &options, &s), -EINVAL);
    }
    CHECK_EQ(inferd_attach(NULL, &options, &s), -EINVAL);
    CHECK_EQ(inferd_attach("go2", &options, NULL), -EINVAL);
    options.slots = 65;
    CHECK_EQ(inferd_attach("go2", &options, &s), -EINVAL);
    options.slots = 0;
    options.spin_us = IFD_SPIN_US_MAX + 1;
    CHECK_EQ(inferd_attach("go2", &options, &s), -EINVAL);
    CHECK(strstr(why, "spin_us") != NULL);
    options = inferd_attach_defaults();
    options.size = 4;
    CHECK_EQ(inferd_attach("go2", &options, &s), -EINVAL);
}

static void a_long_directory_is_reached_through_its_descriptor(void)
{
    struct fake f;
    struct inferd_session *s;
    char why[512] = "", dir[400];
    fake_start(&f, 4, INFERD_LATEST, 0);
    struct inferd_attach_options options = inferd_attach_defaults();
    size_t length = (size_t)snprintf(dir, sizeof dir, "%s", f.dir);
    while (length < 200) {
        length += (size_t)snprintf(dir + length, sizeof dir - length, "/.");
    }
    options.runtime_dir = dir;
    options.error = why;
    options.error_bytes = sizeof why;
    CHECK_EQ(inferd_attach("go2", &options, &s), 0);
    inferd_detach(s);
    fake_stop(&f);
}

static void a_damaged_signature_is_refused_at_every_cut_and_flip(void)
{
    struct fake f;
    fake_start(&f, 4, INFERD_LATEST, 0);
    struct inferd_session *s = fake_attach(&f, NULL);
    struct ifd_link link = s->link;
    size_t length = s->signature_length;
    unsigned char *copy = malloc(IFD_PAGE * 2);
    CHECK(copy != NULL);
    memcpy(copy, s->link.reply.base, IFD_PAGE * 2);
    struct ifd_region_header *header = (struct ifd_region_header *)(void *)copy;
    link.reply.base = copy;
    free(s->signature_bytes);
    s->signature_bytes = NULL;
    for (uint32_t cut = 0; cut < length; cut++) {
        header->signature_bytes = cut;
        CHECK_EQ(ifd_signature_read(s, &link), -EPROTO);
    }
    header->signature_bytes = (uint32_t)length;
    for (size_t bit = 0; bit < length * 8; bit++) { /* sound or refused; the sanitizers see anything else */
        copy[64 + bit / 8] ^= (unsigned char)(1u << bit % 8);
        if (ifd_signature_read(s, &link) == 0) {
            free(s->signature_bytes);
            s->signature_bytes = NULL;
        }
        copy[64 + bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    CHECK_EQ(ifd_signature_read(s, &link), 0);
    CHECK_EQ(ifd_signature_read(s, &link), 0); /* the same again, as after a reattach */
    free(copy);
    inferd_detach(s);
    fake_stop(&f);
}

static void both_ways_of_populating_keep_what_stands_there(void)
{
    for (int advise = 0; advise < 2; advise++) {
        int fd = memfd_create("inferd-test", MFD_CLOEXEC);
        CHECK(fd >= 0 && ftruncate(fd, 3 * IFD_PAGE) == 0);
        struct ifd_region region = {.base = mmap(NULL, 3 * IFD_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), .bytes = 3 * IFD_PAGE};
        CHECK(region.base != MAP_FAILED);
        region.base[IFD_PAGE] = 9;
        ifd_region_populate(&region, true, advise == 1);
        ifd_region_populate(&region, false, advise == 1);
        unsigned char present[3];
        CHECK(mincore(region.base, region.bytes, present) == 0 && (present[0] & present[1] & present[2] & 1) == 1);
        CHECK(region.base[IFD_PAGE] == 9 && region.base[0] == 0);
        ifd_region_unmap(&region);
        (void)close(fd);
    }
}

static void a_request_reattaches_step_by_step_without_waiting(void)
{
    struct fake f;
    struct inferd_reply reply;
    struct inferd_ticket before, after;
    fake_start(&f, 4, INFERD_IN_ORDER, 0);
    struct inferd_session *s = fake_attach(&f, NULL);
    CHECK_EQ(inferd_request(s), 0);
    CHECK_EQ(inferd_submit(s, NULL, &before), 0);
    f.extra_ms = 300;
    fake_hang_up(&f);
    CHECK_EQ(inferd_wait(s, before, INFERD_FOREVER, &reply), INFERD_DAEMON_LOST);
    unsigned refused = 0;
    uint64_t began_ns = inferd_now_ns();
    for (int error; (error = inferd_request(s)) != 0; refused++) {
        CHECK_EQ(error, -ECONNRESET);
        CHECK(inferd_now_ns() - began_ns < 10000 * MS);
        (void)usleep(1000);
    }
    CHECK(refused >= 5); /* it did not wait for the daemon's 300 ms */
    CHECK_EQ(inferd_submit(s, NULL, &after), 0);
    CHECK(after.epoch == 2 && after.number == 0);
    CHECK_EQ(inferd_try(s, before, &reply), INFERD_DAEMON_LOST);
    CHECK_EQ(inferd_abandon(s, before), 0);
    fake_answer(&f, 0, INFERD_OK, 0, 0, 1);
    CHECK_EQ(inferd_wait(s, after, INFERD_FOREVER, &reply), INFERD_OK);
    fake_hang_up(&f);
    CHECK_EQ(inferd_reattach(s, 100 * MS), -EBUSY); /* the reply's memory would go away */
    CHECK_EQ(inferd_release(s, &reply), 0);
    f.extra_ms = 0;
    CHECK_EQ(inferd_reattach(s, 5000 * MS), 0);
    CHECK_EQ(inferd_reattach(s, 5000 * MS), 0); /* nothing to do */
    CHECK_EQ(f.attaches, 3);
    inferd_detach(s);
    fake_stop(&f);
}

static void a_model_that_came_back_with_another_signature_is_refused(void)
{
    struct fake f;
    fake_start(&f, 4, INFERD_IN_ORDER, 0);
    struct inferd_session *s = fake_attach(&f, NULL);
    f.fault = FAULT_OTHER_MODEL;
    fake_hang_up(&f);
    CHECK_EQ(inferd_reattach(s, 5000 * MS), -EREMCHG);
    CHECK(strstr(inferd_error(s), "another signature") != NULL && inferd_signature(s)->inputs[0].shape[1] == OBS_ELEMENTS);
    (void)pthread_mutex_lock(&f.lock);
    f.fault = FAULT_NONE;
    (void)pthread_mutex_unlock(&f.lock);
    CHECK_EQ(inferd_reattach(s, 5000 * MS), 0);
    inferd_detach(s);
    fake_stop(&f);
}

static void without_auto_reattach_a_lost_session_stays_lost(void)
{
    struct fake f;
    fake_start(&f, 4, INFERD_IN_ORDER, 0);
    struct inferd_attach_options options = inferd_attach_defaults();
    options.flags = INFERD_NO_REATTACH;
    struct inferd_session *s = fake_attach(&f, &options);
    fake_hang_up(&f);
    struct inferd_reply reply;
    struct inferd_ticket ticket;
    CHECK_EQ(inferd_request(s), 0); /* not noticed yet */
    CHECK_EQ(inferd_submit(s, NULL, &ticket), 0);
    CHECK_EQ(inferd_wait(s, ticket, INFERD_FOREVER, &reply), INFERD_DAEMON_LOST);
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(inferd_request(s), -ECONNRESET);
        (void)usleep(1000);
    }
    CHECK_EQ(f.attaches, 1);
    CHECK_EQ(inferd_reattach(s, 0), 0);
    CHECK_EQ(inferd_request(s), 0);
    inferd_detach(s);
    fake_stop(&f);
}

static void names_are_those_of_the_tables(void)
{
    CHECK(strcmp(inferd_status_name(INFERD_WORKER_LOST), "worker_lost") == 0 && strcmp(inferd_status_name(-3), "unknown") == 0);
    CHECK(strcmp(inferd_dtype_name(INFERD_BOOL), "bool") == 0 && strcmp(inferd_dtype_name(14), "unknown") == 0);
    CHECK(inferd_dtype_bytes(INFERD_I64) == 8 && inferd_dtype_bytes(INFERD_BF16) == 2 && inferd_dtype_bytes(0) == 0);
    CHECK(strcmp(inferd_queue_name(INFERD_LATEST), "latest") == 0 && strcmp(inferd_state_name(3), "quarantined") == 0);
    CHECK(strcmp(inferd_error_name(-EAGAIN), "again") == 0 && strcmp(inferd_error_name(-EXDEV), "other") == 0);
    CHECK(strcmp(inferd_version(), INFERD_VERSION) == 0 && inferd_abi() == 0x10000);
    CHECK(inferd_error(NULL)[0] != '\0' && inferd_signature(NULL) == NULL && inferd_input(NULL, 0) == NULL);
}

int main(void)
{
    (void)alarm(120);
    RUN(the_session_says_what_was_granted);
    RUN(every_refusal_is_typed_and_says_why);
    RUN(a_missing_daemon_is_told_with_every_place_that_was_tried);
    RUN(a_long_directory_is_reached_through_its_descriptor);
    RUN(a_damaged_signature_is_refused_at_every_cut_and_flip);
    RUN(both_ways_of_populating_keep_what_stands_there);
    RUN(a_request_reattaches_step_by_step_without_waiting);
    RUN(a_model_that_came_back_with_another_signature_is_refused);
    RUN(without_auto_reattach_a_lost_session_stays_lost);
    RUN(names_are_those_of_the_tables);
    return 0;
}
