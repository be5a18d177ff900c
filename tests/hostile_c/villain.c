/*
 * villain.c - a client that means harm, in C: `villain_c DEED [key=value]...`, as tests/src/bin/villain is in Rust.
 *
 * It speaks the attach records by hand and links nothing of the library, so that its compiler, its memory model and its
 * habits are those of firmware. One line of JSON says what it managed to do. The deeds are in regions.c, sockets.c and
 * crowd.c; fork (a session is forked, and either side dies) is here.
 */
#include "villain.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

/* By hand, so without the library's guard: a child may write what its parent shares, and harms that session alone. */
static int forked(void) {
    struct session s;
    if (ask(&s, "in_order") != 0 || mapped(&s) != 0) {
        return 1;
    }
    uint64_t random = number("seed", 1), rounds = number("rounds", 10), ended = 0, killed = 0;
    for (uint64_t i = 0; i < rounds; i++) {
        random = mix(random);
        pid_t child = fork();
        if (child == 0) {
            for (int k = 0; k < 200; k++) {
                random = mix(random);
                atomic_store(slot(&s, i) + 1 + random % 15, random);
                ring(&s);
            }
            raise(random % 2 != 0 ? SIGKILL : SIGTERM);
            _exit(0);
        }
        publish(&s, i);
        if (!answered(&s, i)) {
            ended++;
            leave(&s);
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
            if (ask(&s, "in_order") != 0 || mapped(&s) != 0) {
                return 1;
            }
            rounds -= i + 1;
            i = (uint64_t)-1;
            continue;
        }
        atomic_store(at(s.request, s.g.request_base + IFD_REQ_RELEASED), i + 1);
        int status = 0;
        waitpid(child, &status, 0);
        killed += WIFSIGNALED(status);
    }
    printf("{\"ended\":%llu,\"killed\":%llu}\n", (unsigned long long)ended, (unsigned long long)killed);
    return 0;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(void);
    } deeds[] = {{"flip", flip}, {"matrix", matrix}, {"linger", linger}, {"slow", slow}, {"half", half},
                 {"flood", flood}, {"keep", keep}, {"fill", fill}, {"fork", forked}};
    arg_count = argc;
    args = argv;
    for (size_t i = 0; argc > 1 && i < sizeof deeds / sizeof *deeds; i++) {
        if (strcmp(argv[1], deeds[i].name) == 0) {
            return deeds[i].run();
        }
    }
    fprintf(stderr, "villain_c flip|matrix|linger|slow|half|flood|keep|fill|fork [key=value]...\n");
    return 2;
}
