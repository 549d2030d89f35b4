/* connect, WSAConnect, ConnectEx, and connects that are held back until their time is over. */
#include "cancel.h"
#include "control.h"
#include "route.h"

#include <stdlib.h>
#include <string.h>

/* Never bound: a TCP connect to it is refused. */
#define DEAD_PORT 1

static BOOL
is_connected(SOCKET s)
{
    struct sockaddr_in peer;
    int size = sizeof peer;

    return real_getpeername(s, (struct sockaddr *)&peer, &size) == 0;
}

/* What an earlier connect of this socket ended with says nothing of the next one. */
static void
clear_timeout(SOCKET s)
{
    struct handle *h = handle_lock(s);

    if (h != NULL) {
        h->timed_out = FALSE;
        handle_unlock();
    }
}

/* Note the connection in the socket's record, and say where TCP has to go. 0, or the error. */
static int
dial(const struct handle *h, const struct sockaddr *address, int size, BOOL must_be_bound, struct sockaddr_in *target)
{
    struct endpoint *endpoint = endpoint_at(h->port);
    struct hv_address to;
    unsigned port;
    int error = address_read(address, size, &to);

    if (error != 0) {
        return error;
    }
    if (h->held != NULL) {
        return WSAEALREADY;
    }
    if (is_connected(h->socket)) {
        return WSAEISCONN;
    }
    if (endpoint->listening || (must_be_bound && !endpoint->bound)) {
        return WSAEINVAL;
    }
    error = route(endpoint, &to, &port);
    if (error != 0) {
        return error;
    }
    clear_timeout(h->socket);
    endpoint->peer = to;
    endpoint->connected = TRUE;
    endpoint->established = FALSE;
    if (guid_equal(&endpoint->local.service, &VM_WILDCARD)) {
        guid_random(&endpoint->local.service);
    }
    if (guid_equal(&to.vm, &VM_LOOPBACK)) {
        endpoint->local.vm = VM_CHILDREN; /* as go-winio's tests saw on Windows */
    }
    memset(&endpoint->accepted_options, 0, sizeof endpoint->accepted_options);
    tcp_address(target, port != 0 ? port : DEAD_PORT);
    return 0;
}

/* A connect that is held back. Nothing goes to TCP until the time is over. */

struct hold {
    SOCKET socket;
    HANDLE event; /* set to end it early; the handle's entry has it too */
    DWORD milliseconds;
};

static void
end_by_time(struct handle *h)
{
    struct sockaddr_in dead;

    h->timed_out = !h->cancelled;
    if (h->held_overlapped != NULL) {
        cancel_at_once(h->socket, h->held_overlapped);
        return;
    }
    /* A refused connect is what wakes select, WSAPoll and WSAEventSelect; whoever asks for the
     * reason is told WSAETIMEDOUT. */
    tcp_address(&dead, DEAD_PORT);
    real_connect(h->socket, (struct sockaddr *)&dead, sizeof dead);
}

BOOL
connect_ignores_cancel(SOCKET s, LPOVERLAPPED overlapped)
{
    struct handle *h = handle_lock_known(s);
    BOOL ignores;

    if (h == NULL) {
        return FALSE;
    }
    ignores = h->held != NULL && h->stubborn != 0 && (overlapped == NULL || overlapped == h->held_overlapped);
    if (ignores && !h->cancelled) {
        h->cancelled = TRUE;
        SetEvent(h->held);
    }
    handle_unlock();
    return ignores;
}

/* For how long the cancellation that has ended the wait is ignored; 0: something else has ended it. */
static DWORD
ignored_for(const struct hold *hold)
{
    struct handle *h = handle_lock_known(hold->socket);
    DWORD milliseconds = 0;

    if (h != NULL) {
        if (h->held == hold->event && h->cancelled) {
            milliseconds = h->stubborn;
            ResetEvent(hold->event);
        }
        handle_unlock();
    }
    return milliseconds;
}

static BOOL
outlast(const struct hold *hold)
{
    DWORD more;

    if (WaitForSingleObject(hold->event, hold->milliseconds) == WAIT_TIMEOUT) {
        return TRUE;
    }
    more = ignored_for(hold);
    return more != 0 && WaitForSingleObject(hold->event, more) == WAIT_TIMEOUT;
}

