/* accept, WSAAccept, AcceptEx, and the addresses of both ends of a connection. */
#include "control.h"

#include <string.h>

/* AcceptEx wants room for an address and 16 bytes more. */
#define ACCEPT_SLOT (sizeof(struct hv_address) + 16)

/* The client's address, as the accepting side is told it. */
static struct hv_address
client_address(const struct endpoint *listener, const struct endpoint *client)
{
    struct hv_address address = {FAMILY_HYPERV, 0, VM_WILDCARD, client->local.service};

    address.vm = seen_from(&listener->owner, &client->owner);
    return address;
}

/* The accepting side's own address, as AcceptEx writes it. */
static struct hv_address
accepted_address(const struct endpoint *listener, const struct endpoint *client)
{
    struct hv_address address = {FAMILY_HYPERV, 0, VM_WILDCARD, listener->local.service};

    address.vm = seen_from(&listener->owner, &client->owner);
    if (guid_equal(&address.vm, &VM_LOOPBACK)) {
        address.vm = VM_CHILDREN;
    }
    return address;
}

/* An address buffer that is too small must not cost the connection: look before accepting. */
static BOOL
has_room(const struct sockaddr *address, const int *size)
{
    return address == NULL || (size != NULL && *size >= (int)sizeof(struct hv_address));
}

static SOCKET
finish_accept(SOCKET accepted, const struct handle *listener, const struct sockaddr_in *peer, struct sockaddr *address,
              int *size)
{
    struct hv_address client;
    struct handle *h;
    int on = 1;

    if (accepted == INVALID_SOCKET) {
        return accepted;
    }
    handle_forget(accepted);
    real_setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, (const char *)&on, sizeof on);
    h = handle_lock(accepted);
    if (h != NULL) {
        h->nonblocking = listener->nonblocking;
        handle_unlock();
    }
    endpoint_at(tcp_port(peer))->established = TRUE;
    if (address != NULL) {
        client = client_address(endpoint_at(listener->port), endpoint_at(tcp_port(peer)));
        address_write(&client, address, size);
    }
    return accepted;
}

SOCKET WSAAPI
hook_accept(SOCKET s, struct sockaddr *address, int *size)
{
    struct sockaddr_in peer;
    struct handle h;
    struct fault fault;
    int peer_size = sizeof peer;

    if (!hyperv_call(s, CALL_accept, &h, &fault)) {
        SOCKET other = real_accept(s, address, size);

        handle_forget(other);
        return other;
    }
    if (fault.kind == FAULT_ERROR || !has_room(address, size)) {
        fail(fault.kind == FAULT_ERROR ? fault.value : WSAEFAULT);
        return INVALID_SOCKET;
    }
    return finish_accept(real_accept(s, (struct sockaddr *)&peer, &peer_size), &h, &peer, address, size);
}

SOCKET WSAAPI
hook_WSAAccept(SOCKET s, struct sockaddr *address, LPINT size, LPCONDITIONPROC condition, DWORD_PTR context)
{
    struct sockaddr_in peer;
    struct handle h;
    struct fault fault;
    int peer_size = sizeof peer;

    if (!hyperv_call(s, CALL_WSAAccept, &h, &fault)) {
        SOCKET other = real_WSAAccept(s, address, size, condition, context);

        handle_forget(other);
        return other;
    }
    if (fault.kind == FAULT_ERROR || !has_room(address, size)) {
        fail(fault.kind == FAULT_ERROR ? fault.value : WSAEFAULT);
        return INVALID_SOCKET;
    }
    return finish_accept(real_WSAAccept(s, (struct sockaddr *)&peer, &peer_size, condition, context), &h, &peer,
                         address, size);
}

/* May this pair be given to AcceptEx? 0, or the error. */
static int
check_accept_ex(const struct handle *listener, const struct handle *accepted, DWORD local_size, DWORD remote_size)
{
    if (local_size < ACCEPT_SLOT || remote_size < ACCEPT_SLOT) {
        return WSAEFAULT;
    }
    if (!endpoint_at(listener->port)->listening || endpoint_at(accepted->port)->bound) {
        return WSAEINVAL;
    }
    return 0;
}

