/* What a thread of the relay's engine waits with: epoll. Edge-triggered but for listeners: a socket is reported once when
 * something about it changes. */
#ifndef HV_POLLER_H
#define HV_POLLER_H

#include <sys/epoll.h>
#include <sys/eventfd.h>

#define HV_POLLER_MOST 64 /* events of one wait */

typedef struct {
    int epoll, wake;
} hv_poller;

typedef struct epoll_event hv_event;

#define HV_EVENT_WAKE 0                                          /* the token of hv_poller_wake() */
#define HV_EVENT_IN (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR) /* there is something to receive, or the end */
#define HV_EVENT_OUT (EPOLLOUT | EPOLLHUP | EPOLLERR)            /* it takes something */
#define HV_EVENT_CLOSING (EPOLLRDHUP | EPOLLHUP | EPOLLERR)      /* the peer sends nothing more */
#define HV_EVENT_BROKEN (EPOLLHUP | EPOLLERR)                    /* it may have an error */

static inline int
hv_event_is(const hv_event *event, uint32_t kind)
{
    return (event->events & kind) != 0;
}

static inline uint64_t
hv_event_token(const hv_event *event)
{
    return event->data.u64;
}

/* 0, or the error; to be closed in either case. */
static int
hv_poller_open(hv_poller *poller)
{
    hv_event event = {EPOLLIN, {.u64 = HV_EVENT_WAKE}};
    poller->epoll = epoll_create1(EPOLL_CLOEXEC);
    poller->wake = poller->epoll < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return poller->wake >= 0 && epoll_ctl(poller->epoll, EPOLL_CTL_ADD, poller->wake, &event) == 0 ? 0 : errno;
}

static void
hv_poller_close(hv_poller *poller)
{
    if (poller->wake >= 0) {
        close(poller->wake);
    }
    if (poller->epoll >= 0) {
        close(poller->epoll);
    }
}

/* For any thread. */
static void
hv_poller_wake(hv_poller *poller)
{
    uint64_t one = 1;
    ssize_t n = write(poller->wake, &one, sizeof one);
    (void)n;
}

/* What has woken it is about to be looked at. */
static void
hv_poller_clear(hv_poller *poller)
{
    uint64_t count;
    ssize_t n = read(poller->wake, &count, sizeof count);
    (void)n;
}

/* 0, or the error. Closing the handle ends it. */
static int
hv_poller_watch(hv_poller *poller, hv_handle handle, uint64_t token)
{
    hv_event event = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.u64 = token}};
    return epoll_ctl(poller->epoll, EPOLL_CTL_ADD, handle, &event) == 0 ? 0 : errno;
}

/* One of the threads that listen is woken for a client, and again while there is one. */
static void
hv_poller_listen(hv_poller *poller, hv_handle listener, uint64_t token, int on)
{
    hv_event event = {EPOLLIN | EPOLLEXCLUSIVE, {.u64 = token}};
    epoll_ctl(poller->epoll, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listener, &event);
}

/* Waits for so many ms at most, or for ever if < 0; how many events there are, 0 after an error. */
static int
hv_poller_wait(hv_poller *poller, hv_event *events, int ms)
{
    int n = epoll_wait(poller->epoll, events, HV_POLLER_MOST, ms);
    return n < 0 ? 0 : n;
}

#endif
