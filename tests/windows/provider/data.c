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

BOOL WSAAPI
hook_TransmitFile(SOCKET s, HANDLE file, DWORD size, DWORD block, LPOVERLAPPED overlapped,
                  LPTRANSMIT_FILE_BUFFERS around, DWORD flags)
{
    struct handle h;
    struct fault fault;

    if (hyperv_call(s, CALL_TransmitFile, &h, &fault) && fault.kind == FAULT_ERROR) {
        SetLastError(fault.value);
        return FALSE;
    }
    return real_TransmitFile(s, file, size, block, overlapped, around, flags);
}

BOOL WSAAPI
hook_DisconnectEx(SOCKET s, LPOVERLAPPED overlapped, DWORD flags, DWORD reserved)
{
    struct handle h;
    struct fault fault;

    if (hyperv_call(s, CALL_DisconnectEx, &h, &fault) && fault.kind == FAULT_ERROR) {
        SetLastError(fault.value);
        return FALSE;
    }
    return real_DisconnectEx(s, overlapped, flags, reserved);
}

/* A Hyper-V socket of this set, or what was found before. */
static SOCKET
hyperv_in(const fd_set *set, SOCKET found)
{
    struct handle h;

    for (u_int i = 0; set != NULL && i < set->fd_count && found == INVALID_SOCKET; i++) {
        if (handle_get(set->fd_array[i], &h)) {
            found = set->fd_array[i];
        }
    }
    return found;
}

int WSAAPI
hook_select(int ignored, fd_set *readable, fd_set *writable, fd_set *failed, const struct timeval *timeout)
{
    SOCKET ours = hyperv_in(failed, hyperv_in(writable, hyperv_in(readable, INVALID_SOCKET)));
    struct handle h;
    struct fault fault;

    if (hyperv_call(ours, CALL_select, &h, &fault) && fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    return real_select(ignored, readable, writable, failed, timeout);
}

/* Has a connect of this socket failed? */
static BOOL
connect_failed(SOCKET s)
{
    struct handle h;
    int error = 0, size = sizeof error;

    return handle_get(s, &h) && h.peer_port == 0 && !handle_endpoint(&h)->established &&
           real_getsockopt(s, SOL_SOCKET, SO_ERROR, (char *)&error, &size) == 0 && error != 0;
}

/* WSAPoll before Windows 10 2004 said nothing of a connect that has failed. Returns how many it still reports. */
static int
silence(LPWSAPOLLFD sockets, ULONG count)
{
    int reported = 0;

    for (ULONG i = 0; i < count; i++) {
        if (sockets[i].revents & (POLLERR | POLLHUP) && connect_failed(sockets[i].fd)) {
            sockets[i].revents = 0;
        }
        reported += sockets[i].revents != 0;
    }
    return reported;
}

static int
poll_silently(LPWSAPOLLFD sockets, ULONG count, INT timeout)
{
    int reported = real_WSAPoll(sockets, count, timeout);

    if (reported > 0 && silence(sockets, count) == 0) {
        Sleep((DWORD)timeout); /* INFINITE is -1 of both */
        return 0;
    }
    return reported;
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
    return setting("HVSIM_SILENT_POLL") ? poll_silently(sockets, count, timeout)
                                        : real_WSAPoll(sockets, count, timeout);
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