BOOL WSAAPI
hook_AcceptEx(SOCKET listener, SOCKET accepted, PVOID buffer, DWORD data_size, DWORD local_size, DWORD remote_size,
              LPDWORD received, LPOVERLAPPED overlapped)
{
    struct handle listening, *h, copy;
    struct fault fault;
    int error;

    if (!hyperv_call(listener, CALL_AcceptEx, &listening, &fault)) {
        return real_AcceptEx(listener, accepted, buffer, data_size, local_size, remote_size, received, overlapped);
    }
    if (fault.kind == FAULT_ERROR) {
        SetLastError(fault.value);
        return FALSE;
    }
    error = handle_get(accepted, &copy) ? check_accept_ex(&listening, &copy, local_size, remote_size) : WSAEINVAL;
    if (error != 0) {
        SetLastError(error);
        return FALSE;
    }
    h = handle_lock(accepted);
    h->accept_context = TRUE;
    handle_unlock();
    return real_AcceptEx(listener, accepted, buffer, data_size, local_size, remote_size, received, overlapped);
}

/* Wine wrote TCP addresses into the buffer; each has a slot that is large enough for ours. */
void WSAAPI
hook_GetAcceptExSockaddrs(PVOID buffer, DWORD data_size, DWORD local_size, DWORD remote_size, struct sockaddr **local,
                          LPINT local_length, struct sockaddr **remote, LPINT remote_length)
{
    struct hv_address own, client;
    unsigned listener_port, client_port;

    count_call(CALL_GetAcceptExSockaddrs);
    real_GetAcceptExSockaddrs(buffer, data_size, local_size, remote_size, local, local_length, remote, remote_length);
    if (*local == NULL || *remote == NULL) {
        return;
    }
    listener_port = tcp_port((struct sockaddr_in *)*local);
    client_port = tcp_port((struct sockaddr_in *)*remote);
    if (listener_port == 0 || client_port == 0) {
        return;
    }
    own = accepted_address(endpoint_at(listener_port), endpoint_at(client_port));
    client = client_address(endpoint_at(listener_port), endpoint_at(client_port));
    memcpy(*local, &own, sizeof own);
    memcpy(*remote, &client, sizeof client);
    *local_length = *remote_length = setting("HVSIM_ODD_ACCEPT") ? (INT)ACCEPT_SLOT : (INT)sizeof own;
}

int WSAAPI
hook_getsockname(SOCKET s, struct sockaddr *address, int *size)
{
    const struct endpoint *endpoint;
    struct hv_address own;
    struct handle h;
    struct fault fault;
    int error;

    if (!hyperv_call(s, CALL_getsockname, &h, &fault)) {
        return real_getsockname(s, address, size);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    endpoint = handle_endpoint(&h);
    if (h.accept_context || !(endpoint->bound || endpoint->connected)) {
        return fail(WSAEINVAL);
    }
    own = endpoint->local;
    if (h.peer_port != 0) {
        own = accepted_address(endpoint_at(h.port), endpoint);
        /* Seen on Windows: nobody is to rely on this service id. */
        own.service.Data1 += setting("HVSIM_EXACT_NAME") ? 0 : 1;
    }
    error = address_write(&own, address, size);
    return error == 0 ? 0 : fail(error);
}

int WSAAPI
hook_getpeername(SOCKET s, struct sockaddr *address, int *size)
{
    struct sockaddr_in tcp_peer;
    struct hv_address peer;
    struct handle h;
    struct fault fault;
    int tcp_size = sizeof tcp_peer, error;
    struct endpoint *endpoint;

    if (!hyperv_call(s, CALL_getpeername, &h, &fault)) {
        return real_getpeername(s, address, size);
    }
    if (fault.kind == FAULT_ERROR) {
        return fail(fault.value);
    }
    endpoint = handle_endpoint(&h);
    if (h.accept_context || h.connect_context) {
        return fail(WSAENOTCONN);
    }
    /* TCP forgets its peer with the connection. */
    if (!endpoint->established && real_getpeername(s, (struct sockaddr *)&tcp_peer, &tcp_size) != 0) {
        return fail(WSAENOTCONN);
    }
    endpoint->established = TRUE;
    peer = h.peer_port != 0 ? client_address(endpoint_at(h.port), endpoint) : endpoint->peer;
    error = address_write(&peer, address, size);
    return error == 0 ? 0 : fail(error);
}
