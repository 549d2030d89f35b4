/* The life of a socket: made, shared, bound, listening, closed; its options. */
#include "control.h"
#include "route.h"

#include <string.h>

static SOCKET
refuse(DWORD error)
{
    SetLastError(error);
    return INVALID_SOCKET;
}

/* TCP's two buffers together hold about three and a half times what each was set to: what Linux
 * takes was measured, from 64-byte sends to large ones. An accepted socket has its listener's. */
static void
make_ring(SOCKET s)
{
    int bytes = (int)(setting("HVSIM_RING") / 7 * 2);

    if (bytes != 0) {
        real_setsockopt(s, SOL_SOCKET, SO_SNDBUF, (const char *)&bytes, sizeof bytes);
        real_setsockopt(s, SOL_SOCKET, SO_RCVBUF, (const char *)&bytes, sizeof bytes);
    }
}

static SOCKET
create(int type, int protocol, DWORD flags)
{
    struct sockaddr_in address;
    struct endpoint *endpoint;
    int size = sizeof address, on = 1;
    SOCKET s;

    if (type != SOCK_STREAM) {
        return refuse(WSAESOCKTNOSUPPORT);
    }
    if (protocol != PROTOCOL_RAW) {
        return refuse(protocol == 0 ? WSAEPROTOTYPE : WSAEPROTONOSUPPORT);
    }
    s = real_WSASocketW(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, flags);
    if (s == INVALID_SOCKET) {
        return s;
    }
    handle_forget(s);
    tcp_address(&address, 0);
    if (real_bind(s, (struct sockaddr *)&address, size) != 0 ||
        real_getsockname(s, (struct sockaddr *)&address, &size) != 0) {
        real_closesocket(s);
        return refuse(WSAENOBUFS);
    }
    /* Small messages leave at once, as they do on Hyper-V. */
    real_setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (const char *)&on, sizeof on);
    make_ring(s);
    endpoint = endpoint_at(tcp_port(&address));
    memset(endpoint, 0, sizeof *endpoint);
    endpoint->local.family = endpoint->peer.family = FAMILY_HYPERV;
    current_partition(&endpoint->owner);
    partition_enter(&endpoint->owner);
    return s;
}

SOCKET WSAAPI
hook_socket(int family, int type, int protocol)
{
    SOCKET s;

    if (family == FAMILY_HYPERV) {
        count_call(CALL_socket);
        return create(type, protocol, WSA_FLAG_OVERLAPPED);
    }
    s = real_socket(family, type, protocol);
    handle_forget(s);
    return s;
}

/* Sharing. WSAPROTOCOL_INFO's A and W forms differ only in szProtocol, at the end. That text has
 * room to spare, and carries the receiving process's handle of the listening name. */

#define TAG "hvsim"
#define TAG_AT 100

static void
mark_info(LPWSAPROTOCOL_INFOA info)
{
    info->iAddressFamily = FAMILY_HYPERV;
    info->iProtocol = PROTOCOL_RAW;
    info->iMinSockAddr = info->iMaxSockAddr = sizeof(struct hv_address);
}

static void
unmark_info(LPWSAPROTOCOL_INFOA info)
{
    info->iAddressFamily = AF_INET;
    info->iSocketType = SOCK_STREAM;
    info->iProtocol = IPPROTO_TCP;
}

static void
send_name(const struct handle *h, DWORD process, char *text)
{
    HANDLE other, copy = NULL;

    if (h->name != NULL && (other = OpenProcess(PROCESS_DUP_HANDLE, FALSE, process)) != NULL) {
        DuplicateHandle(GetCurrentProcess(), h->name, other, &copy, 0, FALSE, DUPLICATE_SAME_ACCESS);
        CloseHandle(other);
    }
    memcpy(text + TAG_AT, TAG, sizeof TAG);
    memcpy(text + TAG_AT + sizeof TAG, &copy, sizeof copy);
}

static void
receive_name(SOCKET s, const char *text)
{
    struct handle *h;

    handle_forget(s);
    h = handle_lock(s);
    if (h != NULL) {
        if (memcmp(text + TAG_AT, TAG, sizeof TAG) == 0) {
            memcpy(&h->name, text + TAG_AT + sizeof TAG, sizeof h->name);
        }
        handle_unlock();
    }
}