static DWORD WINAPI
wait_for_hold(void *argument)
{
    struct hold *hold = argument;
    BOOL over = outlast(hold);
    struct handle *h = handle_lock_known(hold->socket);

    if (h != NULL) {
        if (h->held == hold->event) { /* else the number means another socket by now */
            h->held = NULL;
            if (over) {
                end_by_time(h);
            }
        }
        handle_unlock();
    }
    CloseHandle(hold->event);
    free(hold);
    return 0;
}

static DWORD
connect_timeout(const struct handle *h)
{
    DWORD chosen = handle_options(h)->value[0], other = setting("HVSIM_DEFAULT_TIMEOUT");

    if (chosen != 0) {
        return chosen;
    }
    return other != 0 ? other : CONNECT_TIMEOUT_DEFAULT;
}

static struct hold *
begin_hold(const struct handle *h, LPOVERLAPPED overlapped, DWORD stubborn)
{
    struct hold *hold = malloc(sizeof *hold);
    struct handle *entry;

    if (hold == NULL) {
        abort();
    }
    hold->socket = h->socket;
    hold->event = CreateEventA(NULL, TRUE, FALSE, NULL);
    hold->milliseconds = connect_timeout(h) + stubborn;
    entry = handle_lock(h->socket);
    entry->held = hold->event;
    entry->held_overlapped = overlapped;
    entry->stubborn = stubborn;
    entry->cancelled = entry->timed_out = FALSE;
    handle_unlock();
    return hold;
}

static void
hold_in_background(const struct handle *h, LPOVERLAPPED overlapped, DWORD stubborn)
{
    struct hold *hold = begin_hold(h, overlapped, stubborn);
    HANDLE thread = CreateThread(NULL, 0, wait_for_hold, hold, 0, NULL);

    if (thread == NULL) {
        abort();
    }
    CloseHandle(thread);
}

/* A blocking connect waits here; closesocket in another thread ends it. */
static int
hold_here(const struct handle *h)
{
    struct hold *hold = begin_hold(h, NULL, 0);
    BOOL over = WaitForSingleObject(hold->event, hold->milliseconds) == WAIT_TIMEOUT;
    struct handle *entry = handle_lock_known(h->socket);

    if (entry != NULL) {
        if (entry->held == hold->event) {
            entry->held = NULL;
        }
        handle_unlock();
    }
    CloseHandle(hold->event);
    free(hold);
    return fail(over ? WSAETIMEDOUT : WSAEINTR);
}

/* Wine itself needs an operation that stays pending on this OVERLAPPED, or CancelIoEx, which is
 * not ours, could not find it. A change of the machine's addresses is never going to happen. */
static BOOL
hold_overlapped(const struct handle *h, LPOVERLAPPED overlapped, const struct fault *fault)
{
    DWORD returned;

    if (fault->kind == FAULT_STUBBORN) {
        cancel_watch();
    }
    overlapped->Internal = STATUS_PENDING; /* Wine leaves that out for this operation */
    if (real_WSAIoctl(h->socket, SIO_ADDRESS_LIST_CHANGE, NULL, 0, NULL, 0, &returned, overlapped, NULL) != 0 &&
        GetLastError() != WSA_IO_PENDING) {
        return FALSE;
    }
    hold_in_background(h, overlapped, fault->value);
    SetLastError(ERROR_IO_PENDING);
    return FALSE;
}

static BOOL
stays_pending(const struct fault *fault)
{
    return fault->kind == FAULT_PENDING || fault->kind == FAULT_STUBBORN;
}

static int
connect_plain(const struct handle *h, const struct fault *fault, const struct sockaddr *address, int size)
{
    struct sockaddr_in target;
    int error, result;

    if (fault->kind == FAULT_ERROR) {
        return fail(fault->value);
    }
    error = dial(h, address, size, FALSE, &target);
    if (error != 0) {
        return fail(error);
    }
    if (!stays_pending(fault)) {
        result = real_connect(h->socket, (struct sockaddr *)&target, sizeof target);
        handle_endpoint(h)->established = result == 0;
        return result;
    }
    if (!h->nonblocking) {
        return hold_here(h);
    }
    hold_in_background(h, NULL, 0);
    return fail(WSAEWOULDBLOCK);
}

