/* The platform seam on Windows: start an overlapped operation; if it is pending, wait for its event
 * and for Ctrl-C, and cancel it by name on a timeout or close. On a non-blocking socket (timeout 0)
 * the plain calls are used, which report WSAEWOULDBLOCK. */
#ifndef HV_WINDOWS_H
#define HV_WINDOWS_H

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
#define HV_ERROR_CLOSED WSAENOTSOCK
#define HV_ERROR_WOULD_BLOCK WSAEWOULDBLOCK
#define HV_ERROR_TOO_LONG WSAEMSGSIZE
/* Whatever is pending must be waited for. */
#define HV_WAITS(timeout) ((timeout) != 0)

/* hvsocket.h, which not every SDK has in full */
#define HV_HVSOCKET_CONNECT_TIMEOUT 0x01
#define HV_HVSOCKET_CONNECT_TIMEOUT_MAX 300000
#define HV_HVSOCKET_CONNECTED_SUSPEND 0x04

typedef struct {
    OVERLAPPED overlapped;
    HANDLE event; /* of this thread; a thread has one operation at a time */
    void (*finish)(hv_handle handle, hv_handle accepted, hv_sockaddr *address, char *room, int *error);
    int creates; /* an accept: op->accepted is ours to close if it fails */
    /* AcceptEx writes both addresses here and wants 16 bytes more for each. */
    char room[2 * (sizeof(hv_sockaddr_hyperv) + 16)];
} hv_pending;

static inline void
hv_pending_init(hv_pending *pending)
{
    pending->event = NULL;
    pending->finish = NULL;
    pending->creates = 0;
}

static inline void
hv_lock_acquire(hv_lock *lock)
{
    AcquireSRWLockExclusive(lock);
}

static inline void
hv_lock_release(hv_lock *lock)
{
    ReleaseSRWLockExclusive(lock);
}

static inline void
hv_cond_init(hv_cond *cond)
{
    InitializeConditionVariable(cond);
}

static inline void
hv_cond_destroy(hv_cond *cond)
{
    (void)cond;
}

static inline void
hv_cond_wake_all(hv_cond *cond)
{
    WakeAllConditionVariable(cond);
}

/* Waits for hv_cond_wake_all, for so many nanoseconds at most, or for less than that. */
static inline void
hv_cond_wait(hv_cond *cond, hv_lock *lock, int64_t ns)
{
    SleepConditionVariableSRW(cond, lock, (DWORD)(ns / 1000000 + 1), 0);
}

#include "hv_op.h"

/* Held while an import sets what all interpreters share, without calling Python. */
static hv_lock hv_once = SRWLOCK_INIT;

static DWORD hv_event_slot = FLS_OUT_OF_INDEXES;
static HANDLE hv_sigint_event;       /* CPython's, set by its SIGINT handler; NULL if it has none */
static unsigned long hv_main_thread; /* the only thread that runs signal handlers */

static void WINAPI
hv_event_free(void *event)
{
    if (event != NULL) {
        CloseHandle(event);
    }
}

static HANDLE
hv_thread_event(void)
{
    HANDLE event = FlsGetValue(hv_event_slot);
    if (event == NULL) {
        event = CreateEventW(NULL, TRUE, FALSE, NULL);
        if (event != NULL && !FlsSetValue(hv_event_slot, event)) {
            CloseHandle(event);
            event = NULL;
        }
    }
    return event;
}

/* CPython exports the event that its own sleep waits for, but not in the stable ABI: it is looked up
 * in the library that PyLong_Type really lives in. Without it, Ctrl-C waits for the call to end. */
static void
hv_find_sigint_event(void)
{
    typedef HANDLE (*event_getter)(void);
    HMODULE python;
    FARPROC found = NULL;
    if (GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                           (LPCWSTR)(void *)&PyLong_Type, &python)) {
        found = GetProcAddress(python, "_PyOS_SigintEvent");
    }
    if (found != NULL) {
        hv_sigint_event = ((event_getter)(void (*)(void))found)();
    }
}

static PyObject *
hv_raise_error(int error)
{
    return PyErr_SetExcFromWindowsErr(PyExc_OSError, error);
}

