/* What a thread of the relay's engine waits with on Windows: an I/O completion port, which says which operations have
 * ended. A handle belongs to one port for ever. */
#ifndef HV_PORT_H
#define HV_PORT_H

#define HV_POLLER_MOST 64 /* events of one wait */

#define HV_FIRST 512 /* bytes that a pending receive has: a connection that says nothing takes no more */

/* An operation. While it is pending, what it was given is the system's. */
typedef struct {
    OVERLAPPED overlapped;
    int is_pending;
} hv_transfer;

/* A wait until the peer of a pipe has read all of it, in a thread of the system. */
typedef struct {
    HANDLE pipe; /* a copy */
    HANDLE port; /* which is told so, as of an operation with this: */
    ULONG_PTR token;
    OVERLAPPED *overlapped;
    hv_word state;
} hv_flush;

/* The next client of a listener. */
typedef struct {
    hv_transfer transfer;
    int family; /* 0: the port does not know the listener yet */
    hv_handle client;
    char addresses[2 * (sizeof(hv_sockaddr_hyperv) + 16)]; /* AcceptEx writes them here; they are not read */
} hv_accepting;

typedef struct {
    HANDLE port;
    hv_accepting accepting[HV_MOST_LISTENERS];
} hv_poller;

/* The other end of a pipe is closed. */
static inline int
hv_error_is_pipe(int error)
{
    return error == ERROR_BROKEN_PIPE || error == ERROR_NO_DATA || error == ERROR_PIPE_NOT_CONNECTED;
}

typedef OVERLAPPED_ENTRY hv_event;

#define HV_EVENT_WAKE 0 /* the token of hv_poller_wake() */

static inline uint64_t
hv_event_token(const hv_event *event)
{
    return event->lpCompletionKey;
}

/* 0, or the error; to be closed in either case. */
static int
hv_poller_open(hv_poller *poller)
{
    memset(poller, 0, sizeof *poller);
    poller->port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, 1);
    return poller->port != NULL ? 0 : (int)GetLastError();
}

static void
hv_poller_close(hv_poller *poller)
{
    if (poller->port != NULL) {
        CloseHandle(poller->port);
    }
}

/* For any thread. */
static void
hv_poller_wake(hv_poller *poller)
{
    PostQueuedCompletionStatus(poller->port, 0, HV_EVENT_WAKE, NULL);
}

/* 0, or the error. */
static int
hv_poller_watch(hv_poller *poller, hv_handle handle, uint64_t token)
{
    return CreateIoCompletionPort((HANDLE)handle, poller->port, (ULONG_PTR)token, 0) != NULL ? 0 : (int)GetLastError();
}

/* Waits for so many ms at most, or for ever if < 0; how many events there are, 0 after an error. */
static int
hv_poller_wait(hv_poller *poller, hv_event *events, int ms)
{
    ULONG n = 0;
    return GetQueuedCompletionStatusEx(poller->port, events, HV_POLLER_MOST, &n, (DWORD)ms, FALSE) ? (int)n : 0;
}

static int
hv_poll_timeout(int64_t ns)
{
    return (int)hv_milliseconds(ns, INT_MAX);
}

#endif