int WSAAPI
hook_connect(SOCKET s, const struct sockaddr *address, int size)
{
    struct handle h;
    struct fault fault;

    if (!hyperv_call(s, CALL_connect, &h, &fault)) {
        return real_connect(s, address, size);
    }
    return connect_plain(&h, &fault, address, size);
}

int WSAAPI
hook_WSAConnect(SOCKET s, const struct sockaddr *address, int size, LPWSABUF caller, LPWSABUF callee, LPQOS qos,
                LPQOS group_qos)
{
    struct handle h;
    struct fault fault;

    if (!hyperv_call(s, CALL_WSAConnect, &h, &fault)) {
        return real_WSAConnect(s, address, size, caller, callee, qos, group_qos);
    }
    return connect_plain(&h, &fault, address, size);
}

BOOL WSAAPI
hook_ConnectEx(SOCKET s, const struct sockaddr *address, int size, PVOID data, DWORD data_size, LPDWORD sent,
               LPOVERLAPPED overlapped)
{
    struct sockaddr_in target;
    struct handle h, *entry;
    struct fault fault;
    int error;

    if (!hyperv_call(s, CALL_ConnectEx, &h, &fault)) {
        return real_ConnectEx(s, address, size, data, data_size, sent, overlapped);
    }
    error = fault.kind == FAULT_ERROR ? (int)fault.value : dial(&h, address, size, TRUE, &target);
    if (error != 0 || fault.kind == FAULT_ERROR) {
        SetLastError(error);
        return FALSE;
    }
    entry = handle_lock(s);
    entry->connect_context = TRUE;
    entry->held_overlapped = NULL;
    handle_unlock();
    if (stays_pending(&fault)) {
        return hold_overlapped(&h, overlapped, &fault);
    }
    return real_ConnectEx(s, (struct sockaddr *)&target, sizeof target, data, data_size, sent, overlapped);
}

/* The end of an overlapped operation. */

/* Did the ConnectEx behind this OVERLAPPED end by time? It is over in any case. */
static BOOL
forget_hold(SOCKET s, LPOVERLAPPED overlapped)
{
    struct handle *h = handle_lock(s);
    BOOL timed_out = FALSE;

    if (h == NULL) {
        return FALSE;
    }
    if (h->held_overlapped == overlapped) {
        timed_out = h->timed_out;
        h->held_overlapped = NULL;
        if (h->held != NULL) {
            SetEvent(h->held);
            h->held = NULL;
        }
    }
    handle_unlock();
    return timed_out;
}

/* A Windows that does not say how much of a cancelled send has gone. (A receive with data is not cancelled.) */
static void
lose_count(LPWSAOVERLAPPED overlapped, LPDWORD transferred)
{
    if (setting("HVSIM_LOSSY_CANCEL")) {
        overlapped->InternalHigh = 0;
        *transferred = 0;
    }
}

BOOL WSAAPI
hook_WSAGetOverlappedResult(SOCKET s, LPWSAOVERLAPPED overlapped, LPDWORD transferred, BOOL wait, LPDWORD flags)
{
    struct handle h;
    struct fault fault;
    BOOL done = real_WSAGetOverlappedResult(s, overlapped, transferred, wait, flags);
    DWORD error = done ? 0 : GetLastError();

    if (!done && error == WSA_IO_INCOMPLETE) {
        if (handle_get(s, &h)) {
            count_call(CALL_WSAGetOverlappedResult);
        }
        return FALSE; /* a planned fault waits for the end of the operation */
    }
    if (hyperv_call(s, CALL_WSAGetOverlappedResult, &h, &fault)) {
        if (error == WSA_OPERATION_ABORTED) {
            lose_count(overlapped, transferred);
        }
        if (fault.kind == FAULT_ERROR) {
            SetLastError(fault.value);
            return FALSE;
        }
        if (forget_hold(s, overlapped) && error == WSA_OPERATION_ABORTED) {
            error = WSAETIMEDOUT;
        }
    }
    SetLastError(error);
    return done;
}
