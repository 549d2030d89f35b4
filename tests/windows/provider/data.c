/* Data and waiting. Wine does the work; here calls are counted and made to fail. */
#include "control.h"

#define MAX_BUFFERS 64

/* The first `limit` bytes of a list of buffers. Winsock copies the list before it returns. */
static DWORD
shorten(const WSABUF *from, DWORD count, DWORD limit, WSABUF to[MAX_BUFFERS])
{
    DWORD used = 0;

    while (used < count && used < MAX_BUFFERS && limit > 0) {
        to[used] = from[used];
        if (to[used].len > limit) {
            to[used].len = limit;
        }
        limit -= to[used].len;
        used++;
    }
    return used;
}

static int
shorter(int size, const struct fault *fault)
{
    return fault->kind == FAULT_SHORT && size > (int)fault->value ? (int)fault->value : size;
}

/* Is a send of so many bytes to fail? The error is in `fault`. */
static BOOL
send_fails(unsigned long long size, struct fault *fault)
{
    if (fault->kind == FAULT_LIMIT && size > fault->value) {
        *fault = (struct fault){FAULT_ERROR, WSAENOBUFS};
    }
    return fault->kind == FAULT_ERROR;
}

static unsigned long long
total(const WSABUF *buffers, DWORD count)
{
    unsigned long long size = 0;

    for (DWORD i = 0; i < count; i++) {
        size += buffers[i].len;
    }
    return size;
}

int WSAAPI
hook_send(SOCKET s, const char *data, int size, int flags)
{
    struct handle h;
    struct fault fault;

    if (!hyperv_call(s, CALL_send, &h, &fault)) {
        return real_send(s, data, size, flags);
    }
    if (send_fails((unsigned)size, &fault)) {
        return fail(fault.value);
    }
    return real_send(s, data, shorter(size, &fault), flags);
}

int WSAAPI
hook_recv(SOCKET s, char *data, int size, int flags)
{
    struct handle h;
    struct fault fault;

    if (!hyperv_call(s, CALL_recv, &h, &fault)) {
        return real_recv(s, data, size, flags);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    return real_recv(s, data, shorter(size, &fault), flags);
}

int WSAAPI
hook_WSASend(SOCKET s, LPWSABUF buffers, DWORD count, LPDWORD sent, DWORD flags, LPWSAOVERLAPPED overlapped,
             LPWSAOVERLAPPED_COMPLETION_ROUTINE routine)
{
    WSABUF less[MAX_BUFFERS];
    struct handle h;
    struct fault fault;

    if (!hyperv_call(s, CALL_WSASend, &h, &fault)) {
        return real_WSASend(s, buffers, count, sent, flags, overlapped, routine);
    }
    if (send_fails(total(buffers, count), &fault)) {
        return fail(fault.value);
    }
    if (fault.kind == FAULT_SHORT) {
        count = shorten(buffers, count, fault.value, less);
        buffers = less;
    }
    return real_WSASend(s, buffers, count, sent, flags, overlapped, routine);
}

int WSAAPI
hook_WSARecv(SOCKET s, LPWSABUF buffers, DWORD count, LPDWORD received, LPDWORD flags, LPWSAOVERLAPPED overlapped,
             LPWSAOVERLAPPED_COMPLETION_ROUTINE routine)
{
    WSABUF less[MAX_BUFFERS];
    struct handle h;
    struct fault fault;

    if (!hyperv_call(s, CALL_WSARecv, &h, &fault)) {
        return real_WSARecv(s, buffers, count, received, flags, overlapped, routine);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    if (fault.kind == FAULT_SHORT) {
        count = shorten(buffers, count, fault.value, less);
        buffers = less;
    }
    return real_WSARecv(s, buffers, count, received, flags, overlapped, routine);
}

int WSAAPI
hook_shutdown(SOCKET s, int how)
{
    struct handle h;
    struct fault fault;

    if (!hyperv_call(s, CALL_shutdown, &h, &fault)) {
        return real_shutdown(s, how);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    if (h.accept_context || h.connect_context) {
        return fail(WSAENOTCONN);
    }
    return real_shutdown(s, how);
}

static BOOL
has_hyperv(const fd_set *set)
{
    struct handle h;

    for (u_int i = 0; set != NULL && i < set->fd_count; i++) {
        if (handle_get(set->fd_array[i], &h)) {
            return TRUE;
        }
    }
    return FALSE;
}

int WSAAPI
hook_select(int ignored, fd_set *readable, fd_set *writable, fd_set *failed, const struct timeval *timeout)
{
    if (has_hyperv(readable) || has_hyperv(writable) || has_hyperv(failed)) {
        count_call(CALL_select);
    }
    return real_select(ignored, readable, writable, failed, timeout);
}

int WSAAPI
hook_WSAPoll(LPWSAPOLLFD sockets, ULONG count, INT timeout)
{
    struct handle h;
    struct fault fault;

    for (ULONG i = 0; i < count; i++) {
        if (hyperv_call(sockets[i].fd, CALL_WSAPoll, &h, &fault)) {
            if (fault.kind == FAULT_ERROR) {
                return fail(fault.value);
            }
            break;
        }
    }
    return real_WSAPoll(sockets, count, timeout);
}

int WSAAPI
hook_WSAEnumNetworkEvents(SOCKET s, WSAEVENT event, LPWSANETWORKEVENTS result)
{
    struct handle h;
    struct fault fault;
    int outcome;

    if (!hyperv_call(s, CALL_WSAEnumNetworkEvents, &h, &fault)) {
        return real_WSAEnumNetworkEvents(s, event, result);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    outcome = real_WSAEnumNetworkEvents(s, event, result);
    if (outcome == 0 && h.timed_out && result->iErrorCode[FD_CONNECT_BIT] == WSAECONNREFUSED) {
        result->iErrorCode[FD_CONNECT_BIT] = WSAETIMEDOUT;
    }
    return outcome;
}
