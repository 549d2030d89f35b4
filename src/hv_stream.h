/* Transfers that take all of a buffer, as one operation of several steps. No Python types. */
#ifndef HV_STREAM_H
#define HV_STREAM_H

#include "hv_platform.h"

/* Bytes of one transfer. A peer that is fast enough keeps the system in one call until all is moved, and the deadline and
 * the signals are only looked at between two. */
#define HV_TRANSFER_MAX ((size_t)4 << 20)

static inline size_t
hv_transfer_length(uint64_t left)
{
    return left < HV_TRANSFER_MAX ? (size_t)left : HV_TRANSFER_MAX;
}

typedef struct {
    hv_op op;     /* the transfer at hand; at the end its result is what was moved altogether */
    hv_iovec iov; /* what is left */
    char *base;
    size_t size;
    size_t moved;
} hv_whole;

static inline hv_status
hv_whole_prepare(hv_whole *w)
{
    size_t left = w->size - w->moved;
    hv_iovec_set(&w->iov, w->base + w->moved, hv_transfer_length(left));
    return HV_READY;
}

static inline hv_status
hv_whole_end(hv_whole *w)
{
    w->op.result = w->moved;
    return HV_DONE;
}

/* After a transfer: the end is reached, by the last byte or because the stream has ended, or the next is prepared. */
static hv_status
hv_whole_advance(hv_op *op)
{
    hv_whole *w = (hv_whole *)op;
    size_t n = op->result;
    op->result = 0;
    hv_pending_init(&op->pending);
    w->moved += n;
    return w->moved == w->size || n == 0 ? hv_whole_end(w) : hv_whole_prepare(w);
}

/* All of a buffer in one direction: hv_send_start or hv_recv_start. */
static inline void
hv_whole_init(hv_whole *w, hv_socket *s, hv_status (*start)(hv_op *op), void *base, size_t size)
{
    hv_op_init(&w->op, s, start);
    hv_op_start_clock(&w->op);
    w->op.advance = hv_whole_advance;
    w->op.buffers = &w->iov;
    w->op.count = 1;
    w->base = base;
    w->size = size;
    w->moved = 0;
    hv_whole_prepare(w);
}

#endif
