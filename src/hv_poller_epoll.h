/* The poller on Linux: epoll. */
#ifndef HV_POLLER_EPOLL_H
#define HV_POLLER_EPOLL_H

#include <sys/epoll.h>
#include <sys/eventfd.h>

typedef struct {
    int epoll, wake;
} hv_poller;

typedef struct epoll_event hv_event;

#define HV_EVENT_IN (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)
#define HV_EVENT_OUT (EPOLLOUT | EPOLLHUP | EPOLLERR)
#define HV_EVENT_URGENT EPOLLPRI
#define HV_EVENT_CLOSING (EPOLLRDHUP | EPOLLHUP | EPOLLERR)
#define HV_EVENT_BROKEN (EPOLLHUP | EPOLLERR)

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

static void
hv_poller_wake(hv_poller *poller)
{
    uint64_t one = 1;
    ssize_t n = write(poller->wake, &one, sizeof one);
    (void)n;
}

static void
hv_poller_clear(hv_poller *poller)
{
    uint64_t count;
    ssize_t n = read(poller->wake, &count, sizeof count);
    (void)n;
}

static int
hv_poller_watch(hv_poller *poller, hv_handle handle, uint64_t token)
{
    hv_event event = {EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET, {.u64 = token}};
    return epoll_ctl(poller->epoll, EPOLL_CTL_ADD, handle, &event) == 0 ? 0 : errno;
}

/* EPOLLEXCLUSIVE: one of the threads that listen is woken for a client. */
static void
hv_poller_listen(hv_poller *poller, hv_handle listener, uint64_t token, int on)
{
    hv_event event = {EPOLLIN | EPOLLEXCLUSIVE, {.u64 = token}};
    epoll_ctl(poller->epoll, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listener, &event);
}

static int
hv_poller_wait(hv_poller *poller, hv_event *events, int ms)
{
    int n = epoll_wait(poller->epoll, events, HV_POLLER_MOST, ms);
    return n < 0 ? 0 : n;
}

#endif
