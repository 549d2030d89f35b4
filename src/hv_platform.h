/* The platform seam. Both headers define the same names:
 *
 *   hv_handle, hv_iovec, hv_lock, hv_cond, hv_pending
 *   HV_IO_MAX, HV_NO_HANDLE, HV_WAITS, HV_ERROR_CLOSED, HV_ERROR_WOULD_BLOCK, HV_ERROR_TOO_LONG
 *   hv_platform_init(), hv_raise_error(code), hv_error_is_not_yet(), hv_error_is_reset(), hv_now(), hv_iovec_set()
 *   hv_socket_init(), hv_socket_sync(), hv_release_mode(), hv_close()
 *   hv_recv_start, hv_send_start, hv_sendmsg_start, hv_accept_start, hv_connect_start, hv_failed_now()
 *   hv_is_brief(), hv_brief_start(), hv_go_on(), hv_expect(), hv_spin(), hv_wait(), hv_wake_all()
 *   hv_lock_acquire(), hv_lock_release(), hv_once, hv_cond_wait(), hv_cond_wake_all()
 */
#ifndef HV_PLATFORM_H
#define HV_PLATFORM_H

#ifdef _WIN32
#include "hv_windows.h"
#else
#include "hv_posix.h"
#endif

#endif
