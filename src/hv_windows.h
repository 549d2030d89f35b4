/* The platform on Windows.
 *
 * Receives, accepts and connects are overlapped: none of them waits in the system, whatever mode the handle is in. What
 * is pending is waited for by its event, together with Ctrl-C, and is cancelled by name on a timeout or by close().
 *
 * A send is never cancelled, because Windows does not tell reliably how much of a cancelled one was sent. On a handle
 * that is non-blocking it is an attempt, which takes what there is room for, and a wait for room. Only on a handle whose
 * mode is not known, that is one taken over from elsewhere without a timeout, a send is overlapped; if Ctrl-C or close()
 * has to cancel it, nothing more is sent. */
#ifndef HV_WINDOWS_H
#define HV_WINDOWS_H

#include <stdlib.h>

/* hvsocket.h, which not every SDK has in full */
#define HV_HVSOCKET_CONNECT_TIMEOUT 0x01
#define HV_HVSOCKET_CONNECT_TIMEOUT_MAX 300000
#define HV_HVSOCKET_CONNECTED_SUSPEND 0x04

/* ---- locks and clocks ---- */

static inline void
hv_lock_init(hv_lock *lock)
{
    InitializeSRWLock(lock);
}

static inline void
hv_lock_destroy(hv_lock *lock)
{
    (void)lock;
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

static void
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

static void
hv_cond_wait(hv_cond *cond, hv_lock *lock, int64_t ns)
{
    SleepConditionVariableSRW(cond, lock, (DWORD)(ns / 1000000 + 1), 0);
}

static long
hv_thread_id(void)
{
    return (long)GetCurrentThreadId();
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

/* ---- the process ---- */

static hv_lock hv_once = SRWLOCK_INIT;

static DWORD hv_event_slot = FLS_OUT_OF_INDEXES;

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

static int
hv_platform_init(void)
{
    DWORD error = 0;
    hv_lock_acquire(&hv_once);
    if (hv_event_slot == FLS_OUT_OF_INDEXES) {
        hv_event_slot = FlsAlloc(hv_event_free);
        error = hv_event_slot == FLS_OUT_OF_INDEXES ? GetLastError() : 0;
    }
    hv_lock_release(&hv_once);
    return (int)error;
}

/* Ctrl-C leaves its event set, even where it was handled long ago: what must not be cancelled for that looks first. */
static int
hv_sigint_is_new(const hv_op *op)
{
    return op->pending.watches_sigint && WaitForSingleObject(hv_sigint_event, 0) == WAIT_OBJECT_0 &&
           ResetEvent(hv_sigint_event);
}

/* ---- errors ---- */

static inline int
hv_error_is_not_yet(int error)
{
    return error == WSAEWOULDBLOCK || error == WSAEINPROGRESS;
}

static inline int
hv_error_is_reset(int error)
{
    return error == WSAECONNRESET;
}

/* Errors of AcceptEx that are of the client, which has gone already, and not of the listener; the last one is Wine's. */
static inline int
hv_error_is_of_client(int error)
{
    return error == WSAECONNRESET || error == WSAECONNABORTED || error == ERROR_NETNAME_DELETED || error == WSAENOTCONN;
}

/* Hyper-V sockets have been seen to fail without an error (moby/vpnkit pull 83, while a VM reboots):
 * reported as the network being down, which is transient. */
static int
hv_last_error(void)
{
    int error = WSAGetLastError();
    return error != 0 ? error : WSAENETDOWN;
}

/* The operation is to be started again, once the signals were looked at. After detach() there is no way back from
 * that. */
static hv_status
hv_again(hv_op *op)
{
    return hv_gate_is_open(&op->socket->gate) ? HV_AGAIN : HV_READY;
}

static void
hv_discard_accepted(hv_op *op)
{
    if (op->accepted != INVALID_SOCKET) {
        closesocket(op->accepted);
        op->accepted = INVALID_SOCKET;
    }
}

/* The client has gone before it was accepted: the next one. */
static hv_status
hv_client_failed(hv_op *op)
{
    hv_discard_accepted(op);
    return op->timeout > 0 && hv_op_time_left(op) == 0 ? HV_TIMED_OUT : hv_again(op);
}

static hv_status
hv_failed(hv_op *op, int error)
{
    int accepts = op->pending.kind == HV_ACCEPT;
    op->error = error;
    if (accepts && hv_error_is_of_client(error)) {
        return hv_client_failed(op);
    }
    hv_discard_accepted(op);
    if (error == WSAEINTR) {
        return HV_INTERRUPTED;
    }
    /* An overlapped call means something else by it: too many are outstanding, and this one is not. */
    return error == WSAEWOULDBLOCK && (op->timeout == 0 || op->writes) ? HV_BLOCKED : HV_FAILED;
}

static hv_status
hv_failed_now(hv_op *op)
{
    return hv_failed(op, hv_last_error());
}

/* ---- connects that outlive their call ---- */

static hv_connecting *hv_outliving; /* guarded by hv_once */

static hv_connecting *
hv_connecting_new(hv_handle handle)
{
    hv_connecting *connecting = calloc(1, sizeof *connecting);
    if (connecting == NULL) {
        SetLastError(WSA_NOT_ENOUGH_MEMORY);
    } else {
        connecting->handle = handle;
    }
    return connecting;
}

/* The connect keeps the thread's event, which it sets one day. */
static void
hv_connecting_outlives(hv_op *op)
{
    hv_connecting *connecting = op->pending.connecting;
    connecting->event = op->pending.event;
    FlsSetValue(hv_event_slot, NULL);
    hv_lock_acquire(&hv_once);
    connecting->next = hv_outliving;
    hv_outliving = connecting;
    hv_lock_release(&hv_once);
    op->pending.connecting = NULL;
    op->pending.overlapped = NULL;
}

/* Frees those that have ended. True if there is one of this handle. */
static int
hv_connecting_is_on(hv_handle handle)
{
    hv_connecting **link = &hv_outliving, *connecting;
    int found = 0;
    hv_lock_acquire(&hv_once);
    while ((connecting = *link) != NULL) {
        if (HasOverlappedIoCompleted(&connecting->overlapped)) {
            *link = connecting->next;
            CloseHandle(connecting->event);
            free(connecting);
        } else {
            found |= connecting->handle == handle;
            link = &connecting->next;
        }
    }
    hv_lock_release(&hv_once);
    return found;
}

/* The handle is going to be closed, which ends its connect; its number may be another socket's before that is seen. */
static void
hv_connecting_forget(hv_handle handle)
{
    hv_connecting *connecting;
    hv_lock_acquire(&hv_once);
    for (connecting = hv_outliving; connecting != NULL; connecting = connecting->next) {
        if (connecting->handle == handle) {
            connecting->handle = INVALID_SOCKET;
        }
    }
    hv_lock_release(&hv_once);
}

/* ---- a socket's life ---- */

static void
hv_socket_init(hv_socket *s)
{
    hv_lock_init(&s->lock);
    hv_cond_init(&s->left);
    s->sending = s->receiving = (hv_turn){0, 0, 0, NULL};
    s->waiting = NULL;
    hv_cell_set(&s->send_lost, 0);
}

static inline void
hv_socket_sync(hv_socket *s)
{
    (void)s; /* no fork here */
}

static void
hv_set_mode(hv_handle handle, u_long nonblocking)
{
    ioctlsocket(handle, (long)FIONBIO, &nonblocking);
}

static void
hv_hand_over(hv_socket *s)
{
    if (hv_cell_get(&s->nonblocking) && hv_cell_get(&s->timeout) < 0) {
        hv_set_mode(s->handle, 0);
    }
}

static int
hv_close(hv_handle handle)
{
    int error;
    hv_connecting_forget(handle);
    error = closesocket(handle) == 0 ? 0 : hv_last_error();
    if (error ==
        WSAEWOULDBLOCK) { /* SO_LINGER asks for a wait, which a non-blocking handle refuses: it is still open */
        hv_set_mode(handle, 0);
        error = closesocket(handle) == 0 ? 0 : hv_last_error();
    }
    return error;
}

/* Without WSA_FLAG_OVERLAPPED the system makes each call wait, in the system, until it has ended. It is told by the
 * mode of the file (FileModeInformation), which the I/O manager knows without asking the provider. */
static inline int
hv_handle_is_usable(hv_handle handle)
{
    typedef LONG(NTAPI * query_function)(HANDLE, void *, void *, ULONG, int);
    enum { FILE_MODE = 16, SYNCHRONOUS_ALERT = 0x10, SYNCHRONOUS_NONALERT = 0x20 };
    HMODULE ntdll = GetModuleHandleW(L"ntdll.dll");
    FARPROC query = ntdll == NULL ? NULL : GetProcAddress(ntdll, "NtQueryInformationFile");
    void *status[2]; /* an IO_STATUS_BLOCK */
    ULONG mode = 0;
    if (query == NULL ||
        ((query_function)(void (*)(void))query)((HANDLE)handle, status, &mode, sizeof mode, FILE_MODE) != 0) {
        return 1;
    }
    return (mode & (SYNCHRONOUS_ALERT | SYNCHRONOUS_NONALERT)) == 0;
}

/* ---- pending operations ---- */

/* Prepares the OVERLAPPED of this attempt; false if there is no event for it. The low bit of the event keeps the
 * completion out of a completion port that the handle may be tied to (asyncio's): see GetQueuedCompletionStatus. */
static int
hv_overlap(hv_op *op, hv_kind kind, OVERLAPPED *overlapped)
{
    op->pending.event = hv_thread_event();
    if (op->pending.event == NULL) {
        return 0;
    }
    op->pending.kind = kind;
    op->pending.overlapped = overlapped;
    memset(overlapped, 0, sizeof *overlapped);
    overlapped->Internal = STATUS_PENDING; /* which a call that is pending sets too, but one in Wine does so late */
    overlapped->hEvent = (HANDLE)((ULONG_PTR)op->pending.event | 1);
    return 1;
}

/* Nothing is pending any more. */
static void
hv_overlap_end(hv_op *op)
{
    free(op->pending.connecting);
    op->pending.connecting = NULL;
    op->pending.overlapped = NULL;
}

static hv_status hv_accept_finish(hv_op *op);
static hv_status hv_connect_finish(hv_op *op);

static hv_status
hv_finished(hv_op *op, DWORD n)
{
    hv_overlap_end(op);
    op->pending.writable = 0;
    op->pending.pause = 0;
    op->result = n;
    return op->pending.kind == HV_ACCEPT    ? hv_accept_finish(op)
           : op->pending.kind == HV_CONNECT ? hv_connect_finish(op)
                                            : HV_DONE;
}

/* Cancels what is pending, and waits for the end of it. Wine does not find an operation that it is at work on: it is
 * asked again. False: the system holds on to a connect, which is given up after a while. */
static int
hv_cancel(hv_op *op)
{
    enum { PAUSE = 5, TRIES = 20 }; /* ms */
    OVERLAPPED *overlapped = op->pending.overlapped;
    int tries = 0;
    while (!HasOverlappedIoCompleted(overlapped)) {
        if (op->pending.kind == HV_CONNECT && tries++ == TRIES) {
            return 0;
        }
        ResetEvent(op->pending.event);
        CancelIoEx((HANDLE)op->handle, overlapped);
        if (!HasOverlappedIoCompleted(overlapped)) {
            WaitForSingleObject(op->pending.event, PAUSE);
        }
    }
    return 1;
}

/* An operation has been cancelled for the reason `why`; HV_DONE: not by this call. */
static hv_status
hv_cancelled(hv_op *op, hv_status why)
{
    hv_gate *gate = &op->socket->gate;
    if (op->pending.kind == HV_SEND_PENDING) { /* a part of it may be sent */
        hv_cell_set(&op->socket->send_lost, 1);
    }
    hv_discard_accepted(op);
    op->error = hv_gate_is_closed(gate) ? HV_ERROR_CLOSED : why == HV_BLOCKED ? WSAEWOULDBLOCK : WSA_OPERATION_ABORTED;
    if (why == HV_INTERRUPTED) {
        ResetEvent(hv_sigint_event);
    }
    /* Another thread's call was cancelled: with one receive of a TCP socket Windows cancels all of them. */
    if (why == HV_DONE && !op->writes && !hv_gate_is_closed(gate)) {
        return hv_again(op);
    }
    return why == HV_DONE ? HV_FAILED : why;
}

/* What has become of the operation that is over. */
static hv_status
hv_collect(hv_op *op, hv_status why)
{
    DWORD n = 0, flags = 0;
    int error;
    if (WSAGetOverlappedResult(op->handle, op->pending.overlapped, &n, TRUE, &flags)) {
        return hv_finished(op, n);
    }
    error = hv_last_error();
    hv_overlap_end(op);
    return error == WSA_OPERATION_ABORTED ? hv_cancelled(op, why) : hv_failed(op, error);
}

/* Ends what is pending, for the reason `why`; HV_DONE: it has ended by itself, which counts in any case. */
static hv_status
hv_end(hv_op *op, hv_status why)
{
    if (why == HV_DONE || hv_cancel(op)) {
        return hv_collect(op, why);
    }
    hv_connecting_outlives(op);
    return hv_cancelled(op, why);
}

/* What an overlapped call has come to. Without a timeout to wait for, what is pending ends here. */
static hv_status
hv_started(hv_op *op, int ok, DWORD n)
{
    int error;
    if (ok) {
        return hv_finished(op, n);
    }
    error = hv_last_error();
    if (error != WSA_IO_PENDING) {
        hv_overlap_end(op);
        return hv_failed(op, error);
    }
    op->error = error;
    return op->timeout == 0 ? hv_end(op, HV_BLOCKED) : HV_BLOCKED;
}

/* ---- transfers ---- */

static inline int64_t
hv_recv_once(hv_handle handle, void *to, size_t size, int64_t timeout)
{
    (void)handle, (void)to, (void)size, (void)timeout;
    return HV_UNTRIED;
}

static inline int64_t
hv_send_once(hv_handle handle, const void *data, size_t size, int64_t timeout)
{
    (void)handle, (void)data, (void)size, (void)timeout;
    return HV_UNTRIED;
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

static hv_status
hv_recv_start(hv_op *op)
{
    DWORD n = 0, flags = (DWORD)op->flags;
    int ok = hv_overlap(op, HV_TRANSFER, &op->pending.own) &&
             WSARecv(op->handle, op->buffers, (DWORD)op->count, &n, &flags, op->pending.overlapped, NULL) == 0;
    return hv_started(op, ok, n);
}

/* Sends the first `size` bytes of the buffers, which Winsock's list of them is cut to for the call. */
static int
hv_send_first(hv_op *op, size_t size, DWORD *n)
{
    hv_iovec *last = op->buffers;
    ULONG whole;
    int result;
    while (last->len < size) {
        size -= last++->len;
    }
    whole = last->len;
    last->len = (ULONG)size;
    result = WSASend(op->handle, op->buffers, (DWORD)(last - op->buffers + 1), n, (DWORD)op->flags,
                     op->pending.overlapped, NULL);
    last->len = whole;
    return result == 0;
}

#define HV_SEND_LEAST 4096 /* bytes that there has to be memory for */

static inline size_t
hv_smaller(size_t size)
{
    return size / 2 > HV_SEND_LEAST ? size / 2 : HV_SEND_LEAST;
}

/* A large send may be refused for want of memory where a smaller one is not. */
static hv_status
hv_send_what_fits(hv_op *op)
{
    size_t size = hv_total(op);
    DWORD n = 0;
    int ok;
    while (!(ok = hv_send_first(op, size, &n)) && WSAGetLastError() == WSAENOBUFS && size > HV_SEND_LEAST) {
        size = hv_smaller(size);
    }
    return hv_started(op, ok, n);
}

/* On a handle that may be in blocking mode: a plain call would wait where neither Ctrl-C nor close() ends it. */
static hv_status
hv_send_overlapped(hv_op *op)
{
    if (hv_sigint_is_new(op)) {
        return hv_again(op);
    }
    return hv_overlap(op, HV_SEND_PENDING, &op->pending.own) ? hv_send_what_fits(op) : hv_failed_now(op);
}

/* Nothing is known of empty sends on a Hyper-V socket, whose end of stream is an empty packet on the
 * wire: they are answered here. */
static hv_status
hv_sendmsg_start(hv_op *op)
{
    hv_socket *s = op->socket;
    if (hv_cell_get(&s->send_lost)) {
        return hv_op_fail(op, WSAECONNABORTED);
    }
    if (hv_total(op) == 0) {
        return hv_finished(op, 0);
    }
    return op->timeout == 0 || hv_cell_get(&s->nonblocking) ? hv_send_what_fits(op) : hv_send_overlapped(op);
}

static hv_status
hv_send_start(hv_op *op)
{
    return hv_sendmsg_start(op);
}

/* ---- accept and connect ---- */

/* A function of the provider that is not exported; looked up once: its address, or 0. */
static intptr_t
hv_extension(hv_handle handle, hv_cell *known, GUID id)
{
    intptr_t function = (intptr_t)hv_cell_get(known);
    DWORD n;
    if (function == 0) {
        if (WSAIoctl(handle, SIO_GET_EXTENSION_FUNCTION_POINTER, &id, sizeof id, &function, sizeof function, &n, NULL,
                     NULL) != 0) {
            return 0;
        }
        hv_cell_set(known, function);
    }
    return function;
}

/* Makes a socket of what AcceptEx has accepted, and asks for the client's address. Without the context getsockname,
 * getpeername and shutdown fail. False: the client has gone, and the listener is as good as before. */
static int
hv_accept_settle(hv_handle listener, hv_handle accepted, hv_sockaddr *address)
{
    return setsockopt(accepted, SOL_SOCKET, SO_UPDATE_ACCEPT_CONTEXT, (char *)&listener, sizeof listener) == 0 &&
           getpeername(accepted, &address->u.any, &address->length) == 0;
}

static hv_status
hv_accept_finish(hv_op *op)
{
    op->result = 0;
    return hv_accept_settle(op->handle, op->accepted, op->address) ? HV_DONE : hv_client_failed(op);
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

/* Whether to ask AcceptEx at once: a client waits, or the error of a socket that does not listen is due. */
static int
hv_accept_is_due(hv_handle handle)
{
    WSAPOLLFD poll = {handle, POLLRDNORM, 0};
    int listening = 0, length = sizeof listening;
    return WSAPoll(&poll, 1, 0) != 0 ||
           getsockopt(handle, SOL_SOCKET, SO_ACCEPTCONN, (char *)&listening, &length) != 0 || !listening;
}

static hv_status
hv_accept_start(hv_op *op)
{
    static hv_cell known;
    LPFN_ACCEPTEX accept_ex = (LPFN_ACCEPTEX)hv_extension(op->handle, &known, (GUID)WSAID_ACCEPTEX);
    DWORD n = 0;
    int ok;
    hv_sockaddr_clear(op->address);
    if (accept_ex == NULL) {
        return hv_failed_now(op);
    }
    if (op->timeout == 0 && !hv_accept_is_due(op->handle)) {
        return hv_failed(op, WSAEWOULDBLOCK);
    }
    op->accepted = hv_accept_socket(op->handle);
    ok = op->accepted != INVALID_SOCKET && hv_overlap(op, HV_ACCEPT, &op->pending.own) &&
         accept_ex(op->handle, op->accepted, op->pending.room, 0, HV_ACCEPT_SLOT, HV_ACCEPT_SLOT, &n,
                   op->pending.overlapped);
    return hv_started(op, ok, n);
}

/* Makes a socket of what ConnectEx has connected: 0, or the error. "Not connected" is what a reset by the peer looks like
 * here. */
static int
hv_connect_settle(hv_handle handle)
{
    int error = setsockopt(handle, SOL_SOCKET, SO_UPDATE_CONNECT_CONTEXT, NULL, 0) == 0 ? 0 : hv_last_error();
    return error == WSAENOTCONN ? WSAECONNRESET : error;
}

static hv_status
hv_connect_finish(hv_op *op)
{
    int error = hv_connect_settle(op->handle);
    return error == 0 ? HV_DONE : hv_failed(op, error);
}

/* The provider gives up after about 2 s by itself: a longer timeout needs its own to move. */
static int
hv_set_connect_timeout(hv_handle handle, int64_t timeout)
{
    int64_t milliseconds = timeout / 1000000 + 1;
    ULONG limit = HV_HVSOCKET_CONNECT_TIMEOUT_MAX;
    if (timeout < 0) {
        return 0;
    }
    if (milliseconds < limit) {
        limit = (ULONG)milliseconds;
    }
    return setsockopt(handle, HV_PROTOCOL_RAW, HV_HVSOCKET_CONNECT_TIMEOUT, (char *)&limit, sizeof limit);
}

/* ConnectEx wants a bound socket; WSAEINVAL: it is bound already. */
static int
hv_bind_to_any(hv_handle handle)
{
    static const hv_sockaddr_hyperv any = {HV_AF_HYPERV, 0, {0}, {0}};
    return bind(handle, (const struct sockaddr *)&any, sizeof any) == 0 || WSAGetLastError() == WSAEINVAL;
}

static hv_status
hv_connect_overlapped(hv_op *op)
{
    static hv_cell known;
    LPFN_CONNECTEX connect_ex;
    DWORD n = 0;
    int ok;
    if (hv_set_connect_timeout(op->handle, op->timeout) != 0 || !hv_bind_to_any(op->handle)) {
        return hv_failed_now(op);
    }
    connect_ex = (LPFN_CONNECTEX)hv_extension(op->handle, &known, (GUID)WSAID_CONNECTEX);
    if (connect_ex == NULL || (op->pending.connecting = hv_connecting_new(op->handle)) == NULL) {
        return hv_failed_now(op);
    }
    ok = hv_overlap(op, HV_CONNECT, &op->pending.connecting->overlapped) &&
         connect_ex(op->handle, &op->address->u.any, op->address->length, NULL, 0, &n, op->pending.overlapped);
    return hv_started(op, ok, n);
}

static hv_status
hv_connect_start(hv_op *op)
{
    if (hv_connecting_is_on(op->handle)) {
        return hv_failed(op, WSAEALREADY);
    }
    if (op->timeout == 0) {
        return connect(op->handle, &op->address->u.any, op->address->length) == 0 ? HV_DONE : hv_failed_now(op);
    }
    return hv_sigint_is_new(op) ? hv_again(op) : hv_connect_overlapped(op);
}

/* ---- waiting ---- */

static inline hv_status
hv_expect(const hv_op *op)
{
    (void)op;
    return HV_READY;
}

/* No attempt waits here. */
static hv_status
hv_try(hv_op *op)
{
    return op->start(op);
}

/* Like the first attempt: Ctrl-C leaves its event set, and a wait for room is short. */
static hv_status
hv_continue(hv_op *op)
{
    return op->start(op);
}

/* About a microsecond. */
#define HV_LOOKS_BETWEEN_YIELDS 32

/* If other threads want this core, spinning is slower than sleeping: a thread that loses the core, or yields it, waits
 * out their time slices. A gap of so many ns between two looks shows that, and there is no spin for so many times the
 * gap: what it loses stays a fiftieth. */
#define HV_GAP 200000
#define HV_GAPS_WITHOUT_SPIN 50

/* Another look of a spin is due; `last` is when the one before was. */
static inline int
hv_spin_continues(hv_socket *s, int64_t *last, int64_t until)
{
    int64_t now = hv_now(), gap = now - *last;
    *last = now;
    if (gap >= HV_GAP) {
        hv_cell_set(&s->no_spin_before, now + HV_GAPS_WITHOUT_SPIN * gap);
        return 0;
    }
    return now < until;
}

/* Looks for so many nanoseconds whether the operation has ended; hv_wait() is due in any case. */
static hv_status
hv_spin(hv_op *op, int64_t ns)
{
    int64_t left = hv_op_time_left(op), last = hv_now(), until = last + (left >= 0 && left < ns ? left : ns);
    hv_status status = op->start(op);
    unsigned looks = 0;
    op->spun = 1;
    while (status == HV_BLOCKED && op->pending.overlapped != NULL &&
           !HasOverlappedIoCompleted(op->pending.overlapped) && hv_spin_continues(op->socket, &last, until)) {
        if (++looks % HV_LOOKS_BETWEEN_YIELDS == 0) {
            SwitchToThread(); /* the peer may be waiting for this very core */
            if (!hv_spin_continues(op->socket, &last, until)) {
                break;
            }
        } else {
            YieldProcessor();
        }
    }
    return status;
}

/* Milliseconds, rounded up, below INFINITE, and `most` at most. */
static DWORD
hv_milliseconds(int64_t ns, DWORD most)
{
    int64_t ms = ns / 1000000 + (ns % 1000000 != 0);
    return ns >= 0 && ms < most ? (DWORD)ms : most;
}

/* Waits until what is pending has ended, and leaves it so: HV_DONE. Or why it is to be cancelled. */
static hv_status
hv_wait_for_end(hv_op *op)
{
    HANDLE events[2] = {op->pending.event, hv_sigint_event};
    DWORD watched = op->pending.watches_sigint ? 2 : 1, woken;
    while (!HasOverlappedIoCompleted(op->pending.overlapped)) {
        int64_t left = hv_op_time_left(op);
        if (hv_gate_is_closed(&op->socket->gate)) {
            return HV_FAILED;
        }
        if (left == 0) {
            return HV_TIMED_OUT;
        }
        woken = WaitForMultipleObjects(watched, events, FALSE, left < 0 ? INFINITE : hv_milliseconds(left, INT_MAX));
        if (woken == WAIT_OBJECT_0 + 1) {
            return HV_INTERRUPTED;
        }
        if (woken == WAIT_OBJECT_0) { /* Wine tells how it has ended later than that it has */
            return hv_gate_is_closed(&op->socket->gate) ? HV_FAILED : HV_DONE;
        }
    }
    return HV_DONE;
}

/* Whatever ends the wait, nothing of the operation is pending afterwards that this call has lent its memory to. */
static hv_status
hv_wait_pending(hv_socket *s, hv_op *op)
{
    hv_status why;
    hv_waiting_add(s, op);
    why = hv_wait_for_end(op);
    hv_waiting_remove(s, op);
    return hv_end(op, why);
}

#define HV_ROOM_SLICE 50         /* ms between two looks at the gate and at Ctrl-C */
#define HV_SEND_RETRY 1000000000 /* ns after which a send is tried again, whatever is said of the room for it */
#define HV_LONGEST_PAUSE 16      /* ms */

/* Sleeps before another attempt, since the one before has failed where room was announced. */
static hv_status
hv_pause(hv_op *op, int64_t left)
{
    hv_pending *pending = &op->pending;
    pending->writable = 0;
    pending->pause = pending->pause == 0 ? 1 : pending->pause < HV_LONGEST_PAUSE ? 2 * pending->pause : pending->pause;
    Sleep(hv_milliseconds(left, pending->pause));
    return hv_again(op);
}

/* The same until there is said to be room, or it is time to try again. */
static hv_status
hv_poll_for_room(hv_op *op)
{
    WSAPOLLFD poll = {op->handle, POLLWRNORM, 0};
    int waited;
    for (waited = 0; waited < HV_SEND_RETRY / 1000000; waited += HV_ROOM_SLICE) {
        int64_t left = hv_op_time_left(op);
        if (hv_gate_is_closed(&op->socket->gate)) {
            return hv_op_fail(op, HV_ERROR_CLOSED);
        }
        if (left == 0) {
            return HV_TIMED_OUT;
        }
        if (hv_sigint_is_new(op)) {
            return hv_again(op);
        }
        if (WSAPoll(&poll, 1, (INT)hv_milliseconds(left, HV_ROOM_SLICE)) != 0) {
            op->pending.writable = 1;
            return HV_READY;
        }
    }
    return hv_again(op);
}

/* Waits until a send is worth an attempt. Nothing is certain about WSAPoll on these sockets: if it fails, or says
 * nothing, or what is not true, the send comes through all the same. */
static hv_status
hv_wait_for_room(hv_socket *s, hv_op *op)
{
    int64_t left = hv_op_time_left(op);
    hv_status status;
    hv_waiting_add(s, op);
    status = op->pending.writable && left != 0 ? hv_pause(op, left) : hv_poll_for_room(op);
    hv_waiting_remove(s, op);
    return status;
}

/* HV_READY of what was not started yet: here it is the attempt itself that waits for something. */
static hv_status
hv_wait(hv_socket *s, hv_op *op)
{
    if (op->pending.overlapped != NULL) {
        return hv_wait_pending(s, op);
    }
    return op->writes ? hv_wait_for_room(s, op) : HV_READY;
}

/* Has the thread look at the gate. A wait for room does so by itself, soon. */
static void
hv_wake_one(hv_op *op)
{
    if (op->pending.overlapped != NULL) {
        CancelIoEx((HANDLE)op->handle, op->pending.overlapped);
        SetEvent(op->pending.event);
    }
}

/* Calls inside the gate, beside the one that has shut it, that are not known to wait here: they are on their way, or in
 * the system for longer, since another owner has made the handle blocking. The socket is locked. */
static int
hv_has_calls_in_system(hv_socket *s)
{
    long calls = (hv_word_get(&s->gate) & HV_GATE_CALLS) - 1;
    const hv_op *op;
    for (op = s->waiting; op != NULL; op = op->next) {
        calls--;
    }
    return calls > hv_word_get(&s->sending.waiting) + hv_word_get(&s->receiving.waiting);
}

#define HV_MOMENT 10 /* ms */

/* Wakes those that wait by name. The others get a moment to come back by themselves, since what ends them also ends
 * what other objects have pending on the same handle. */
static void
hv_wake_all(hv_socket *s)
{
    int in_system;
    hv_lock_acquire(&s->lock);
    hv_waiting_wake(s, hv_wake_one);
    in_system = hv_has_calls_in_system(s);
    hv_lock_release(&s->lock);
    if (!in_system) {
        return;
    }
    Sleep(HV_MOMENT);
    hv_lock_acquire(&s->lock);
    in_system = hv_has_calls_in_system(s);
    hv_lock_release(&s->lock);
    if (in_system) {
        CancelIoEx((HANDLE)s->handle, NULL);
    }
}

#endif
