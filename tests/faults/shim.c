/* System calls that fail when a test says so; preloaded into a process by tests/test_faults.py.
 *
 * faults_arm(fd, plan) makes the calls on one descriptor fail. A plan is words CALL=WHAT[@SKIP][*TIMES], as those of
 * tests/windows/provider. CALL is sending receiving polling accepting connecting or asking (ioctl, getsockopt).
 * WHAT is an errno, short:N for at most N bytes, late:MS for a call that begins so many milliseconds late since the
 * thread has lost its core, held:MS for one that is as late since the whole machine was held up, or parked:MS for one
 * that begins at faults_let_go(), or so late. SKIP calls go well first; it happens once or TIMES times, *0 for ever. The
 * first word that has something to say about a call is taken, and the next one, too, if that makes the call late.
 * One thread at a time uses it, or another one while a call is late. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FAULTS 32
#define MAX_CALLS 4096
#define MAX_BUFFERS 1024

typedef struct {
    char call[16];
    int error; /* 0: short, or late */
    size_t length;
    unsigned late;   /* ms */
    unsigned held;   /* ms */
    unsigned parked; /* ms */
    unsigned skip;
    unsigned times; /* 0: for ever */
    int spent;
} fault;

static fault faults[MAX_FAULTS];
static int fault_count;
static int armed = -1;
static const char *made[MAX_CALLS]; /* calls on the descriptor */
static int made_count, injected;
static long switches; /* that the kernel has not counted */
static int parked;
static size_t longest;

/* 0, or -1 for a plan that is none. */
int
faults_arm(int fd, const char *plan)
{
    char copy[2048], *word;
    fault_count = made_count = injected = 0;
    longest = 0;
    armed = fd;
    if (snprintf(copy, sizeof copy, "%s", plan) >= (int)sizeof copy) {
        return -1;
    }
    for (word = strtok(copy, " "); word != NULL; word = strtok(NULL, " ")) {
        fault *f = &faults[fault_count++];
        char *at = strchr(word, '@'), *star = strchr(word, '*');
        memset(f, 0, sizeof *f);
        f->skip = at == NULL ? 0 : (unsigned)atoi(at + 1);
        f->times = star == NULL ? 1 : (unsigned)atoi(star + 1);
        if (fault_count == MAX_FAULTS || (sscanf(word, "%15[a-z]=short:%zu", f->call, &f->length) != 2 &&
                                          sscanf(word, "%15[a-z]=late:%u", f->call, &f->late) != 2 &&
                                          sscanf(word, "%15[a-z]=held:%u", f->call, &f->held) != 2 &&
                                          sscanf(word, "%15[a-z]=parked:%u", f->call, &f->parked) != 2 &&
                                          sscanf(word, "%15[a-z]=%d", f->call, &f->error) != 2)) {
            return -1;
        }
    }
    return 0;
}

/* How many such calls were made on the descriptor since it was armed. */
int
faults_calls(const char *call)
{
    int i, n = 0;
    for (i = 0; i < made_count; i++) {
        n += strcmp(made[i], call) == 0;
    }
    return n;
}

/* How often the first word of the plan happened. */
int
faults_injected(void)
{
    return injected;
}

/* The most bytes that one call was to transfer. */
size_t
faults_longest(void)
{
    return longest;
}

/* Has a call that is parked begin. True if there is one. */
int
faults_let_go(void)
{
    return __atomic_exchange_n(&parked, 0, __ATOMIC_SEQ_CST);
}

static void
park(unsigned ms)
{
    __atomic_store_n(&parked, 1, __ATOMIC_SEQ_CST);
    while (ms-- > 0 && __atomic_load_n(&parked, __ATOMIC_SEQ_CST)) {
        usleep(1000);
    }
    __atomic_store_n(&parked, 0, __ATOMIC_SEQ_CST);
}

