/* What this process knows about each SOCKET. */
#ifndef HVSIM_HANDLES_H
#define HVSIM_HANDLES_H

#include "world.h"

#include <winsock2.h>
#include <windows.h>

/* Every Hyper-V socket is a TCP socket bound to this address, from its creation on: so that a
 * SOCKET that came from elsewhere (inherited, shared) is recognised. */
#define TCP_ADDRESS 0x7f485601u /* 127.72.86.1 */

struct handle {
    SOCKET socket;
    struct handle *next;
    unsigned port;      /* its TCP port; 0: not a Hyper-V socket */
    unsigned peer_port; /* an accepted socket's peer; 0: not an accepted socket */
    BOOL nonblocking;
    BOOL accept_context;  /* AcceptEx was called, SO_UPDATE_ACCEPT_CONTEXT is missing */
    BOOL connect_context; /* the same for ConnectEx */
    HANDLE name;          /* a listener's hold on its name */
    HANDLE held;          /* a connect is held back; setting this event ends that */
    LPOVERLAPPED held_overlapped;
    DWORD stubborn; /* for so many milliseconds, that connect ignores what is to end it */
    BOOL cancelled; /* it was, and is ignoring it */
    BOOL timed_out; /* the connect that was held back has failed by time */
};

/* A copy of the entry; FALSE if this is no Hyper-V socket. Keeps the thread's last error. */
BOOL handle_get(SOCKET s, struct handle *copy);
/* The entry itself, with the table locked until handle_unlock(); NULL (and nothing locked) if this
 * is no Hyper-V socket. */
struct handle *handle_lock(SOCKET s);
/* The same for a number that may have come to mean another socket, or none: one that is not known is not looked at. */
struct handle *handle_lock_known(SOCKET s);
void handle_unlock(void);
/* Look at the TCP addresses again: the socket has become an accepted one. */
void handle_refresh(SOCKET s);
/* The SOCKET is about to be closed, or its number has come to mean a new one. */
void handle_forget(SOCKET s);

/* The record of the connection (an accepted socket), or of the socket itself. */
struct endpoint *handle_endpoint(const struct handle *h);
struct options *handle_options(const struct handle *h);

void tcp_address(struct sockaddr_in *address, unsigned port);
unsigned tcp_port(const struct sockaddr_in *address);

#endif
