/* The platform seam on POSIX: try the call; on would-block, poll. */
#ifndef HV_POSIX_H
#define HV_POSIX_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

typedef int hv_handle;
typedef struct iovec hv_iovec;
typedef pthread_mutex_t hv_lock;
typedef pthread_cond_t hv_cond;

#define HV_NO_HANDLE (-1)
#define HV_IO_MAX ((size_t)SSIZE_MAX)
#define HV_ERROR_CLOSED EBADF
#define HV_ERROR_WOULD_BLOCK EWOULDBLOCK
#define HV_ERROR_TOO_LONG EMSGSIZE
/* A handle without a timeout is in blocking mode: its would-block (MSG_DONTWAIT) is for the caller. */
#define HV_WAITS(timeout) ((timeout) > 0)
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

typedef enum { HV_CONNECT_NEW, HV_CONNECT_PENDING, HV_CONNECT_SETTLED } hv_connect_phase;

typedef struct {
    int woken_by_name;      /* shutdown() does not wake accept and connect everywhere: close() signals `wake` */
    int wake[2];            /* read end, write end; the same eventfd on Linux */
    hv_connect_phase phase; /* of a connect */
    int64_t pause;          /* ns to sleep instead of polling the handle */
} hv_pending;

static inline void
hv_pending_init(hv_pending *pending)
{
    pending->woken_by_name = 0;
    pending->phase = HV_CONNECT_NEW;
    pending->pause = 0;
}

static inline void
hv_lock_acquire(hv_lock *lock)
{
    pthread_mutex_lock(lock);
}

static inline void
hv_lock_release(hv_lock *lock)
{
    pthread_mutex_unlock(lock);
}

static inline void
hv_cond_wake_all(hv_cond *cond)
{
    pthread_cond_broadcast(cond);
}

static inline void
hv_cond_destroy(hv_cond *cond)
{
    pthread_cond_destroy(cond);
}

#include "hv_op.h"

/* Held while an import sets what all interpreters share, or the first call in a forked child what it inherited. */
static hv_lock hv_once = PTHREAD_MUTEX_INITIALIZER;

/* Counts forks: calls that other threads had inside a socket do not exist in the child. */
static unsigned hv_generation;

static void
hv_count_fork(void)
{
    hv_generation++;
    pthread_mutex_init(&hv_once, NULL); /* another thread may have had it */
}

static PyObject *
hv_raise_error(int error)
{
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static int
hv_platform_init(void)
{
    static int done;
    int error = 0;
    hv_lock_acquire(&hv_once);
    if (!done) {
        error = pthread_atfork(NULL, NULL, hv_count_fork);
        done = error == 0;
    }
    hv_lock_release(&hv_once);
    if (error != 0) {
        hv_raise_error(error);
        return -1;
    }
    return 0;
}

/* True for the codes that say "not yet" on a non-blocking socket: part of normal work. */
static inline int
hv_error_is_not_yet(int error)
{
    return error == EWOULDBLOCK || error == EAGAIN || error == EINPROGRESS;
}

static inline int
hv_error_is_reset(int error)
{
    return error == ECONNRESET;
}

static inline void
hv_iovec_set(hv_iovec *iov, void *base, size_t length)
{
    iov->iov_base = base;
    iov->iov_len = length;
}

static int64_t
hv_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void
hv_cond_init(hv_cond *cond)
{
#ifdef __APPLE__
    pthread_cond_init(cond, NULL);
#else
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
#endif
}

/* Waits for hv_cond_wake_all, for so many nanoseconds at most, or for less than that. */
static void
hv_cond_wait(hv_cond *cond, hv_lock *lock, int64_t ns)
{
#ifdef __APPLE__
    struct timespec length = {ns / 1000000000, ns % 1000000000};
    pthread_cond_timedwait_relative_np(cond, lock, &length);
#else
    int64_t until = hv_now() + ns;
    struct timespec time = {until / 1000000000, until % 1000000000};
    pthread_cond_timedwait(cond, lock, &time);
#endif
}

static void
hv_socket_reset(hv_socket *s)
{
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->mode, NULL);
    hv_cond_init(&s->emptied);
    s->sending = s->receiving = (hv_turn){0, 0, 0, NULL};
    s->waiting = NULL;
}

static void
hv_socket_init(hv_socket *s)
{
    hv_socket_reset(s);
    s->generation = hv_generation;
}

/* In a forked child, ends the turns of the parent's other threads. What they were in the midst of, nobody
 * goes on with here: a part of it is on their stacks. */
