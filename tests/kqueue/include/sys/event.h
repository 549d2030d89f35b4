/* The part of kqueue that src/hv_poller_kqueue.h uses, made of epoll. A queue is an epoll descriptor, which has all of its state:
 * as with kqueue, closing a socket ends its events, and closing the queue ends all of them.
 *
 * Differences: both filters of a socket have the same udata, and are added in the order EVFILT_READ, EVFILT_WRITE; what is
 * not EVFILT_USER has a udata; a send filter does not report the socket's own shutdown(). */
#ifndef KQUEUE_SYS_EVENT_H
#define KQUEUE_SYS_EVENT_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

#define EVFILT_READ (-1)
#define EVFILT_WRITE (-2)
#define EVFILT_USER (-10)
#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_CLEAR 0x0020
#define EV_EOF 0x8000
#define NOTE_TRIGGER 0x01000000

struct kevent {
    uintptr_t ident;
    int16_t filter;
    uint16_t flags;
    uint32_t fflags;
    intptr_t data;
    void *udata;
};

/* Always readable, in every queue: EVFILT_USER is one more look at it. */
static int kqueue_ready = -1;

/* When the extension is loaded: what a test counts must not become one more by the first queue. */
__attribute__((constructor)) static void
kqueue_begin(void)
{
    kqueue_ready = eventfd(1, EFD_CLOEXEC);
}

static inline int
kqueue(void)
{
    return epoll_create1(0);
}

static inline int
kqueue_change(int queue, const struct kevent *change)
{
    int is_user = change->filter == EVFILT_USER, is_new = change->filter != EVFILT_WRITE && change->flags & EV_ADD;
    int handle = is_user ? kqueue_ready : (int)change->ident;
    int verb = change->flags & EV_DELETE ? EPOLL_CTL_DEL : is_new ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    struct epoll_event event = {0, {.ptr = change->udata}};
    if (is_user) {
        event.events = change->fflags & NOTE_TRIGGER ? EPOLLIN : 0;
    } else {
        event.events = change->filter == EVFILT_WRITE ? EPOLLIN | EPOLLRDHUP | EPOLLOUT : EPOLLIN | EPOLLRDHUP;
    }
    if (is_user || change->flags & EV_CLEAR) {
        event.events |= EPOLLET;
    }
    return epoll_ctl(queue, verb, handle, &event);
}

/* Up to two for each of epoll's. First that of the send filter: of a connect that failed, the other one is late. */
static inline int
kqueue_events_of(const struct epoll_event *from, struct kevent *to)
{
    const uint32_t broken = EPOLLHUP | EPOLLERR;
    int n = 0;
    if (from->data.ptr == NULL) {
        to[n++] = (struct kevent){.filter = EVFILT_USER};
        return n;
    }
    if (from->events & (EPOLLOUT | broken)) {
        to[n++] = (struct kevent){
            .filter = EVFILT_WRITE, .flags = from->events & broken ? EV_EOF : 0, .udata = from->data.ptr};
    }
    if (from->events & (EPOLLIN | EPOLLRDHUP | broken)) {
        to[n++] = (struct kevent){
            .filter = EVFILT_READ, .flags = from->events & (EPOLLRDHUP | broken) ? EV_EOF : 0, .udata = from->data.ptr};
    }
    return n;
}

static inline int
kevent(int queue, const struct kevent *changes, int change_count, struct kevent *events, int room,
       const struct timespec *limit)
{
    struct epoll_event found[64];
    int i, n, count = 0, most = room / 2 < 64 ? room / 2 : 64;
    for (i = 0; i < change_count; i++) {
        if (kqueue_change(queue, &changes[i]) != 0) {
            return -1;
        }
    }
    if (room == 0) {
        return 0;
    }
    n = epoll_wait(queue, found, most, limit == NULL ? -1 : (int)(limit->tv_sec * 1000 + limit->tv_nsec / 1000000));
    for (i = 0; i < n; i++) {
        count += kqueue_events_of(&found[i], &events[count]);
    }
    return n < 0 ? -1 : count;
}

#endif