static int
hv_platform_init(void)
{
    PyObject *threading = PyImport_ImportModule("threading");
    PyObject *main_thread = threading == NULL ? NULL : PyObject_CallMethod(threading, "main_thread", NULL);
    PyObject *ident = main_thread == NULL ? NULL : PyObject_GetAttrString(main_thread, "ident");
    unsigned long main_id = ident == NULL ? 0 : PyLong_AsUnsignedLong(ident);
    DWORD error = 0;
    Py_XDECREF(threading);
    Py_XDECREF(main_thread);
    Py_XDECREF(ident);
    if (PyErr_Occurred()) {
        return -1;
    }
    hv_lock_acquire(&hv_once);
    if (hv_event_slot == FLS_OUT_OF_INDEXES) {
        hv_main_thread = main_id;
        hv_find_sigint_event();
        hv_event_slot = FlsAlloc(hv_event_free);
        error = hv_event_slot == FLS_OUT_OF_INDEXES ? GetLastError() : 0;
    }
    hv_lock_release(&hv_once);
    if (error != 0) {
        hv_raise_error((int)error);
        return -1;
    }
    return 0;
}

/* Ctrl-C is the main thread's, as everywhere in Python. */
static inline int
hv_watches_sigint(void)
{
    return hv_sigint_event != NULL && GetCurrentThreadId() == hv_main_thread;
}

static inline int
hv_error_is_not_yet(int error)
{
    return error == WSAEWOULDBLOCK || error == WSAEINPROGRESS;
}

/* Hyper-V sockets have been seen to fail without an error (moby/vpnkit pull 83, while a VM reboots):
 * reported as the network being down, which is transient. */
static int
hv_last_error(void)
{
    int error = WSAGetLastError();
    return error != 0 ? error : WSAENETDOWN;
}

static inline int
hv_error_is_reset(int error)
{
    return error == WSAECONNRESET;
}

static inline void
hv_iovec_set(hv_iovec *iov, void *base, size_t length)
{
    iov->buf = base;
    iov->len = (ULONG)(length > HV_IO_MAX ? HV_IO_MAX : length);
}

static inline size_t
hv_total(const hv_op *op)
{
    size_t i, total = 0;
    for (i = 0; i < op->count; i++) {
        total += op->buffers[i].len;
    }
    return total;
}

static int64_t
hv_now(void)
{
    LARGE_INTEGER frequency, ticks;
    QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&ticks);
    return ticks.QuadPart / frequency.QuadPart * 1000000000 +
           ticks.QuadPart % frequency.QuadPart * 1000000000 / frequency.QuadPart;
}

static void
hv_socket_init(hv_socket *s)
{
    InitializeSRWLock(&s->lock);
    InitializeSRWLock(&s->mode);
    hv_cond_init(&s->emptied);
    s->sending = s->receiving = (hv_turn){0, 0, 0, NULL};
    s->waiting = NULL;
}

static inline void
hv_socket_sync(hv_socket *s)
{
    (void)s; /* no fork here */
}

static inline void
hv_release_mode(hv_socket *s)
{
    (void)s; /* the mode of the handle is never touched here */
}

static int
hv_close(hv_handle handle)
{
    const struct linger none = {0, 0};
    int error = closesocket(handle) == 0 ? 0 : hv_last_error();
    if (error == WSAEWOULDBLOCK) { /* it lingers, and a non-blocking handle does not wait: it is still open */
        setsockopt(handle, SOL_SOCKET, SO_LINGER, (const char *)&none, sizeof none);
        error = closesocket(handle) == 0 ? 0 : hv_last_error();
    }
    return error;
}

/* ---- attempts ---- */

/* No flag keeps a call from blocking here, whatever mode another owner of the handle has put it in. */
static inline int
hv_is_brief(size_t length)
{
    (void)length;
    return 0;
}

static inline hv_status
hv_brief_start(hv_op *op)
{
    (void)op;
    return HV_READY;
}

/* Errors of AcceptEx that are of the client, which has gone already, and not of the listener. */
static inline int
hv_error_is_of_client(int error)
{
    return error == WSAECONNRESET || error == WSAECONNABORTED || error == ERROR_NETNAME_DELETED;
}

static hv_status
hv_failed(hv_op *op, int error)
{
    int accepts = op->pending.creates;
    if (accepts) {
        closesocket(op->accepted);
        op->accepted = INVALID_SOCKET;
        op->pending.creates = 0;
    }
    op->error = error;
    if (error == WSAEINTR || (accepts && hv_error_is_of_client(error))) {
        return HV_INTERRUPTED;
    }
    /* An overlapped call means something else by it: too many are outstanding, and this one is not. */
    return error == WSAEWOULDBLOCK && op->timeout == 0 ? HV_BLOCKED : HV_FAILED;
}

