/* The platform seam: what hv_posix.h and hv_windows.h both define. The headers of types come first, since a socket's
 * state holds some of them:
 *
 *   hv_handle, hv_iovec, hv_lock, hv_cond
 *   hv_pending with hv_pending_begin() for an operation (with the GIL) and hv_pending_init() for each of its transfers
 *   HV_NO_HANDLE, HV_IO_MAX, and the system's errors, HV_ERROR_...
 *   HV_BRIEF_MAX         up to so many bytes a send that does not wait is over sooner than the GIL is back
 *   HV_WAITS(timeout)    whether a transfer that is not possible yet is waited for here, and not in the system's call
 *   hv_forbids_waiting(flags): whether the flags of a transfer do, whatever its timeout is
 */
#ifndef HV_PLATFORM_H
#define HV_PLATFORM_H

#ifdef _WIN32
#include "hv_windows_types.h"
#else
#include "hv_posix_types.h"
#endif

/* ---- locks and clocks ---- */

static inline void hv_lock_init(hv_lock *lock);
static inline void hv_lock_destroy(hv_lock *lock);
static inline void hv_lock_acquire(hv_lock *lock);
static inline void hv_lock_release(hv_lock *lock);
static void hv_cond_init(hv_cond *cond);
static inline void hv_cond_destroy(hv_cond *cond);
static inline void hv_cond_wake_all(hv_cond *cond);
static void hv_cond_wait(hv_cond *cond, hv_lock *lock, int64_t ns); /* for so long at most, or for less */
static long hv_thread_id(void);                                     /* as PyThread_get_thread_ident() */
static int64_t hv_now(void);                                        /* ns, of a clock that never goes back */

#include "hv_socket.h"

/* ---- the process ---- */

static int hv_platform_init(void); /* once for each interpreter: 0, or the error. Called with no lock held */
static hv_lock hv_once;            /* held while what all interpreters share is set */

/* ---- errors ---- */

static inline int hv_error_is_not_yet(int error); /* part of normal work on a non-blocking socket */
static inline int hv_error_is_reset(int error);
static hv_status hv_failed_now(hv_op *op); /* what the system's last error means for the operation */

/* ---- a socket's life ---- */

static void hv_socket_init(hv_socket *s);        /* all but handle, family, timeout, gate, out and in */
static inline void hv_socket_sync(hv_socket *s); /* before gate and turns are used: forgets what a fork left behind */
static inline int hv_handle_is_usable(hv_handle handle); /* false: the system itself waits in every call on it */
static void hv_hand_over(hv_socket *s); /* detach(): gives the handle the mode that its new owner expects */
static int hv_close(hv_handle handle);  /* 0, or the error */
static void hv_wake_all(hv_socket *s);  /* the gate is shut: has every call inside look at that, as often as called */

/* ---- attempts ----
 *
 * Each is one try of op->start, and returns HV_DONE (op->result, op->accepted), HV_BLOCKED, HV_INTERRUPTED or
 * HV_FAILED. Nothing is pending afterwards but on Windows, where HV_BLOCKED may mean an operation that hv_wait()
 * ends in any case. A handle's mode is never changed, and may be any. */

static hv_status hv_recv_start(hv_op *op);
static hv_status hv_send_start(hv_op *op);    /* of the first buffer */
static hv_status hv_sendmsg_start(hv_op *op); /* of all */
static hv_status hv_accept_start(hv_op *op);
static hv_status hv_connect_start(hv_op *op);

/* The same for the most frequent calls, without an operation: the number of bytes, or minus the error for hv_failed(), or
 * HV_UNTRIED where an attempt takes more than one call of the system. */
#define HV_UNTRIED INT64_MIN
static inline int64_t hv_recv_once(hv_handle handle, void *to, size_t size, int64_t timeout);
static inline int64_t hv_send_once(hv_handle handle, const void *data, size_t size, int64_t timeout);
static hv_status hv_failed(hv_op *op, int error); /* what that error means for the operation */

static inline void hv_iovec_set(hv_iovec *iov, void *base, size_t length);

/* ---- waiting ---- */

static hv_status hv_try(hv_op *op); /* an attempt that does not wait, whatever the timeout */

/* After an operation that has moved something: tries without waiting. HV_AGAIN: it would wait, and a signal that came
 * meanwhile would not wake it. */
static hv_status hv_continue(hv_op *op);
static inline hv_status hv_expect(const hv_op *op); /* what to do first about a receive that is `late` */
static hv_status hv_spin(hv_op *op, int64_t ns);    /* tries for so long; what came of it, HV_BLOCKED or HV_AGAIN */
static hv_status hv_wait(hv_socket *s, hv_op *op);  /* HV_READY, or HV_DONE on Windows, or why not */

#ifdef _WIN32
#include "hv_windows.h"
#else
#include "hv_posix.h"
#endif

#endif