static void
hv_forget_turns(hv_socket *s)
{
    long me = (long)pthread_self(), sending = s->sending.owner, receiving = s->receiving.owner;
    if (sending != 0 && sending != me) {
        Py_CLEAR(s->out.buffers); /* how much of it is sent, only that thread knows */
    }
    if (receiving != 0 && receiving != me) {
        int is_new = s->in.got == 0 && (s->in.state == HV_INBOX_EXACTLY || s->in.header_got == 0);
        s->in.state = is_new ? HV_INBOX_EMPTY : HV_INBOX_LOST;
    }
    hv_socket_reset(s);
    s->sending.owner = sending == me ? me : 0;
    s->receiving.owner = receiving == me ? me : 0;
}

/* Called before the gate and the turns are used: in a forked child, forgets the calls of the parent's threads. */
static inline void
hv_socket_sync(hv_socket *s)
{
    if (__atomic_load_n(&s->generation, __ATOMIC_ACQUIRE) != hv_generation) {
        hv_lock_acquire(&hv_once);
        if (s->generation != hv_generation) {
            s->gate &= HV_GATE_OPEN | HV_GATE_DETACHED;
            hv_forget_turns(s);
            __atomic_store_n(&s->generation, hv_generation, __ATOMIC_RELEASE);
        }
        hv_lock_release(&hv_once);
    }
}

static int
hv_close(hv_handle handle)
{
    return close(handle) == 0 ? 0 : errno;
}

static int
hv_set_nonblocking(hv_handle handle, int on)
{
    return ioctl(handle, FIONBIO, &on);
}

/* Undoes what hv_accept_start did to the handle of a blocking socket, for its next owner. */
static void
hv_release_mode(hv_socket *s)
{
    if (hv_cell_get(&s->timeout) < 0) {
        hv_set_nonblocking(s->handle, 0);
    }
}

/* ---- attempts ---- */

/* Up to this many bytes a transfer that does not block is over sooner than the GIL has been handed over
 * and back, most of all beside a busy thread. In vain, a try costs a fortieth of the wait that follows. */
#define HV_BRIEF_MAX 16384

static inline int
hv_is_brief(size_t length)
{
    return length <= HV_BRIEF_MAX;
}

/* MSG_DONTWAIT whatever the mode is: another owner of the handle may have made it blocking. HV_READY:
 * a blocking attempt is to follow. */
static hv_status
hv_brief_start(hv_op *op)
{
    int flags = op->flags;
    hv_status status;
    op->flags = flags | MSG_DONTWAIT;
    status = op->start(op);
    op->flags = flags;
    return status == HV_BLOCKED && op->timeout < 0 && !(flags & MSG_DONTWAIT) ? HV_READY : status;
}

static hv_status
hv_failed(hv_op *op, int error)
{
    op->error = error;
    if (error == EINTR) {
        return HV_INTERRUPTED;
    }
    return error == EWOULDBLOCK || error == EAGAIN ? HV_BLOCKED : HV_FAILED;
}

static hv_status
hv_failed_now(hv_op *op)
{
    return hv_failed(op, errno);
}

static inline hv_status
hv_transferred(hv_op *op, ssize_t n)
{
    if (n < 0) {
        return hv_failed_now(op);
    }
    op->result = (size_t)n;
    return HV_DONE;
}

/* A call with a timeout must not block, whatever another thread or owner has made of the handle's mode. */
static inline int
hv_flags(const hv_op *op)
{
    return op->timeout < 0 ? op->flags : op->flags | MSG_DONTWAIT;
}

static hv_status
hv_recv_start(hv_op *op)
{
    return hv_transferred(op, recv(op->handle, op->buffers->iov_base, op->buffers->iov_len, hv_flags(op)));
}

static hv_status
hv_send_start(hv_op *op)
{
    return hv_transferred(op,
                          send(op->handle, op->buffers->iov_base, op->buffers->iov_len, hv_flags(op) | MSG_NOSIGNAL));
}

static hv_status
hv_sendmsg_start(hv_op *op)
{
    struct msghdr message = {0};
    message.msg_iov = op->buffers;
    message.msg_iovlen = op->count;
    return hv_transferred(op, sendmsg(op->handle, &message, hv_flags(op) | MSG_NOSIGNAL));
}

static hv_status
hv_accept_attempt(hv_op *op)
{
    if (hv_set_nonblocking(op->handle, 1) != 0) {
        return hv_failed_now(op);
    }
#ifdef __linux__
    op->accepted = accept4(op->handle, &op->address->u.any, &op->address->length, SOCK_CLOEXEC);
#else
    op->accepted = accept(op->handle, &op->address->u.any, &op->address->length);
    if (op->accepted >= 0) {
        fcntl(op->accepted, F_SETFD, FD_CLOEXEC);
        hv_set_nonblocking(op->accepted, 0); /* BSD: inherited from the listener */
    }
#endif
    return op->accepted < 0 ? hv_failed_now(op) : HV_DONE;
}