/* What is to happen to this call; NULL: nothing. */
static const fault *
due(int fd, const char *call)
{
    int i;
    if (armed < 0 || fd != armed) {
        return NULL;
    }
    if (made_count == MAX_CALLS) {
        abort(); /* something goes round in circles */
    }
    made[made_count++] = call;
    for (i = 0; i < fault_count; i++) {
        fault *f = &faults[i];
        if (f->spent || strcmp(f->call, call) != 0) {
            continue;
        }
        if (f->skip > 0) {
            f->skip--;
            continue;
        }
        f->spent = f->times != 0 && --f->times == 0;
        injected += i == 0;
        if (f->error != 0 || f->length != 0) {
            return f;
        }
        if (f->parked != 0) {
            park(f->parked);
        }
        usleep((f->late + f->held) * 1000);
        switches += f->late != 0;
    }
    return NULL;
}

static void
measure(int fd, size_t length)
{
    if (fd == armed && length > longest) {
        longest = length;
    }
}

static size_t
shortened(const fault *f, size_t length)
{
    return f != NULL && f->length < length ? f->length : length;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_IF_DUE(fd, call)                                                                                          \
    const fault *f = due(fd, call);                                                                                    \
    if (f != NULL && f->error != 0) {                                                                                  \
        errno = f->error;                                                                                              \
        return -1;                                                                                                     \
    }

ssize_t
recv(int fd, void *buffer, size_t length, int flags)
{
    FAIL_IF_DUE(fd, "receiving")
    measure(fd, length);
    return REAL(recv)(fd, buffer, shortened(f, length), flags);
}

ssize_t
send(int fd, const void *buffer, size_t length, int flags)
{
    FAIL_IF_DUE(fd, "sending")
    measure(fd, length);
    return REAL(send)(fd, buffer, shortened(f, length), flags);
}

ssize_t
sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct iovec some[MAX_BUFFERS];
    struct msghdr shorter = *message;
    size_t i, left, length = 0;
    FAIL_IF_DUE(fd, "sending")
    for (i = 0; i < message->msg_iovlen; i++) {
        length += message->msg_iov[i].iov_len;
    }
    measure(fd, length);
    if (f == NULL) {
        return REAL(sendmsg)(fd, message, flags);
    }
    left = f->length;
    for (i = 0; i < message->msg_iovlen && i < MAX_BUFFERS && left > 0; i++) {
        some[i] = message->msg_iov[i];
        some[i].iov_len = shortened(&(fault){.length = left}, some[i].iov_len);
        left -= some[i].iov_len;
    }
    shorter.msg_iov = some;
    shorter.msg_iovlen = i;
    return REAL(sendmsg)(fd, &shorter, flags);
}

int
poll(struct pollfd *fds, nfds_t count, int timeout)
{
    const volatile int *first = &fds->fd; /* the headers say that poll only writes here */
    FAIL_IF_DUE(count > 0 ? *first : -1, "polling")
    return REAL(poll)(fds, count, timeout);
}

int
accept4(int fd, struct sockaddr *restrict address, socklen_t *restrict length, int flags)
{
    FAIL_IF_DUE(fd, "accepting")
    return REAL(accept4)(fd, address, length, flags);
}

/* A connect that a signal interrupts goes on by itself. */
int
connect(int fd, const struct sockaddr *address, socklen_t length)
{
    const fault *f = due(fd, "connecting");
    if (f != NULL && f->error != EINTR) {
        errno = f->error;
        return -1;
    }
    if (REAL(connect)(fd, address, length) != 0) {
        return -1;
    }
    errno = EINTR;
    return f == NULL ? 0 : -1;
}

int
ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;
    FAIL_IF_DUE(fd, "asking")
    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return REAL(ioctl)(fd, request, argument);
}

int
getsockopt(int fd, int level, int option, void *restrict value, socklen_t *restrict length)
{
    FAIL_IF_DUE(fd, "asking")
    return REAL(getsockopt)(fd, level, option, value, length);
}

int
getrusage(__rusage_who_t who, struct rusage *usage)
{
    int result = REAL(getrusage)(who, usage);
    usage->ru_nivcsw += switches;
    return result;
}
