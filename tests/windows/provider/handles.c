#include "handles.h"

#include "calls.h"

#include <stdlib.h>
#include <string.h>

#define BUCKETS 256

static struct handle *buckets[BUCKETS];
static SRWLOCK table_lock = SRWLOCK_INIT;

void
tcp_address(struct sockaddr_in *address, unsigned port)
{
    memset(address, 0, sizeof *address);
    address->sin_family = AF_INET;
    address->sin_port = (u_short)((port >> 8) | (port << 8));
    address->sin_addr.S_un.S_un_b.s_b1 = (TCP_ADDRESS >> 24) & 0xff;
    address->sin_addr.S_un.S_un_b.s_b2 = (TCP_ADDRESS >> 16) & 0xff;
    address->sin_addr.S_un.S_un_b.s_b3 = (TCP_ADDRESS >> 8) & 0xff;
    address->sin_addr.S_un.S_un_b.s_b4 = TCP_ADDRESS & 0xff;
}

unsigned
tcp_port(const struct sockaddr_in *address)
{
    struct sockaddr_in ours;

    tcp_address(&ours, 0);
    if (address->sin_family != AF_INET || address->sin_addr.s_addr != ours.sin_addr.s_addr) {
        return 0;
    }
    return (unsigned)(((address->sin_port & 0xff) << 8) | (address->sin_port >> 8));
}

static void
probe(struct handle *h)
{
    struct sockaddr_in address;
    int size = sizeof address;

    h->port = h->peer_port = 0;
    if (real_getsockname(h->socket, (struct sockaddr *)&address, &size) == 0) {
        h->port = tcp_port(&address);
    }
    size = sizeof address;
    if (h->port != 0 && endpoint_at(h->port)->listening &&
        real_getpeername(h->socket, (struct sockaddr *)&address, &size) == 0) {
        h->peer_port = tcp_port(&address);
    }
}

static struct handle **
place(SOCKET s)
{
    struct handle **link = &buckets[(s >> 2) % BUCKETS];

    while (*link != NULL && (*link)->socket != s) {
        link = &(*link)->next;
    }
    return link;
}

static struct handle *
find(SOCKET s)
{
    struct handle **link = place(s);

    if (*link == NULL) {
        *link = calloc(1, sizeof **link);
        if (*link == NULL) {
            abort();
        }
        (*link)->socket = s;
        probe(*link);
    }
    return *link;
}

struct handle *
handle_lock(SOCKET s)
{
    DWORD error = GetLastError();
    struct handle *h;

    if (s == INVALID_SOCKET) {
        return NULL;
    }
    AcquireSRWLockExclusive(&table_lock);
    h = find(s);
    if (h->port == 0) {
        ReleaseSRWLockExclusive(&table_lock);
        h = NULL;
    }
    SetLastError(error);
    return h;
}

struct handle *
handle_lock_known(SOCKET s)
{
    struct handle *h;

    AcquireSRWLockExclusive(&table_lock);
    h = *place(s);
    if (h == NULL) {
        ReleaseSRWLockExclusive(&table_lock);
    }
    return h;
}

void
handle_unlock(void)
{
    ReleaseSRWLockExclusive(&table_lock);
}

BOOL
handle_get(SOCKET s, struct handle *copy)
{
    const struct handle *h = handle_lock(s);

    if (h != NULL) {
        *copy = *h;
        handle_unlock();
    }
    return h != NULL;
}

void
handle_refresh(SOCKET s)
{
    struct handle *h = handle_lock(s);

    if (h != NULL) {
        probe(h);
        handle_unlock();
    }
}

void
handle_forget(SOCKET s)
{
    struct handle **link, *h;

    AcquireSRWLockExclusive(&table_lock);
    link = place(s);
    h = *link;
    if (h != NULL) {
        *link = h->next;
        if (h->name != NULL) {
            CloseHandle(h->name);
        }
        if (h->held != NULL) {
            SetEvent(h->held);
        }
        free(h);
    }
    ReleaseSRWLockExclusive(&table_lock);
}

struct endpoint *
handle_endpoint(const struct handle *h)
{
    return endpoint_at(h->peer_port != 0 ? h->peer_port : h->port);
}

struct options *
handle_options(const struct handle *h)
{
    struct endpoint *endpoint = handle_endpoint(h);

    return h->peer_port != 0 ? &endpoint->accepted_options : &endpoint->options;
}