/* A thread blocked in the kernel's accept() cannot be woken on AF_VSOCK, so the handle is always made
 * non-blocking here, whatever another owner has made of it, and the waiting is poll's. */
static hv_status
hv_accept_start(hv_op *op)
{
    hv_status status;
    hv_sockaddr_clear(op->address);
    op->pending.woken_by_name = 1;
    hv_lock_acquire(&op->socket->mode);
    status = hv_accept_attempt(op);
    hv_lock_release(&op->socket->mode);
    return status;
}

/* AF_VSOCK gives up after 2 s by itself: a longer timeout needs the kernel's own to move. */
static int
hv_set_connect_timeout(const hv_op *op)
{
#ifdef SO_VM_SOCKETS_CONNECT_TIMEOUT
    if (op->timeout > 0 && op->address->u.any.sa_family == AF_VSOCK) {
        int64_t us = op->timeout / 1000 + 1;
        struct timeval limit = {us / 1000000, us % 1000000};
        return setsockopt(op->handle, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit, sizeof limit);
    }
#endif
    (void)op;
    return 0;
}

static hv_status
hv_connect_attempt(hv_op *op)
{
    int error = 0;
    socklen_t length = sizeof error;
    if (op->pending.phase == HV_CONNECT_PENDING) {
        return HV_BLOCKED; /* interrupted while waiting */
    }
    if (op->pending.phase == HV_CONNECT_SETTLED) {
        return getsockopt(op->handle, SOL_SOCKET, SO_ERROR, &error, &length) != 0 ? hv_failed_now(op)
               : error != 0                                                       ? hv_failed(op, error)
                                                                                  : HV_DONE;
    }
    if (hv_set_connect_timeout(op) != 0) {
        return hv_failed_now(op);
    }
    if (connect(op->handle, &op->address->u.any, op->address->length) == 0) {
        return HV_DONE;
    }
    op->error = errno;
    if (op->error == EINPROGRESS || op->error == EINTR) { /* EINTR: it goes on by itself */
        op->error = EINPROGRESS;
        op->pending.phase = HV_CONNECT_PENDING;
        return HV_BLOCKED;
    }
    if (op->error == EAGAIN) { /* AF_UNIX: the backlog is full, and nothing tells when it is not */
        op->pending.pause = op->pending.pause == 0         ? 1000000
                            : op->pending.pause < 16000000 ? 2 * op->pending.pause
                                                           : op->pending.pause;
        return HV_BLOCKED;
    }
    return HV_FAILED;
}

/* As for accept, but for the time of the call. */
static hv_status
hv_connect_start(hv_op *op)
{
    hv_status status;
    int blocking;
    op->pending.woken_by_name = 1;
    hv_lock_acquire(&op->socket->mode);
    blocking = hv_cell_get(&op->socket->timeout) < 0;
    if (hv_set_nonblocking(op->handle, 1) != 0) {
        status = hv_failed_now(op);
    } else {
        status = hv_connect_attempt(op);
    }
    if (blocking) {
        hv_set_nonblocking(op->handle, 0);
    }
    hv_lock_release(&op->socket->mode);
    return status;
}

/* ---- waiting ---- */

/* What to do first about a receive whose data cannot be there yet. */
static inline hv_status
hv_expect(const hv_op *op)
{
    return op->waits ? HV_BLOCKED : HV_READY;
}

/* An attempt after another transfer of the same operation. A signal may have come meanwhile, and nothing
 * would wake the thread for it again: HV_INTERRUPTED, before it sleeps. */
static hv_status
hv_go_on(hv_op *op)
{
    hv_status status = hv_brief_start(op);
    return hv_op_goes_on(op, status) ? HV_INTERRUPTED : status;
}

/* About a microsecond. */
#define HV_TRIES_BETWEEN_YIELDS 4

/* Tries for so many nanoseconds; what comes of it is said as by hv_go_on. Yields now and then: the peer may
 * be waiting for this very core. */
static hv_status
hv_spin(hv_op *op, int64_t ns)
{
    int64_t left = hv_time_left(op), last = hv_now(), until = last + (left >= 0 && left < ns ? left : ns);
    hv_status status;
    unsigned tries = 0;
    op->spun = 1;
    for (;;) {
        status = hv_go_on(op);
        if (status != HV_INTERRUPTED || !hv_spin_goes_on(op, &last, until)) {
            return status;
        }
        if (++tries % HV_TRIES_BETWEEN_YIELDS == 0) {
            sched_yield();
            if (!hv_spin_goes_on(op, &last, until)) {
                return HV_INTERRUPTED;
            }
        }
    }
}

