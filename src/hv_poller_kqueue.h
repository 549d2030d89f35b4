/* The poller on macOS and FreeBSD: kqueue. A socket has two filters, and each has events of its own, with the same token. */
#ifndef HV_POLLER_KQUEUE_H
#define HV_POLLER_KQUEUE_H

#include <sys/types.h>

#include <sys/event.h>

typedef struct {
    int queue;
} hv_poller;

typedef struct kevent hv_event;

#define HV_EVENT_IN 1U
#define HV_EVENT_OUT 2U
#define HV_EVENT_URGENT HV_EVENT_IN /* always: it does not say */
#define HV_EVENT_CLOSING 4U
#define HV_EVENT_BROKEN 8U

/* That it takes nothing more may be our own doing. */
static inline int
hv_event_is(const hv_event *event, uint32_t kind)
{
    int is_send = event->filter == EVFILT_WRITE;
    uint32_t now = is_send ? HV_EVENT_OUT : HV_EVENT_IN;
    uint32_t end = is_send ? HV_EVENT_BROKEN : HV_EVENT_CLOSING | HV_EVENT_BROKEN;
    return ((event->flags & EV_EOF ? now | end : now) & kind) != 0;
}

static inline uint64_t
hv_event_token(const hv_event *event)
{
    return (uintptr_t)event->udata;
}

static inline hv_event
hv_event_of(uintptr_t ident, short filter, unsigned short flags, uint64_t token)
{
    return (hv_event){.ident = ident, .filter = filter, .flags = flags, .udata = (void *)(uintptr_t)token};
}

static int
hv_poller_change(const hv_poller *poller, const hv_event *changes, int count)
{
    return kevent(poller->queue, changes, count, NULL, 0, NULL) < 0 ? errno : 0;
}

static int
hv_poller_open(hv_poller *poller)
{
    hv_event wake = hv_event_of(0, EVFILT_USER, EV_ADD | EV_CLEAR, HV_EVENT_WAKE);
    poller->queue = kqueue();
    if (poller->queue < 0 || fcntl(poller->queue, F_SETFD, FD_CLOEXEC) != 0) {
        return errno;
    }
    return hv_poller_change(poller, &wake, 1);
}

static void
hv_poller_close(hv_poller *poller)
{
    if (poller->queue >= 0) {
        close(poller->queue);
    }
}

static void
hv_poller_wake(hv_poller *poller)
{
    hv_event wake = hv_event_of(0, EVFILT_USER, 0, HV_EVENT_WAKE);
    wake.fflags = NOTE_TRIGGER;
    hv_poller_change(poller, &wake, 1);
}

static void
hv_poller_clear(hv_poller *poller)
{
    (void)poller; /* EV_CLEAR has done it */
}

static int
hv_poller_watch(hv_poller *poller, hv_handle handle, uint64_t token)
{
    const hv_event changes[] = {
        hv_event_of((uintptr_t)handle, EVFILT_READ, EV_ADD | EV_CLEAR, token),
        hv_event_of((uintptr_t)handle, EVFILT_WRITE, EV_ADD | EV_CLEAR, token),
    };
    return hv_poller_change(poller, changes, 2);
}

/* Every thread that listens is woken for a client. The first one takes it, the others sleep again: a handover from one
 * thread that listens would cost a wake too, and hold up the rest while that thread is busy. */
static void
hv_poller_listen(hv_poller *poller, hv_handle listener, uint64_t token, int on)
{
    hv_event change = hv_event_of((uintptr_t)listener, EVFILT_READ, on ? EV_ADD : EV_DELETE, token);
    hv_poller_change(poller, &change, 1);
}

static int
hv_poller_wait(hv_poller *poller, hv_event *events, int ms)
{
    const struct timespec limit = {ms / 1000, ms % 1000 * 1000000L};
    int n = kevent(poller->queue, NULL, 0, events, HV_POLLER_MOST, ms < 0 ? NULL : &limit);
    return n < 0 ? 0 : n;
}

#endif