SOCKET WSAAPI
hook_WSASocketW(int family, int type, int protocol, LPWSAPROTOCOL_INFOW info, GROUP group, DWORD flags)
{
    SOCKET s;

    if (info != NULL && info->iAddressFamily == FAMILY_HYPERV) {
        WSAPROTOCOL_INFOW tcp = *info;

        count_call(CALL_WSASocketW);
        unmark_info((LPWSAPROTOCOL_INFOA)&tcp);
        s = real_WSASocketW(FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, &tcp, group, flags);
        receive_name(s, (const char *)info->szProtocol);
        return s;
    }
    if (family == FAMILY_HYPERV) {
        count_call(CALL_WSASocketW);
        return create(type, protocol, flags);
    }
    s = real_WSASocketW(family, type, protocol, info, group, flags);
    handle_forget(s);
    return s;
}

SOCKET WSAAPI
hook_WSASocketA(int family, int type, int protocol, LPWSAPROTOCOL_INFOA info, GROUP group, DWORD flags)
{
    SOCKET s;

    if (info != NULL && info->iAddressFamily == FAMILY_HYPERV) {
        WSAPROTOCOL_INFOA tcp = *info;

        count_call(CALL_WSASocketA);
        unmark_info(&tcp);
        s = real_WSASocketA(FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, &tcp, group, flags);
        receive_name(s, info->szProtocol);
        return s;
    }
    if (family == FAMILY_HYPERV) {
        count_call(CALL_WSASocketA);
        return create(type, protocol, flags);
    }
    s = real_WSASocketA(family, type, protocol, info, group, flags);
    handle_forget(s);
    return s;
}

int WSAAPI
hook_WSADuplicateSocketW(SOCKET s, DWORD process, LPWSAPROTOCOL_INFOW info)
{
    struct handle h;
    int result = real_WSADuplicateSocketW(s, process, info);

    if (result == 0 && handle_get(s, &h)) {
        count_call(CALL_WSADuplicateSocketW);
        mark_info((LPWSAPROTOCOL_INFOA)info);
        send_name(&h, process, (char *)info->szProtocol);
    }
    return result;
}

int WSAAPI
hook_WSADuplicateSocketA(SOCKET s, DWORD process, LPWSAPROTOCOL_INFOA info)
{
    struct handle h;
    int result = real_WSADuplicateSocketA(s, process, info);

    if (result == 0 && handle_get(s, &h)) {
        count_call(CALL_WSADuplicateSocketA);
        mark_info(info);
        send_name(&h, process, info->szProtocol);
    }
    return result;
}

int WSAAPI
hook_closesocket(SOCKET s)
{
    struct handle h;
    BOOL ours = handle_get(s, &h);
    int result;

    if (ours) {
        count_call(CALL_closesocket);
    }
    handle_forget(s);
    result = real_closesocket(s);
    if (result != 0 && ours && GetLastError() == WSAENOTSOCK) {
        result = CloseHandle((HANDLE)s) ? 0 : SOCKET_ERROR; /* Wine does not know what DuplicateHandle made */
    }
    return result;
}