static int
hv_wake_open(int wake[2])
{
#ifdef __linux__
    wake[0] = wake[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return wake[0] < 0 ? -1 : 0;
#else
    if (pipe(wake) != 0) {
        return -1;
    }
    fcntl(wake[0], F_SETFD, FD_CLOEXEC);
    fcntl(wake[1], F_SETFD, FD_CLOEXEC);
    return 0;
#endif
}

static void
hv_wake_close(int wake[2])
{
    if (wake[1] != wake[0]) {
        close(wake[1]);
    }
    close(wake[0]);
}

static void
hv_wake_one(hv_op *op)
{
    uint64_t one = 1;
    ssize_t n = write(op->pending.wake[1], &one, sizeof one);
    (void)n; /* can only fail if it is signalled already */
}

/* Releases what the handle stands for, and keeps its number from becoming another file: it leads nowhere until it
 * is closed. Without a descriptor to spare for a moment, all of it waits for that. */
static void
hv_lead_nowhere(hv_handle handle)
{
    int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (nowhere >= 0) {
        if (dup2(nowhere, handle) >= 0) {
            fcntl(handle, F_SETFD, FD_CLOEXEC);
        }
        close(nowhere);
    }
}

/* Wakes what is inside the shut gate. Data calls may be blocked in the kernel itself: only shutdown()
 * reaches those. A listener is spared, since other processes may share it and accept() polls. The calls that were
 * woken may need some time to leave: nobody who binds or forks after close() shall meet the socket until then. */
static void
hv_wake_all(hv_socket *s)
{
    int listening = 0;
    socklen_t length = sizeof listening;
    if (getsockopt(s->handle, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || !listening) {
        shutdown(s->handle, SHUT_RDWR);
    }
    hv_waiting_wake(s, hv_wake_one);
    hv_lead_nowhere(s->handle);
    hv_lock_acquire(&s->lock);
    while (s->waiting != NULL) { /* each has a hold on the socket as long as it polls */
        hv_cond_wait(&s->emptied, &s->lock, 1000000000);
    }
    hv_lock_release(&s->lock);
}

/* Milliseconds for poll, rounded up; -1 for ever. */
static int
hv_poll_timeout(int64_t ns)
{
    int64_t ms = ns / 1000000 + (ns % 1000000 != 0);
    return ns < 0 ? -1 : ms > INT_MAX ? INT_MAX : (int)ms;
}

/* ns after which a send that waits for room is tried again. If a peer is gone while there is something left to
 * read, virtio's AF_VSOCK never says that it is writable, and send() alone says why. */
#define HV_SEND_RETRY 1000000000

/* The ns after which to try again, whatever poll says; < 0: it is to be believed. */
static int64_t
hv_retry_after(const hv_op *op)
{
    return op->pending.pause > 0 ? op->pending.pause : op->writes && !op->pending.woken_by_name ? HV_SEND_RETRY : -1;
}

static hv_status
hv_poll(hv_op *op, struct pollfd fds[2])
{
    int64_t left = hv_time_left(op), retry = hv_retry_after(op);
    int n;
    if (left == 0) {
        return HV_TIMED_OUT;
    }
    if (retry >= 0 && (left < 0 || retry < left)) {
        left = retry;
    }
    n = poll(fds, 2, hv_poll_timeout(left));
    if (n < 0) {
        return hv_failed_now(op);
    }
    if (fds[1].revents != 0) {
        return hv_failed(op, HV_ERROR_CLOSED);
    }
    if (n > 0 && op->pending.phase == HV_CONNECT_PENDING) {
        op->pending.phase = HV_CONNECT_SETTLED;
    }
    if (n > 0) {
        return HV_READY;
    }
    /* A signal that came between two polls has woken none of them: it is looked at before the next try. After a
     * detach() there is no way back to it. */
    return retry < 0 ? HV_BLOCKED : hv_gate_is_open(&op->socket->gate) ? HV_INTERRUPTED : HV_READY;
}

/* HV_READY, or why not. HV_BLOCKED: poll's own limit passed before the deadline; call it again. */
static hv_status
hv_wait(hv_socket *s, hv_op *op)
{
    struct pollfd fds[2] = {{op->pending.pause > 0 ? -1 : op->handle, op->writes ? POLLOUT : POLLIN, 0},
                            {-1, POLLIN, 0}};
    hv_status status;
    if (!op->pending.woken_by_name) {
        return hv_poll(op, fds);
    }
    if (hv_wake_open(op->pending.wake) != 0) {
        return hv_failed_now(op);
    }
    fds[1].fd = op->pending.wake[0];
    status = hv_waiting_add(s, op) ? hv_poll(op, fds) : hv_failed(op, HV_ERROR_CLOSED);
    hv_waiting_remove(s, op);
    hv_wake_close(op->pending.wake);
    return status;
}

#endif
