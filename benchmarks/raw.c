/* The floor: what the same system calls cost without Python. Takes the commands of worker.py for the two ends of a
 * connection, one a line on standard input, and answers each with a line of nanoseconds.
 *
 * With `messages` a round trip is exchange() at one end, recv_message() and send_message() at the other: the length
 * and the payload are sent by one call and received by two.
 *
 * raw stream|messages blocking|timeout DESCRIPTOR */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#define TIMEOUT_MS 30000

static int handle;
static int has_timeout, has_messages;

static void
die(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Returns when the call that has just failed is worth another try. */
static void
wait_for(short events)
{
    struct pollfd one = {handle, events, 0};
    if (errno != EINTR && (errno != EAGAIN || poll(&one, 1, TIMEOUT_MS) != 1)) {
        die("raw");
    }
}

static void
send_all(const char *from, size_t left)
{
    while (left > 0) {
        ssize_t n = send(handle, from, left, MSG_NOSIGNAL);
        if (n < 0) {
            wait_for(POLLOUT);
        } else {
            from += n;
            left -= (size_t)n;
        }
    }
}

static void
receive_all(char *to, size_t left)
{
    while (left > 0) {
        ssize_t n = recv(handle, to, left, 0);
        if (n == 0) {
            exit(1); /* the other end is gone */
        }
        if (n < 0) {
            wait_for(POLLIN);
        } else {
            to += n;
            left -= (size_t)n;
        }
    }
}

/* One receive into all of the buffer; returns what came. */
static size_t
receive_some(char *to, size_t size)
{
    ssize_t n;
    while ((n = recv(handle, to, size, 0)) < 0) {
        wait_for(POLLIN);
    }
    if (n == 0) {
        exit(1);
    }
    return (size_t)n;
}

static void
send_message(char *payload, size_t size)
{
    unsigned char header[4];
    struct iovec parts[2] = {{header, sizeof header}, {payload, size}};
    struct msghdr message = {0};
    ssize_t n;
    size_t i;
    for (i = 0; i < sizeof header; i++) {
        header[i] = (unsigned char)(size >> (24 - 8 * i));
    }
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    while ((n = sendmsg(handle, &message, MSG_NOSIGNAL)) < 0) {
        wait_for(POLLOUT);
    }
    if ((size_t)n < sizeof header) {
        exit(1); /* a socket that is empty has room for more */
    }
    send_all(payload + n - sizeof header, size + sizeof header - (size_t)n);
}

static void
receive_message(char *to, size_t size)
{
    unsigned char header[4];
    size_t i, length = 0;
    receive_all((char *)header, sizeof header);
    for (i = 0; i < sizeof header; i++) {
        length = length << 8 | header[i];
    }
    if (length != size) {
        exit(1);
    }
    receive_all(to, length);
}

/* exchange() with a timeout does not try whether the reply is there before it could have come. */
static void
exchange(char *buffer, size_t size)
{
    struct pollfd one = {handle, POLLIN, 0};
    send_message(buffer, size);
    if (has_timeout && poll(&one, 1, TIMEOUT_MS) != 1) {
        die("poll");
    }
    receive_message(buffer, size);
}

static void
request(char *buffer, size_t size)
{
    if (has_messages) {
        exchange(buffer, size);
    } else {
        send_all(buffer, size);
        receive_all(buffer, size);
    }
}

static void
reply(char *buffer, size_t size)
{
    if (has_messages) {
        receive_message(buffer, size);
        send_message(buffer, size);
    } else {
        receive_all(buffer, size);
        send_all(buffer, size);
    }
}

static void
ask(char *buffer, size_t size, size_t count)
{
    int64_t *samples = malloc(count * sizeof *samples);
    size_t i;
    if (samples == NULL) {
        die("malloc");
    }
    for (i = 0; i < count; i++) {
        int64_t start = now();
        request(buffer, size);
        samples[i] = now() - start;
    }
    for (i = 0; i < count; i++) {
        printf("%lld ", (long long)samples[i]);
    }
    free(samples);
}

static void
answer(char *buffer, size_t size, size_t count)
{
    while (count-- > 0) {
        reply(buffer, size);
    }
}

static void
push(char *buffer, size_t size, size_t count)
{
    char ready, finished;
    int64_t start;
    receive_all(&ready, 1);
    start = now();
    while (count-- > 0) {
        send_all(buffer, size);
    }
    receive_all(&finished, 1);
    printf("%lld", (long long)(now() - start));
}

static void
pull(char *buffer, size_t size, size_t count)
{
    size_t left = size * count;
    send_all("r", 1);
    while (left > 0) {
        left -= receive_some(buffer, size);
    }
    send_all("f", 1);
}

int
main(int argc, char **argv)
{
    char command[16];
    size_t size, count;
    int flags;
    if (argc != 4) {
        fprintf(stderr, "usage: raw stream|messages blocking|timeout DESCRIPTOR\n");
        return 2;
    }
    has_messages = strcmp(argv[1], "messages") == 0;
    has_timeout = strcmp(argv[2], "timeout") == 0;
    handle = atoi(argv[3]);
    flags = fcntl(handle, F_GETFL);
    flags = has_timeout ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
    if (fcntl(handle, F_SETFL, flags) != 0) {
        die("fcntl");
    }
    while (scanf("%15s %zu %zu", command, &size, &count) == 3) {
        char *buffer = malloc(size);
        if (buffer == NULL) {
            die("malloc");
        }
        memset(buffer, 0xaa, size); /* the pages are there before the clock starts */
        if (strcmp(command, "ask") == 0) {
            ask(buffer, size, count);
        } else if (strcmp(command, "answer") == 0) {
            answer(buffer, size, count);
        } else if (strcmp(command, "push") == 0) {
            push(buffer, size, count);
        } else {
            pull(buffer, size, count);
        }
        free(buffer);
        putchar('\n');
        fflush(stdout);
    }
    return 0;
}
