/* The Winsock calls that the provider answers itself: one list for all that must agree on them.
 * bench.py reads it too: what is named in HOOKED_EXPORTS is exported by our code, everything else
 * that Wine's ws2_32 exports is a jump into Wine's.
 */
#ifndef HVSIM_CALLS_H
#define HVSIM_CALLS_H

#include <winsock2.h>
#include <ws2tcpip.h>
#include <mswsock.h>
#include <windows.h>

/* X(return type, name, (parameters)) */
/* clang-format off */
#define HOOKED_EXPORTS(X) \
    X(SOCKET, socket, (int family, int type, int protocol)) \
    X(SOCKET, WSASocketW, (int family, int type, int protocol, LPWSAPROTOCOL_INFOW info, GROUP group, DWORD flags)) \
    X(SOCKET, WSASocketA, (int family, int type, int protocol, LPWSAPROTOCOL_INFOA info, GROUP group, DWORD flags)) \
    X(int, WSADuplicateSocketW, (SOCKET s, DWORD process, LPWSAPROTOCOL_INFOW info)) \
    X(int, WSADuplicateSocketA, (SOCKET s, DWORD process, LPWSAPROTOCOL_INFOA info)) \
    X(int, closesocket, (SOCKET s)) \
    X(int, bind, (SOCKET s, const struct sockaddr *address, int size)) \
    X(int, listen, (SOCKET s, int backlog)) \
    X(int, connect, (SOCKET s, const struct sockaddr *address, int size)) \
    X(int, WSAConnect, (SOCKET s, const struct sockaddr *address, int size, LPWSABUF caller, LPWSABUF callee, LPQOS qos, LPQOS group_qos)) \
    X(SOCKET, accept, (SOCKET s, struct sockaddr *address, int *size)) \
    X(SOCKET, WSAAccept, (SOCKET s, struct sockaddr *address, LPINT size, LPCONDITIONPROC condition, DWORD_PTR context)) \
    X(int, getsockname, (SOCKET s, struct sockaddr *address, int *size)) \
    X(int, getpeername, (SOCKET s, struct sockaddr *address, int *size)) \
    X(int, setsockopt, (SOCKET s, int level, int option, const char *value, int size)) \
    X(int, getsockopt, (SOCKET s, int level, int option, char *value, int *size)) \
    X(int, ioctlsocket, (SOCKET s, long command, u_long *argument)) \
    X(int, WSAIoctl, (SOCKET s, DWORD code, LPVOID in, DWORD in_size, LPVOID out, DWORD out_size, LPDWORD returned, LPWSAOVERLAPPED overlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE routine)) \
    X(int, shutdown, (SOCKET s, int how)) \
    X(int, send, (SOCKET s, const char *data, int size, int flags)) \
    X(int, recv, (SOCKET s, char *data, int size, int flags)) \
    X(int, WSASend, (SOCKET s, LPWSABUF buffers, DWORD count, LPDWORD sent, DWORD flags, LPWSAOVERLAPPED overlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE routine)) \
    X(int, WSARecv, (SOCKET s, LPWSABUF buffers, DWORD count, LPDWORD received, LPDWORD flags, LPWSAOVERLAPPED overlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE routine)) \
    X(BOOL, WSAGetOverlappedResult, (SOCKET s, LPWSAOVERLAPPED overlapped, LPDWORD transferred, BOOL wait, LPDWORD flags)) \
    X(int, select, (int ignored, fd_set *readable, fd_set *writable, fd_set *failed, const struct timeval *timeout)) \
    X(int, WSAPoll, (LPWSAPOLLFD sockets, ULONG count, INT timeout)) \
    X(int, WSAEventSelect, (SOCKET s, WSAEVENT event, long events)) \
    X(int, WSAEnumNetworkEvents, (SOCKET s, WSAEVENT event, LPWSANETWORKEVENTS result))

/* Reached through WSAIoctl(SIO_GET_EXTENSION_FUNCTION_POINTER), not by name. */
#define HOOKED_EXTENSIONS(X) \
    X(BOOL, ConnectEx, (SOCKET s, const struct sockaddr *address, int size, PVOID data, DWORD data_size, LPDWORD sent, LPOVERLAPPED overlapped)) \
    X(BOOL, AcceptEx, (SOCKET listener, SOCKET accepted, PVOID buffer, DWORD data_size, DWORD local_size, DWORD remote_size, LPDWORD received, LPOVERLAPPED overlapped)) \
    X(void, GetAcceptExSockaddrs, (PVOID buffer, DWORD data_size, DWORD local_size, DWORD remote_size, struct sockaddr **local, LPINT local_length, struct sockaddr **remote, LPINT remote_length)) \
    X(BOOL, TransmitFile, (SOCKET s, HANDLE file, DWORD size, DWORD block, LPOVERLAPPED overlapped, LPTRANSMIT_FILE_BUFFERS around, DWORD flags)) \
    X(BOOL, DisconnectEx, (SOCKET s, LPOVERLAPPED overlapped, DWORD flags, DWORD reserved))

/* clang-format on */

/* real_NAME is Wine's function, hook_NAME is ours, CALL_NAME counts it. */
#define DECLARE_CALL(type, name, parameters)                                                                           \
    extern type(WSAAPI *real_##name) parameters;                                                                       \
    type WSAAPI hook_##name parameters;
HOOKED_EXPORTS(DECLARE_CALL)
HOOKED_EXTENSIONS(DECLARE_CALL)
#undef DECLARE_CALL

#define NUMBER_CALL(type, name, parameters) CALL_##name,
enum call { HOOKED_EXPORTS(NUMBER_CALL) HOOKED_EXTENSIONS(NUMBER_CALL) CALL_COUNT };
#undef NUMBER_CALL

#endif
