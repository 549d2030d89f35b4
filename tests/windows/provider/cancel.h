/* Cancellation, which is not Winsock's: CancelIoEx is in another DLL. */
#ifndef HVSIM_CANCEL_H
#define HVSIM_CANCEL_H

#include <winsock2.h>
#include <windows.h>

/* From now on, each CancelIoEx of this process asks connect_ignores_cancel() first. */
void cancel_watch(void);
/* CancelIoEx that asks nothing. */
void cancel_at_once(SOCKET s, LPOVERLAPPED overlapped);

/* In connect.c. TRUE: the operation stays as it is, and the caller is told that the cancellation was
 * asked for. `overlapped` is NULL for all operations of the socket. */
BOOL connect_ignores_cancel(SOCKET s, LPOVERLAPPED overlapped);

#endif
