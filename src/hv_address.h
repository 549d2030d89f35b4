/* The address seam: socket addresses of the families we speak <-> plain C values. No Python here. */
#ifndef HV_ADDRESS_H
#define HV_ADDRESS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#include <winsock2.h>
typedef int hv_socklen;
#else
#include <sys/socket.h>
#include <sys/un.h>
#ifdef __linux__
/* Not AF_VSOCK, which macOS defines without a struct sockaddr_vm. */
#define HV_HAS_VSOCK
#include <linux/vm_sockets.h>
#endif
typedef socklen_t hv_socklen;
#endif

#define HV_AF_HYPERV 34
#define HV_PROTOCOL_RAW 1

/* SOCKADDR_HV of the Windows SDK's hvsocket.h: 36 bytes, GUIDs in Windows' mixed byte order. */
typedef struct {
    uint16_t family;
    uint16_t reserved;
    uint8_t vm_id[16];
    uint8_t service_id[16];
} hv_sockaddr_hyperv;

typedef char hv_sockaddr_hyperv_is_36_bytes[sizeof(hv_sockaddr_hyperv) == 36 ? 1 : -1];

typedef struct {
    union {
        struct sockaddr any;
        hv_sockaddr_hyperv hyperv;
#ifndef _WIN32
        struct sockaddr_un un;
#endif
#ifdef HV_HAS_VSOCK
        struct sockaddr_vm vm;
#endif
        char room[128]; /* a longer address of another family is cut, never overrun */
    } u;
    hv_socklen length;
} hv_sockaddr;

static inline void
hv_sockaddr_clear(hv_sockaddr *address)
{
    memset(address, 0, sizeof *address);
    address->length = sizeof address->u;
}

/* The kind of address a family uses here; HV_ADDRESS_OTHER is left to socket.socket. */
typedef enum { HV_ADDRESS_OTHER, HV_ADDRESS_HYPERV, HV_ADDRESS_VSOCK, HV_ADDRESS_UNIX } hv_address_kind;

static inline hv_address_kind
hv_address_kind_of(int family)
{
#ifdef _WIN32
    return family == HV_AF_HYPERV ? HV_ADDRESS_HYPERV : HV_ADDRESS_OTHER;
#else
#ifdef HV_HAS_VSOCK
    if (family == AF_VSOCK) {
        return HV_ADDRESS_VSOCK;
    }
#endif
    return family == AF_UNIX ? HV_ADDRESS_UNIX : HV_ADDRESS_OTHER;
#endif
}

/* A packed SOCKADDR_HV, checked: NULL, or what is wrong with it. */
static inline const char *
hv_sockaddr_set_hyperv(hv_sockaddr *address, const void *packed, size_t length)
{
    hv_sockaddr_clear(address);
    if (length != sizeof address->u.hyperv) {
        return "a SOCKADDR_HV has 36 bytes";
    }
    memcpy(&address->u.hyperv, packed, sizeof address->u.hyperv);
    address->length = sizeof address->u.hyperv;
    if (address->u.hyperv.family != HV_AF_HYPERV) {
        return "the family of a SOCKADDR_HV is 34 (AF_HYPERV)";
    }
    if (address->u.hyperv.reserved != 0) {
        return "the reserved field of a SOCKADDR_HV is 0";
    }
    return NULL;
}

/* What the system returned is a SOCKADDR_HV. */
static inline int
hv_sockaddr_is_hyperv(const hv_sockaddr *address)
{
    return address->length == (hv_socklen)sizeof address->u.hyperv && address->u.hyperv.family == HV_AF_HYPERV;
}

/* Where a platform lacks a family, hv_address_kind_of() never leads to its functions: they do nothing. */

#ifdef HV_HAS_VSOCK
static inline void
hv_sockaddr_set_vsock(hv_sockaddr *address, uint32_t cid, uint32_t port)
{
    hv_sockaddr_clear(address);
    address->u.vm.svm_family = AF_VSOCK;
    address->u.vm.svm_cid = cid;
    address->u.vm.svm_port = port;
    address->length = sizeof address->u.vm;
}

static inline void
hv_sockaddr_get_vsock(const hv_sockaddr *address, uint32_t *cid, uint32_t *port)
{
    *cid = address->u.vm.svm_cid;
    *port = address->u.vm.svm_port;
}
#else
static inline void
hv_sockaddr_set_vsock(hv_sockaddr *address, uint32_t cid, uint32_t port)
{
    (void)cid, (void)port;
    hv_sockaddr_clear(address);
}

static inline void
hv_sockaddr_get_vsock(const hv_sockaddr *address, uint32_t *cid, uint32_t *port)
{
    (void)address;
    *cid = *port = 0;
}
#endif

#ifndef _WIN32
#define HV_SUN_PATH_SIZE (sizeof(((struct sockaddr_un *)0)->sun_path))

/* 0, or -1 if the path with its final zero does not fit. */
static inline int
hv_sockaddr_set_unix(hv_sockaddr *address, const char *path, size_t length)
{
    int abstract = length > 0 && path[0] == 0; /* Linux: a name of `length` bytes without a final zero */
    hv_sockaddr_clear(address);
    if (length + !abstract > HV_SUN_PATH_SIZE) {
        return -1;
    }
    address->u.un.sun_family = AF_UNIX;
    memcpy(address->u.un.sun_path, path, length);
    address->length = (hv_socklen)(offsetof(struct sockaddr_un, sun_path) + length + !abstract);
    return 0;
}

/* The path, and its length, which is 0 for an unnamed socket. */
static inline const char *
hv_sockaddr_get_unix(const hv_sockaddr *address, size_t *length)
{
    size_t head = offsetof(struct sockaddr_un, sun_path);
    size_t room = (size_t)address->length > head ? (size_t)address->length - head : 0;
    const char *path = address->u.un.sun_path;
    room = room < HV_SUN_PATH_SIZE ? room : HV_SUN_PATH_SIZE;
    *length = room > 0 && path[0] == 0 ? room : strnlen(path, room);
    return path;
}
#else
#define HV_SUN_PATH_SIZE 0

static inline int
hv_sockaddr_set_unix(hv_sockaddr *address, const char *path, size_t length)
{
    (void)path, (void)length;
    hv_sockaddr_clear(address);
    return -1;
}

static inline const char *
hv_sockaddr_get_unix(const hv_sockaddr *address, size_t *length)
{
    (void)address;
    *length = 0;
    return "";
}
#endif

#endif
