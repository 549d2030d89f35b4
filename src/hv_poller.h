/* What a thread of the relay's engine waits with, edge-triggered but for listeners: a socket is reported once when something
 * about it changes. hv_poller_epoll.h and hv_poller_kqueue.h define it:
 *
 *   hv_poller, hv_event
 *   hv_event_is()    whether it says one of
 *     HV_EVENT_IN         there is something to receive, or the end
 *     HV_EVENT_OUT        it takes something; a connect is over
 *     HV_EVENT_URGENT     among it may be urgent data, before which a receive stops
 *     HV_EVENT_CLOSING    the peer sends nothing more
 *     HV_EVENT_BROKEN     it may have an error
 */
#ifndef HV_POLLER_H
#define HV_POLLER_H

#define HV_POLLER_MOST 64 /* events of one wait */
#define HV_EVENT_WAKE 0   /* the token of hv_poller_wake() */

#ifdef HV_LIKE_BSD
#include "hv_poller_kqueue.h"
#else
#include "hv_poller_epoll.h"
#endif

static inline int hv_event_is(const hv_event *event, uint32_t kind);
static inline uint64_t hv_event_token(const hv_event *event); /* what it was watched with */
static int hv_poller_open(hv_poller *poller);                 /* 0, or the error; to be closed in either case */
static void hv_poller_close(hv_poller *poller);
static void hv_poller_wake(hv_poller *poller);  /* for any thread */
static void hv_poller_clear(hv_poller *poller); /* what has woken it is about to be looked at */
/* Until the handle is closed. 0, or the error. */
static int hv_poller_watch(hv_poller *poller, hv_handle handle, uint64_t token);
/* An event as often as it is asked, while there are clients. */
static void hv_poller_listen(hv_poller *poller, hv_handle listener, uint64_t token, int on);
/* Waits for so many ms at most, or for ever if < 0; how many events there are, 0 after an error. */
static int hv_poller_wait(hv_poller *poller, hv_event *events, int ms);

#endif
