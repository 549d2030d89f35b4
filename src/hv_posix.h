/* The platform seam on POSIX: try the call; on would-block, poll. */
#ifndef HV_POSIX_H
#define HV_POSIX_H

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

/* ---- locks ---- */

static hv_lock hv_once = PTHREAD_MUTEX_INITIALIZER;

static inline void
hv_lock_init(hv_lock *lock)
{
    pthread_mutex_init(lock, NULL);
}

static inline void
hv_lock_destroy(hv_lock *lock)
{
    pthread_mutex_destroy(lock);
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

static inline void
hv_cond_destroy(hv_cond *cond)
{
    pthread_cond_destroy(cond);
}

static inline void
hv_cond_wake_all(hv_cond *cond)
{
    pthread_cond_broadcast(cond);
}

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

static long
hv_thread_id(void)
{
    return (long)pthread_self();
}

static int64_t
hv_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- the process ---- */

/* Counts forks: calls that other threads had inside a socket do not exist in the child. */
static unsigned hv_generation;

static void
hv_count_fork(void)
{
    hv_generation++;
    pthread_mutex_init(&hv_once, NULL); /* another thread may have had it */
}

/* Set for threads that are known to let the wake signal through; see hv_unblock_wake(). */
static pthread_key_t hv_lets_wake;

static int
hv_platform_init(void)
{
    static int done;
    int error = 0;
    hv_lock_acquire(&hv_once);
    if (!done) {
        error = pthread_key_create(&hv_lets_wake, NULL);
        error = error != 0 ? error : pthread_atfork(NULL, NULL, hv_count_fork);
        done = error == 0;
    }
    hv_lock_release(&hv_once);
    return error;
}

/* ---- errors ---- */

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

/* ---- a socket's life ---- */

static void
hv_socket_reset(hv_socket *s)
{
    hv_lock_init(&s->lock);
    hv_cond_init(&s->left);
    s->sending = s->receiving = (hv_turn){0, 0, 0, NULL};
    s->waiting = NULL;
}

static void
hv_socket_init(hv_socket *s)
{
    hv_socket_reset(s);
    s->generation = hv_generation;
}

/* In a forked child, ends the turns of the parent's other threads. What they had begun cannot be continued here: a part
 * of its state is on their stacks. */
static void
hv_forget_turns(hv_socket *s)
{
    long me = hv_thread_id(), sending = s->sending.owner, receiving = s->receiving.owner;
    if (sending != 0 && sending != me) {
        s->out.orphaned = 1;
    }
    if (receiving != 0 && receiving != me) {
        int is_new = s->in.got == 0 && (s->in.state == HV_INBOX_EXACTLY || s->in.header_got == 0);
        s->in.state = is_new ? HV_INBOX_EMPTY : HV_INBOX_LOST;
    }
    hv_socket_reset(s);
    s->sending.owner = sending == me ? me : 0;
    s->receiving.owner = receiving == me ? me : 0;
}

static void
hv_socket_forget_fork(hv_socket *s)
{
    hv_lock_acquire(&hv_once);
    if (s->generation != hv_generation) {
        s->gate &= HV_GATE_OPEN | HV_GATE_DETACHED;
        hv_forget_turns(s);
        __atomic_store_n(&s->generation, hv_generation, __ATOMIC_RELEASE);
    }
    hv_lock_release(&hv_once);
}

static inline void
hv_socket_sync(hv_socket *s)
{
    if (__atomic_load_n(&s->generation, __ATOMIC_ACQUIRE) != hv_generation) {
        hv_socket_forget_fork(s);
    }
}

static inline int
hv_handle_is_usable(hv_handle handle)
{
    (void)handle;
    return 1;
}

static void
hv_hand_over(hv_socket *s)
{
    (void)s; /* the mode is what its timeout says, or what another owner has made of it */
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

/* ---- waking ----
 *
 * A call that sleeps in the kernel is woken by a signal to its thread, as Java's sockets do it: accept() and connect()
 * cannot be ended otherwise on AF_VSOCK, and a poll of a second descriptor would need that descriptor. Go uses SIGURG
 * for its own purposes, too: it is ignored by default, and programs have to expect it at any time. */

static void
hv_on_wake(int number)
{
    (void)number; /* it only has to end the system call */
}

/* A handler of the program's own stays: it ends the call as well, unless it has the call started again. */
static void
hv_install_wake(void)
{
    struct sigaction action;
    if (sigaction(SIGURG, NULL, &action) != 0) {
        return;
    }
    if (!(action.sa_flags & SA_SIGINFO) && (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)) {
        memset(&action, 0, sizeof action);
        action.sa_handler = hv_on_wake;
        action.sa_flags = SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        sigaction(SIGURG, &action, NULL);
    } else if (action.sa_flags & SA_RESTART) {
        action.sa_flags &= ~SA_RESTART;
        sigaction(SIGURG, &action, NULL);
    }
}

/* Lets the signal through to a thread that blocks it, for the time of a wait. True if that has to be undone. Each thread
 * is looked at until it lets the signal through by itself, as nearly all do. */
static int
hv_unblock_wake(sigset_t *before)
{
    sigset_t wake;
    if (pthread_getspecific(hv_lets_wake) != NULL) {
        return 0;
    }
    sigemptyset(&wake);
    sigaddset(&wake, SIGURG);
    if (pthread_sigmask(SIG_UNBLOCK, &wake, before) != 0) {
        return 0;
    }
    if (sigismember(before, SIGURG)) {
        return 1;
    }
    pthread_setspecific(hv_lets_wake, &hv_lets_wake);
    return 0;
}

static void
hv_wake_one(hv_op *op)
{
    pthread_kill(op->pending.thread, SIGURG);
}

/* Data calls may sleep in the kernel without being listed: shutdown() reaches those. A listener is not shut down, since
 * other processes may share it. */
static void
hv_wake_all(hv_socket *s)
{
    int listening = 0;
    socklen_t length = sizeof listening;
    if (getsockopt(s->handle, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || !listening) {
        shutdown(s->handle, SHUT_RDWR);
    }
    hv_install_wake();
    hv_lock_acquire(&s->lock);
    hv_waiting_wake(s, hv_wake_one);
    hv_lock_release(&s->lock);
}

/* A part of an operation that may sleep, so that close() can wake it. */
static hv_status
hv_sleeping(hv_op *op, hv_status (*part)(hv_op *op))
{
    hv_socket *s = op->socket;
    hv_status status;
    sigset_t before;
    int blocked = hv_unblock_wake(&before);
    status = hv_waiting_add(s, op) ? part(op) : hv_op_fail(op, HV_ERROR_CLOSED);
    hv_waiting_remove(s, op);
    if (blocked) {
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    return status;
}

/* ---- attempts ---- */

static inline void
hv_iovec_set(hv_iovec *iov, void *base, size_t length)
{
    iov->iov_base = base;
    iov->iov_len = length;
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

static inline int64_t
hv_recv_once(hv_handle handle, void *to, size_t size, int64_t timeout)
{
    ssize_t n = recv(handle, to, size, timeout < 0 ? 0 : MSG_DONTWAIT);
    return n < 0 ? -(int64_t)errno : n;
}

static inline int64_t
hv_send_once(hv_handle handle, const void *data, size_t size, int64_t timeout)
{
    ssize_t n = send(handle, data, size, timeout < 0 ? MSG_NOSIGNAL : MSG_NOSIGNAL | MSG_DONTWAIT);
    return n < 0 ? -(int64_t)errno : n;
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

/* MSG_DONTWAIT whatever the timeout is. */
static hv_status
hv_try(hv_op *op)
{
    int flags = op->flags;
    hv_status status;
    op->flags = flags | MSG_DONTWAIT;
    status = op->start(op);
    op->flags = flags;
    return status;
}

static inline int
hv_is_readable(hv_handle handle)
{
    struct pollfd fd = {handle, POLLIN, 0};
    return poll(&fd, 1, 0) > 0;
}

static hv_handle
hv_handle_accept(hv_handle listener, struct sockaddr *address, socklen_t *length, int nonblocking)
{
#ifdef HV_LIKE_BSD
    hv_handle handle = accept(listener, address, length);
    if (handle >= 0) {
        fcntl(handle, F_SETFD, FD_CLOEXEC);
        hv_set_nonblocking(handle, nonblocking); /* it has inherited the listener's mode */
    }
    return handle;
#else
    return accept4(listener, address, length, nonblocking ? SOCK_CLOEXEC | SOCK_NONBLOCK : SOCK_CLOEXEC);
#endif
}

static hv_status
hv_accept_now(hv_op *op)
{
    hv_sockaddr_clear(op->address);
    op->accepted = hv_handle_accept(op->handle, &op->address->u.any, &op->address->length, 0);
    return op->accepted < 0 ? hv_failed_now(op) : HV_DONE;
}

static inline int
hv_is_blocking(hv_handle handle)
{
    return !(fcntl(handle, F_GETFL) & O_NONBLOCK);
}

/* accept() has no MSG_DONTWAIT, and another owner may have made the handle blocking: a call that may not wait in the
 * kernel asks only for a client that poll() has seen. If that owner takes the client first, the call sleeps in the
 * kernel, where close() still reaches it. */
static int
hv_may_accept(const hv_op *op)
{
    if (op->pending.polled) {
        return 1;
    }
    if (op->flags & MSG_DONTWAIT || (op->timeout == 0 && hv_is_blocking(op->handle))) {
        return hv_is_readable(op->handle);
    }
    return op->timeout <= 0;
}

static hv_status
hv_accept_start(hv_op *op)
{
    int may_accept = hv_may_accept(op);
    op->pending.polled = 0;
    return may_accept ? hv_sleeping(op, hv_accept_now) : hv_failed(op, EWOULDBLOCK);
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
hv_connect_settled(hv_op *op)
{
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(op->handle, SOL_SOCKET, SO_ERROR, &error, &length) != 0) {
        return hv_failed_now(op);
    }
    return error != 0 ? hv_failed(op, error) : HV_DONE;
}

/* What an errno of connect() means. After a signal, Linux needs another call, and BSD continues by itself. */
static hv_status
hv_connect_failed(hv_op *op, int error)
{
    int was_cut = op->pending.phase == HV_CONNECT_CUT;
    op->error = error;
    if (was_cut && error == EISCONN) {
        return HV_DONE;
    }
    if (error == EINPROGRESS || (was_cut && error == EALREADY)) {
        op->error = EINPROGRESS;
        op->pending.phase = HV_CONNECT_PENDING;
        return HV_BLOCKED;
    }
    if (error == EINTR) {
        op->pending.phase = HV_CONNECT_CUT;
        return HV_INTERRUPTED;
    }
    if (error == EAGAIN) { /* AF_UNIX: the backlog is full, and nothing tells when it is not */
        op->pending.pause = op->pending.pause == 0         ? 1000000
                            : op->pending.pause < 16000000 ? 2 * op->pending.pause
                                                           : op->pending.pause;
        return HV_BLOCKED;
    }
    return HV_FAILED;
}

static hv_status
hv_connect_now(hv_op *op)
{
    return connect(op->handle, &op->address->u.any, op->address->length) == 0 ? HV_DONE : hv_connect_failed(op, errno);
}

#define HV_CONNECT_SLICE 10000 /* us */

/* A handle that another owner has made blocking would wait for room in the backlog of an AF_UNIX listener without end.
 * A socket that is not connected does not use SO_SNDTIMEO yet, so the attempt borrows it. */
static hv_status
hv_connect_in_time(hv_op *op)
{
    const struct timeval slice = {0, HV_CONNECT_SLICE};
    struct timeval before;
    socklen_t length = sizeof before;
    hv_status status;
    if (getsockopt(op->handle, SOL_SOCKET, SO_SNDTIMEO, &before, &length) != 0 ||
        setsockopt(op->handle, SOL_SOCKET, SO_SNDTIMEO, &slice, sizeof slice) != 0) {
        return hv_failed_now(op);
    }
    status = hv_connect_now(op);
    setsockopt(op->handle, SOL_SOCKET, SO_SNDTIMEO, &before, sizeof before);
    return status;
}

static inline int
hv_would_block(const hv_op *op)
{
    return op->timeout >= 0 && op->address->u.any.sa_family == AF_UNIX && hv_is_blocking(op->handle);
}

static hv_status
hv_connect_start(hv_op *op)
{
    if (op->pending.phase == HV_CONNECT_PENDING) {
        return HV_BLOCKED; /* interrupted while waiting */
    }
    if (op->pending.phase == HV_CONNECT_SETTLED) {
        return hv_connect_settled(op);
    }
    if (hv_set_connect_timeout(op) != 0) {
        return hv_failed_now(op);
    }
    return hv_sleeping(op, hv_would_block(op) ? hv_connect_in_time : hv_connect_now);
}

/* ---- waiting ---- */

static inline hv_status
hv_expect(const hv_op *op)
{
    return op->waits ? HV_BLOCKED : HV_READY;
}

static hv_status
hv_continue(hv_op *op)
{
    hv_status status = hv_try(op);
    int is_callers = op->timeout == 0 || op->flags & MSG_DONTWAIT;
    return status == HV_BLOCKED && !is_callers ? HV_AGAIN : status;
}

/* About a microsecond. */
#define HV_TRIES_BETWEEN_YIELDS 4

/* If other threads want this core, spinning is slower than sleeping: a thread that loses the core, or yields it, waits
 * out their time slices. A gap of so many ns between two tries, in which the thread has lost its core, ends the spin,
 * and there is none for so many times the gap: what it loses stays a fiftieth. */
#define HV_GAP 200000
#define HV_GAPS_WITHOUT_SPIN 50
#define HV_SWITCHES_FRESH 1000000 /* ns that a count of switches is good for */

/* How often the kernel has taken this thread's core. In a virtual machine there are gaps that are the hypervisor's,
 * which takes the core of a sleeper as well: those do not count here. */
static int64_t
hv_count_switches(int64_t now)
{
#ifdef RUSAGE_THREAD
    struct rusage usage;
    (void)now;
    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : -1;
#else
    return now; /* not known: every gap is taken for one */
#endif
}

static inline void
hv_look_at_switches(hv_socket *s, int64_t now)
{
    hv_cell_set(&s->switches, hv_count_switches(now));
    hv_cell_set(&s->switches_seen, now);
}

/* Another try of a spin is due; `last` is when the one before was. */
static inline int
hv_spin_continues(hv_socket *s, int64_t *last, int64_t until)
{
    int64_t now = hv_now(), gap = now - *last;
    *last = now;
    if (gap >= HV_GAP) {
        int64_t before = hv_cell_get(&s->switches);
        hv_look_at_switches(s, now);
        if (hv_cell_get(&s->switches) != before) {
            hv_cell_set(&s->no_spin_before, now + HV_GAPS_WITHOUT_SPIN * gap);
            return 0;
        }
    }
    return now < until;
}

/* Yields now and then: the peer may be waiting for this very core. */
static hv_status
hv_spin(hv_op *op, int64_t ns)
{
    hv_socket *s = op->socket;
    int64_t left = hv_op_time_left(op), last = hv_now(), until = last + (left >= 0 && left < ns ? left : ns);
    hv_status status;
    unsigned tries = 0;
    op->spun = 1;
    if (last - hv_cell_get(&s->switches_seen) > HV_SWITCHES_FRESH) {
        hv_look_at_switches(s, last);
    }
    for (;;) {
        status = hv_continue(op);
        if (status != HV_AGAIN || !hv_spin_continues(s, &last, until)) {
            return status;
        }
        if (++tries % HV_TRIES_BETWEEN_YIELDS == 0) {
            sched_yield();
            if (!hv_spin_continues(s, &last, until)) {
                return HV_AGAIN;
            }
        }
    }
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
    int is_send = op->writes && op->pending.phase == HV_CONNECT_NEW;
    return op->pending.pause > 0 ? op->pending.pause : is_send ? HV_SEND_RETRY : -1;
}

/* A signal that came between two polls has woken neither of them: it is looked at before the next try. After detach() the
 * call could not enter the gate again, so it does not leave. */
static hv_status
hv_retry(hv_op *op)
{
    return hv_gate_is_open(&op->socket->gate) ? HV_AGAIN : HV_READY;
}

static hv_status
hv_poll(hv_op *op)
{
    struct pollfd fd = {op->pending.pause > 0 ? -1 : op->handle, op->writes ? POLLOUT : POLLIN, 0};
    int64_t left = hv_op_time_left(op), retry = hv_retry_after(op);
    int n;
    if (left == 0) {
        return HV_TIMED_OUT;
    }
    if (retry >= 0 && (left < 0 || retry < left)) {
        left = retry;
    }
    n = poll(&fd, 1, hv_poll_timeout(left));
    if (n < 0) {
        return hv_failed_now(op);
    }
    if (n == 0) {
        return retry < 0 ? HV_BLOCKED : hv_retry(op);
    }
    op->pending.polled = 1;
    if (op->pending.phase == HV_CONNECT_PENDING) {
        op->pending.phase = HV_CONNECT_SETTLED;
    }
    return HV_READY;
}

static hv_status
hv_wait(hv_socket *s, hv_op *op)
{
    (void)s;
    return hv_sleeping(op, hv_poll);
}

#endif