static hv_status
hv_failed_now(hv_op *op)
{
    return hv_failed(op, hv_last_error());
}

static hv_status
hv_finished(hv_op *op, DWORD n)
{
    int error = 0;
    op->result = n;
    if (op->pending.finish != NULL) {
        op->pending.finish(op->handle, op->accepted, op->address, op->pending.room, &error);
    }
    return error == 0 ? HV_DONE : hv_failed(op, error);
}

/* What a call with or without an OVERLAPPED has come to. */
static hv_status
hv_started(hv_op *op, int ok, DWORD n)
{
    int error;
    if (ok) {
        return hv_finished(op, n);
    }
    error = hv_last_error();
    if (error == WSA_IO_PENDING) {
        op->error = error;
        return HV_BLOCKED;
    }
    return hv_failed(op, error);
}

/* Sets the OVERLAPPED for this attempt, NULL on a non-blocking socket; false if there is no event for it.
 * The low bit of the event keeps the completion out of a completion port that the handle may be tied to
 * (asyncio's): see GetQueuedCompletionStatus. */
static int
hv_overlap(hv_op *op, OVERLAPPED **overlapped)
{
    *overlapped = NULL;
    if (op->timeout == 0) {
        return 1;
    }
    op->pending.event = hv_thread_event();
    if (op->pending.event == NULL) {
        return 0;
    }
    *overlapped = &op->pending.overlapped;
    memset(*overlapped, 0, sizeof **overlapped);
    (*overlapped)->hEvent = (HANDLE)((ULONG_PTR)op->pending.event | 1);
    return 1;
}

static hv_status
hv_recv_start(hv_op *op)
{
    DWORD n = 0, flags = (DWORD)op->flags;
    OVERLAPPED *overlapped;
    int ok = hv_overlap(op, &overlapped) &&
             WSARecv(op->handle, op->buffers, (DWORD)op->count, &n, &flags, overlapped, NULL) == 0;
    return hv_started(op, ok, n);
}

/* Nothing is known of empty sends on a Hyper-V socket, whose end of stream is an empty packet on the
 * wire: they are answered here. */
static hv_status
hv_sendmsg_start(hv_op *op)
{
    DWORD n = 0;
    OVERLAPPED *overlapped;
    int ok = hv_total(op) == 0 || (hv_overlap(op, &overlapped) && WSASend(op->handle, op->buffers, (DWORD)op->count, &n,
                                                                          (DWORD)op->flags, overlapped, NULL) == 0);
    return hv_started(op, ok, n);
}

static hv_status
hv_send_start(hv_op *op)
{
    return hv_sendmsg_start(op);
}

static int
hv_extension(hv_handle handle, GUID id, void *function)
{
    DWORD n;
    return WSAIoctl(handle, SIO_GET_EXTENSION_FUNCTION_POINTER, &id, sizeof id, function, sizeof(void *), &n, NULL,
                    NULL) == 0;
}

static void
hv_accept_finish(hv_handle handle, hv_handle accepted, hv_sockaddr *address, char *room, int *error)
{
    const DWORD slot = sizeof(hv_sockaddr_hyperv) + 16;
    LPFN_GETACCEPTEXSOCKADDRS get_addresses;
    struct sockaddr *local, *remote;
    int local_length, remote_length = 0;
    /* Without it getsockname, getpeername and shutdown fail on the new socket. */
    if (setsockopt(accepted, SOL_SOCKET, SO_UPDATE_ACCEPT_CONTEXT, (char *)&handle, sizeof handle) != 0 ||
        !hv_extension(handle, (GUID)WSAID_GETACCEPTEXSOCKADDRS, &get_addresses)) {
        *error = hv_last_error();
        return;
    }
    get_addresses(room, 0, slot, slot, &local, &local_length, &remote, &remote_length);
    if (remote_length > 0 && (size_t)remote_length <= sizeof address->u) {
        memcpy(&address->u, remote, (size_t)remote_length);
    }
    address->length = remote_length;
}

/* A new socket like the listener; whether it survives a pause of the VM must be set before AcceptEx
 * (as WSL does). The value of an option that fails to be read is 0. */
static hv_handle
hv_accept_socket(hv_handle listener)
{
    ULONG suspend = 0;
    int length = sizeof suspend;
    hv_handle accepted = WSASocketW(HV_AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW, NULL, 0,
                                    WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT);
    if (accepted != INVALID_SOCKET &&
        getsockopt(listener, HV_PROTOCOL_RAW, HV_HVSOCKET_CONNECTED_SUSPEND, (char *)&suspend, &length) == 0 &&
        suspend != 0) {
        setsockopt(accepted, HV_PROTOCOL_RAW, HV_HVSOCKET_CONNECTED_SUSPEND, (char *)&suspend, sizeof suspend);
    }
    return accepted;
}