int WSAAPI
hook_bind(SOCKET s, const struct sockaddr *address, int size)
{
    struct hv_address wanted;
    struct endpoint *endpoint;
    struct handle h;
    struct fault fault;
    int error;

    if (!hyperv_call(s, CALL_bind, &h, &fault)) {
        return real_bind(s, address, size);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    endpoint = handle_endpoint(&h);
    error = address_read(address, size, &wanted);
    if (error == 0 && (endpoint->bound || endpoint->connected)) {
        error = WSAEINVAL;
    }
    if (error == 0) {
        error = may_bind(endpoint, &wanted);
    }
    /* A name that is taken is refused by listen, and here only if asked to. */
    if (error == 0 && setting("HVSIM_STRICT_BIND") && name_lookup(&endpoint->owner, &wanted.service, &wanted.vm) != 0) {
        error = WSAEADDRINUSE;
    }
    if (error != 0) {
        return fail(error);
    }
    endpoint->local = wanted;
    endpoint->bound = TRUE;
    return 0;
}

static int
start_listening(SOCKET s, struct endpoint *endpoint, unsigned port)
{
    HANDLE name;
    struct handle *h;
    int error;

    if (guid_equal(&endpoint->local.service, &VM_WILDCARD) && setting("HVSIM_ANY_SERVICE")) {
        guid_random(&endpoint->local.service);
    }
    error = may_listen(endpoint);
    if (error != 0) {
        return error;
    }
    name = name_claim(endpoint, port);
    if (name == NULL) {
        return WSAEADDRINUSE;
    }
    h = handle_lock(s);
    h->name = name;
    endpoint->listening = TRUE;
    handle_unlock();
    return 0;
}

int WSAAPI
hook_listen(SOCKET s, int backlog)
{
    struct endpoint *endpoint;
    struct handle h;
    struct fault fault;
    int error = 0;

    if (!hyperv_call(s, CALL_listen, &h, &fault)) {
        return real_listen(s, backlog);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    endpoint = endpoint_at(h.port);
    if (!endpoint->bound) {
        return fail(WSAEINVAL);
    }
    if (h.peer_port != 0 || endpoint->connected) {
        return fail(WSAEISCONN);
    }
    /* The TCP listener first: a client that finds the name must be able to connect. */
    if (real_listen(s, backlog) != 0) {
        return SOCKET_ERROR;
    }
    if (!endpoint->listening) {
        error = start_listening(s, endpoint, h.port);
    }
    return error == 0 ? 0 : fail(error);
}

/* Options */

static int
option_slot(int option)
{
    switch (option) {
    case OPTION_CONNECT_TIMEOUT:
        return 0;
    case OPTION_CONTAINER_PASSTHRU:
        return 1;
    case OPTION_CONNECTED_SUSPEND:
        return 2;
    case OPTION_HIGH_VTL:
        return 3;
    default:
        return -1;
    }
}

static int
set_own_option(const struct handle *h, int option, const char *value, int size)
{
    int slot = option_slot(option);
    DWORD number;

    if (slot < 0) {
        return fail(WSAENOPROTOOPT);
    }
    if (value == NULL || size != sizeof number) {
        return fail(WSAEFAULT);
    }
    memcpy(&number, value, sizeof number);
    if (option == OPTION_CONNECT_TIMEOUT && number > CONNECT_TIMEOUT_MAX) {
        return fail(WSAEINVAL);
    }
    handle_options(h)->value[slot] = number;
    return 0;
}

static void
context_updated(SOCKET s, int option)
{
    int on = 1;
    struct handle *h = handle_lock(s);

    if (option == SO_UPDATE_CONNECT_CONTEXT) {
        h->connect_context = FALSE;
        handle_endpoint(h)->established = TRUE;
    } else {
        h->accept_context = FALSE;
    }
    handle_unlock();
    if (option == SO_UPDATE_ACCEPT_CONTEXT) {
        handle_refresh(s);
        real_setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (const char *)&on, sizeof on);
    }
}

static struct fault
option_fault(int option)
{
    switch (option) {
    case SO_UPDATE_ACCEPT_CONTEXT:
        return step_fault(STEP_ACCEPT_CONTEXT);
    case SO_UPDATE_CONNECT_CONTEXT:
        return step_fault(STEP_CONNECT_CONTEXT);
    case SO_REUSEADDR:
    case SO_EXCLUSIVEADDRUSE:
        return step_fault(STEP_REUSE_OPTION);
    default:
        return (struct fault){FAULT_NONE, 0};
    }
}

int WSAAPI
hook_setsockopt(SOCKET s, int level, int option, const char *value, int size)
{
    struct handle h;
    struct fault fault;
    int result;

    if (!hyperv_call(s, CALL_setsockopt, &h, &fault)) {
        return real_setsockopt(s, level, option, value, size);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    if (level == PROTOCOL_RAW) {
        return set_own_option(&h, option, value, size);
    }
    if (level != SOL_SOCKET) {
        return fail(WSAENOPROTOOPT);
    }
    fault = option_fault(option);
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    result = real_setsockopt(s, level, option, value, size);
    if (result == 0 && (option == SO_UPDATE_CONNECT_CONTEXT || option == SO_UPDATE_ACCEPT_CONTEXT)) {
        context_updated(s, option);
    }
    return result;
}

static int
get_own_option(const struct handle *h, int option, char *value, int *size)
{
    int slot = option_slot(option), peer_size = sizeof(struct sockaddr_in);
    struct sockaddr_in peer;

    if (slot < 0) {
        return fail(WSAENOPROTOOPT);
    }
    if (value == NULL || size == NULL || *size < (int)sizeof(DWORD)) {
        return fail(WSAEFAULT);
    }
    *size = sizeof(DWORD);
    /* Windows is said to report success on a connected socket, and to write nothing. */
    if (real_getpeername(h->socket, (struct sockaddr *)&peer, &peer_size) != 0) {
        memcpy(value, &handle_options(h)->value[slot], sizeof(DWORD));
    }
    return 0;
}

int WSAAPI
hook_getsockopt(SOCKET s, int level, int option, char *value, int *size)
{
    struct handle h;
    struct fault fault;
    int result;

    if (!hyperv_call(s, CALL_getsockopt, &h, &fault)) {
        return real_getsockopt(s, level, option, value, size);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    if (level == PROTOCOL_RAW) {
        return get_own_option(&h, option, value, size);
    }
    if (level != SOL_SOCKET) {
        return fail(WSAENOPROTOOPT);
    }
    result = real_getsockopt(s, level, option, value, size);
    if (result == 0 && (option == SO_PROTOCOL_INFOA || option == SO_PROTOCOL_INFOW)) {
        mark_info((LPWSAPROTOCOL_INFOA)value);
    }
    if (result == 0 && option == SO_ERROR && h.timed_out && *(int *)value == WSAECONNREFUSED) {
        *(int *)value = WSAETIMEDOUT;
    }
    return result;
}

static void
set_nonblocking(SOCKET s, BOOL nonblocking)
{
    struct handle *h = handle_lock(s);

    if (h != NULL) {
        h->nonblocking = nonblocking;
        handle_unlock();
    }
}

int WSAAPI
hook_ioctlsocket(SOCKET s, long command, u_long *argument)
{
    struct handle h;
    struct fault fault;
    int result;

    if (!hyperv_call(s, CALL_ioctlsocket, &h, &fault)) {
        return real_ioctlsocket(s, command, argument);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    result = real_ioctlsocket(s, command, argument);
    if (result == 0 && command == (long)FIONBIO) {
        set_nonblocking(s, *argument != 0);
    }
    return result;
}

/* Give out our function in place of Wine's. */
static void
replace_extension(const GUID *id, void **function)
{
    static const GUID connect_ex = WSAID_CONNECTEX, accept_ex = WSAID_ACCEPTEX,
                      accept_addresses = WSAID_GETACCEPTEXSOCKADDRS, transmit_file = WSAID_TRANSMITFILE,
                      disconnect_ex = WSAID_DISCONNECTEX;

    if (guid_equal(id, &connect_ex)) {
        *(void **)&real_ConnectEx = *function;
        *function = (void *)hook_ConnectEx;
    } else if (guid_equal(id, &accept_ex)) {
        *(void **)&real_AcceptEx = *function;
        *function = (void *)hook_AcceptEx;
    } else if (guid_equal(id, &accept_addresses)) {
        *(void **)&real_GetAcceptExSockaddrs = *function;
        *function = (void *)hook_GetAcceptExSockaddrs;
    } else if (guid_equal(id, &transmit_file)) {
        *(void **)&real_TransmitFile = *function;
        *function = (void *)hook_TransmitFile;
    } else if (guid_equal(id, &disconnect_ex)) {
        *(void **)&real_DisconnectEx = *function;
        *function = (void *)hook_DisconnectEx;
    }
}

int WSAAPI
hook_WSAIoctl(SOCKET s, DWORD code, LPVOID in, DWORD in_size, LPVOID out, DWORD out_size, LPDWORD returned,
              LPWSAOVERLAPPED overlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE routine)
{
    struct handle h;
    struct fault fault;
    BOOL ours = hyperv_call(s, CALL_WSAIoctl, &h, &fault);
    int result;

    if (ours && fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    result = real_WSAIoctl(s, code, in, in_size, out, out_size, returned, overlapped, routine);
    if (result == 0 && code == SIO_GET_EXTENSION_FUNCTION_POINTER && in_size >= sizeof(GUID) &&
        out_size >= sizeof(void *)) {
        replace_extension(in, out); /* for any socket: the pointer serves them all */
    }
    if (result == 0 && ours && code == FIONBIO) {
        set_nonblocking(s, *(u_long *)in != 0);
    }
    return result;
}

int WSAAPI
hook_WSAEventSelect(SOCKET s, WSAEVENT event, long events)
{
    struct handle h;
    struct fault fault;
    int result;

    if (!hyperv_call(s, CALL_WSAEventSelect, &h, &fault)) {
        return real_WSAEventSelect(s, event, events);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    result = real_WSAEventSelect(s, event, events);
    if (result == 0) {
        set_nonblocking(s, TRUE); /* it stays so when the events are taken back */
    }
    return result;
}
