/* The platform's types on POSIX. */
#ifndef HV_POSIX_TYPES_H
#define HV_POSIX_TYPES_H

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* Whether there are kqueue and the calls of 4.4BSD only, or Linux's. On Linux it is set by a test, which has a kqueue that
 * is made of epoll. */
#ifndef __linux__
#define HV_LIKE_BSD
#endif

typedef int hv_handle;
typedef struct iovec hv_iovec;
typedef pthread_mutex_t hv_lock;
typedef pthread_cond_t hv_cond;

#define HV_NO_HANDLE (-1)
#define HV_IO_MAX ((size_t)SSIZE_MAX)
#define HV_BRIEF_MAX 16384
#define HV_ERROR_CLOSED EBADF
#define HV_ERROR_WOULD_BLOCK EWOULDBLOCK
#define HV_ERROR_TOO_LONG EMSGSIZE
#define HV_ERROR_TIMED_OUT ETIMEDOUT
#define HV_ERROR_NO_MEMORY ENOMEM
#define HV_ERROR_CANCELED ECANCELED
/* Without a timeout the handle's mode decides, as for socket.socket: would-block is then the caller's. */
#define HV_WAITS(timeout) ((timeout) > 0)

typedef enum { HV_CONNECT_NEW, HV_CONNECT_CUT, HV_CONNECT_PENDING, HV_CONNECT_SETTLED } hv_connect_phase;

typedef struct {
    pthread_t thread;       /* that close() sends a signal to */
    hv_connect_phase phase; /* of a connect */
    int polled;             /* poll has just said that an attempt is worth it */
    int64_t pause;          /* ns to sleep instead of polling the handle */
} hv_pending;

static inline int
hv_forbids_waiting(int flags)
{
    return flags & MSG_DONTWAIT;
}

static inline void
hv_pending_begin(hv_pending *pending)
{
    pending->thread = pthread_self();
}

static inline void
hv_pending_init(hv_pending *pending)
{
    pending->phase = HV_CONNECT_NEW;
    pending->polled = 0;
    pending->pause = 0;
}

#endif