static hv_status
hv_accept_plain(hv_op *op)
{
    u_long blocking = 0;
    op->accepted = accept(op->handle, &op->address->u.any, &op->address->length);
    if (op->accepted == INVALID_SOCKET) {
        return hv_failed_now(op);
    }
    SetHandleInformation((HANDLE)op->accepted, HANDLE_FLAG_INHERIT, 0);
    ioctlsocket(op->accepted, (long)FIONBIO, &blocking); /* inherited from the listener */
    return HV_DONE;
}

static hv_status
hv_accept_start(hv_op *op)
{
    const DWORD slot = sizeof(hv_sockaddr_hyperv) + 16;
    LPFN_ACCEPTEX accept_ex;
    OVERLAPPED *overlapped;
    DWORD n = 0;
    int ok;
    hv_sockaddr_clear(op->address);
    if (!hv_overlap(op, &overlapped)) {
        return hv_failed_now(op);
    }
    if (overlapped == NULL) {
        return hv_accept_plain(op);
    }
    if (!hv_extension(op->handle, (GUID)WSAID_ACCEPTEX, &accept_ex)) {
        return hv_failed_now(op);
    }
    op->accepted = hv_accept_socket(op->handle);
    if (op->accepted == INVALID_SOCKET) {
        return hv_failed_now(op);
    }
    op->pending.creates = 1;
    op->pending.finish = hv_accept_finish;
    ok = accept_ex(op->handle, op->accepted, op->pending.room, 0, slot, slot, &n, overlapped);
    return hv_started(op, ok, n);
}

static void
hv_connect_finish(hv_handle handle, hv_handle accepted, hv_sockaddr *address, char *room, int *error)
{
    (void)accepted, (void)address, (void)room;
    if (setsockopt(handle, SOL_SOCKET, SO_UPDATE_CONNECT_CONTEXT, NULL, 0) != 0) {
        *error = hv_last_error();
    }
}

/* The provider gives up after about 2 s by itself: a longer timeout needs its own to move. */
static int
hv_set_connect_timeout(const hv_op *op)
{
    int64_t milliseconds = op->timeout / 1000000 + 1;
    ULONG limit = HV_HVSOCKET_CONNECT_TIMEOUT_MAX;
    if (op->timeout < 0) {
        return 0;
    }
    if (milliseconds < limit) {
        limit = (ULONG)milliseconds;
    }
    return setsockopt(op->handle, HV_PROTOCOL_RAW, HV_HVSOCKET_CONNECT_TIMEOUT, (char *)&limit, sizeof limit);
}

/* Ctrl-C leaves its event set, wherever it came: a connect must not be cancelled for one that has passed. */
static int
hv_sigint_is_new(void)
{
    return hv_watches_sigint() && WaitForSingleObject(hv_sigint_event, 0) == WAIT_OBJECT_0 &&
           ResetEvent(hv_sigint_event);
}

static hv_status
hv_connect_start(hv_op *op)
{
    static const hv_sockaddr_hyperv any = {HV_AF_HYPERV, 0, {0}, {0}};
    LPFN_CONNECTEX connect_ex;
    OVERLAPPED *overlapped;
    DWORD n = 0;
    int ok;
    if (!hv_overlap(op, &overlapped)) {
        return hv_failed_now(op);
    }
    if (overlapped == NULL) {
        ok = connect(op->handle, &op->address->u.any, op->address->length) == 0;
        return hv_started(op, ok, 0);
    }
    if (hv_sigint_is_new()) {
        return HV_INTERRUPTED;
    }
    if (hv_set_connect_timeout(op) != 0) {
        return hv_failed_now(op);
    }
    /* ConnectEx wants a bound socket; WSAEINVAL: it is bound already. */
    if (bind(op->handle, (const struct sockaddr *)&any, sizeof any) != 0 && WSAGetLastError() != WSAEINVAL) {
        return hv_failed_now(op);
    }
    if (!hv_extension(op->handle, (GUID)WSAID_CONNECTEX, &connect_ex)) {
        return hv_failed_now(op);
    }
    op->pending.finish = hv_connect_finish;
    ok = connect_ex(op->handle, &op->address->u.any, op->address->length, NULL, 0, &n, overlapped);
    return hv_started(op, ok, n);
}

