/*
 * villain.h - what the deeds of the villain in C share: its words, and a session spoken by hand (session.c).
 */
#ifndef VILLAIN_H
#define VILLAIN_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "layout.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#define MS 1000000L

extern int arg_count;
extern char **args;

struct session {
    int socket, request_fd, reply_fd, doorbell;
    unsigned char *request, *reply;
    struct ifd_geometry g;
};

/* A key's word, or this one where it is not given. */
const char *word(const char *key, const char *otherwise);
/* The same as a number. */
uint64_t number(const char *key, uint64_t otherwise);
/* Sleeps. */
void nap(long ns);
/* CLOCK_MONOTONIC. */
uint64_t now_ns(void);
/* splitmix64, as in tests/DRIVER.md. */
uint64_t mix(uint64_t x);
/* Connects to a socket in the runtime directory; -1 where that cannot be. */
int dial(const char *name, int kind);
/* Sends a message with so many copies of a descriptor; 0 or an errno. */
int send_with(int fd, const void *bytes, size_t length, int carried, int copies);
/* ATTACH of the model m. */
struct ifd_attach_record wish(const char *queue);
/* ATTACH and ATTACHED; the status, or -1 when the daemon hung up. */
int ask(struct session *s, const char *queue);
/* MAPPED and READY; the status, or -1. */
int mapped(struct session *s);
/* Unmaps and closes all of it. */
void leave(struct session *s);
/* The word at an offset. */
_Atomic uint64_t *at(unsigned char *region, uint64_t offset);
/* The words of request `n`. */
_Atomic uint64_t *slot(struct session *s, uint64_t n);
/* Whether reply `r` is there. */
bool replied(struct session *s, uint64_t r);
/* Whether the daemon has hung up, or sent something. */
bool is_over(struct session *s);
/* Rings the worker as it sleeps. */
void ring(struct session *s);
/* Publishes request `n`. */
void publish(struct session *s, uint64_t n);
/* Waits for reply `r`: whether it came before the session's end. */
bool answered(struct session *s, uint64_t r);

/* The deeds; each prints one line of JSON. */
int flip(void);
int matrix(void);
int linger(void);
int slow(void);
int half(void);
int flood(void);
int keep(void);
int fill(void);

#endif
