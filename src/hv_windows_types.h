/* The platform's types on Windows. */
#ifndef HV_WINDOWS_TYPES_H
#define HV_WINDOWS_TYPES_H

#include <limits.h>
#include <stdint.h>
#include <winsock2.h>
/* winsock2.h first */
#include <mswsock.h>
#include <windows.h>

#include "hv_address.h"

typedef SOCKET hv_handle;
typedef WSABUF hv_iovec;
typedef SRWLOCK hv_lock;
typedef CONDITION_VARIABLE hv_cond;

#define HV_NO_HANDLE INVALID_SOCKET
#define HV_IO_MAX ((size_t)INT_MAX)
#define HV_BRIEF_MAX 0 /* every call releases the GIL */
#define HV_ERROR_CLOSED WSAENOTSOCK
#define HV_ERROR_WOULD_BLOCK WSAEWOULDBLOCK
#define HV_ERROR_TOO_LONG WSAEMSGSIZE
#define HV_ERROR_TIMED_OUT WSAETIMEDOUT
#define HV_ERROR_NO_MEMORY WSA_NOT_ENOUGH_MEMORY
#define HV_ERROR_CANCELED WSA_OPERATION_ABORTED

/* No call waits in the system: what is pending, or has no room, must be waited for here. */
#define HV_WAITS(timeout) ((timeout) != 0)

/* AcceptEx wants 16 bytes more than an address has, for each of the two. */
#define HV_ACCEPT_SLOT ((DWORD)sizeof(hv_sockaddr_hyperv) + 16)

/* A connect is on the heap: if the system does not let go of it when it is cancelled, it outlives its call. */
typedef struct hv_connecting hv_connecting;

struct hv_connecting {
    OVERLAPPED overlapped;
    HANDLE event; /* NULL until it outlives its call: then it has the event of that thread */
    hv_handle handle;
    hv_connecting *next;
};

/* Set before hv_platform_init(), by what knows Python; CPython's. NULL: no call is ended by Ctrl-C. */
static int (*hv_is_main_thread)(void); /* whether signal handlers run in this thread; called with the GIL */
static HANDLE hv_sigint_event;         /* set by the SIGINT handler */

typedef enum { HV_TRANSFER, HV_SEND_PENDING, HV_ACCEPT, HV_CONNECT } hv_kind;

typedef struct {
    hv_kind kind;
    OVERLAPPED *overlapped; /* of what is pending; NULL: nothing is */
    HANDLE event;           /* of this thread, which has one operation at a time */
    hv_connecting *connecting;
    int watches_sigint;
    int writable; /* a wait has just said that there is room */
    DWORD pause;  /* ms; grows while that is not true */
    OVERLAPPED own;
    char room[2 * (sizeof(hv_sockaddr_hyperv) + 16)]; /* AcceptEx writes addresses here, which are not read */
} hv_pending;

static inline int
hv_forbids_waiting(int flags)
{
    (void)flags; /* Winsock has no such flag */
    return 0;
}

static inline void
hv_pending_begin(hv_pending *pending)
{
    pending->watches_sigint = hv_is_main_thread != NULL && hv_is_main_thread();
}

static inline void
hv_pending_init(hv_pending *pending)
{
    pending->kind = HV_TRANSFER;
    pending->overlapped = NULL;
    pending->event = NULL;
    pending->connecting = NULL;
    pending->writable = 0;
    pending->pause = 0;
}

#endif