/* ---- waiting ---- */

/* Cancels a pending operation. While Wine is at work on one it does not find it, and the operation would stay:
 * asked again until it is found or has ended, for some seconds at most. */
static void
hv_wake_one(hv_op *op)
{
    int tries = 1000;
    while (!CancelIoEx((HANDLE)op->handle, &op->pending.overlapped) && GetLastError() == ERROR_NOT_FOUND &&
           !HasOverlappedIoCompleted(&op->pending.overlapped) && --tries > 0) {
        Sleep(1);
    }
}

static void
hv_wake_all(hv_socket *s)
{
    hv_waiting_wake(s, hv_wake_one);
}

/* What to do first about a receive whose data cannot be there yet. */
static inline hv_status
hv_expect(const hv_op *op)
{
    (void)op;
    return HV_READY;
}

/* An attempt after another transfer of the same operation: like the first, since Ctrl-C leaves its event set. */
static hv_status
hv_go_on(hv_op *op)
{
    return op->start(op);
}

/* About a microsecond. */
#define HV_LOOKS_BETWEEN_YIELDS 32

/* Looks for so many nanoseconds whether the operation has ended; hv_wait() is due in any case. */
static hv_status
hv_spin(hv_op *op, int64_t ns)
{
    int64_t left = hv_time_left(op), last = hv_now(), until = last + (left >= 0 && left < ns ? left : ns);
    hv_status status = op->start(op);
    unsigned looks = 0;
    op->spun = 1;
    while (status == HV_BLOCKED && op->waits && !HasOverlappedIoCompleted(&op->pending.overlapped) &&
           hv_spin_goes_on(op, &last, until)) {
        if (++looks % HV_LOOKS_BETWEEN_YIELDS == 0) {
            SwitchToThread(); /* the peer may be waiting for this very core */
            if (!hv_spin_goes_on(op, &last, until)) {
                break;
            }
        } else {
            YieldProcessor();
        }
    }
    return status;
}

/* Milliseconds until the deadline, rounded up, below INFINITE. */
static DWORD
hv_wait_timeout(hv_op *op)
{
    int64_t left = hv_time_left(op);
    if (left < 0) {
        return INFINITE;
    }
    left = left / 1000000 + (left % 1000000 != 0);
    return left < INT_MAX ? (DWORD)left : INT_MAX;
}

/* Waits for the pending operation. Whatever ends the wait, nothing is pending afterwards; what was
 * transferred before a cancellation took effect counts, so nothing is lost. */
static hv_status
hv_wait(hv_socket *s, hv_op *op)
{
    HANDLE events[2] = {op->pending.event, hv_sigint_event};
    DWORD watched = hv_watches_sigint() ? 2 : 1;
    DWORD woken = WAIT_OBJECT_0, n = 0, flags = 0;
    int error, in_time = 1;
    if (!hv_waiting_add(s, op)) {
        hv_wake_one(op); /* close() was here before us */
    }
    do {
        DWORD timeout = hv_wait_timeout(op);
        woken = WaitForMultipleObjects(watched, events, FALSE, timeout);
        in_time = op->timeout < 0 || hv_now() < op->deadline;
    } while (woken == WAIT_TIMEOUT && in_time);
    hv_waiting_remove(s, op);
    if (woken != WAIT_OBJECT_0) {
        hv_wake_one(op);
    }
    if (WSAGetOverlappedResult(op->handle, &op->pending.overlapped, &n, TRUE, &flags)) {
        return hv_finished(op, n);
    }
    error = hv_last_error();
    if (error != WSA_OPERATION_ABORTED) {
        return hv_failed(op, error);
    }
    if (op->pending.overlapped.InternalHigh > 0) { /* cancelled half-way */
        return hv_finished(op, (DWORD)op->pending.overlapped.InternalHigh);
    }
    hv_failed(op, hv_gate_is_open(&s->gate) ? error : HV_ERROR_CLOSED);
    if (woken == WAIT_OBJECT_0 + 1) {
        ResetEvent(hv_sigint_event);
        return HV_INTERRUPTED;
    }
    /* Another thread's call was cancelled: with one receive of a TCP socket Windows cancels all of them. */
    if (woken == WAIT_OBJECT_0 && !op->writes && op->error == error) {
        return HV_INTERRUPTED;
    }
    return woken == WAIT_TIMEOUT ? HV_TIMED_OUT : HV_FAILED;
}

#endif
