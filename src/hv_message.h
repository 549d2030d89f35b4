/* Whole messages, as one operation of several transfers: a length of 4 bytes, big-endian, and that many bytes.
 * What has been transferred is in the socket (hv_outbox, hv_inbox), so that a call that ended early can be
 * continued. Each of the two belongs to one thread at a time, whose turn it is. No Python types. */
#ifndef HV_MESSAGE_H
#define HV_MESSAGE_H

#include <stdlib.h>

#include "hv_stream.h"
#include "hv_turn.h"

#define HV_MESSAGE_MAX 0xffffffffU
#define HV_IOV_MAX 1024 /* of one call; POSIX systems allow that many */

/* ---- what a message is made of ---- */

typedef struct {
    const char *base;
    size_t length;
} hv_span;

/* Points iov at up to `most` bytes of the spans from an offset on; returns how many of its `room` it took. */
static size_t
hv_spans_from(const hv_span *spans, size_t count, uint64_t offset, size_t most, hv_iovec *iov, size_t room)
{
    size_t i, used = 0, left = most;
    for (i = 0; i < count && used < room && left > 0; i++) {
        size_t length = spans[i].length;
        if (offset >= length) {
            offset -= length;
            continue;
        }
        length -= (size_t)offset;
        length = length < left ? length : left;
        hv_iovec_set(&iov[used++], (void *)(spans[i].base + offset), length);
        left -= length;
        offset = 0;
    }
    return used;
}

/* ---- the operation ---- */

typedef enum {
    HV_MESSAGE_OPEN,       /* not at its end */
    HV_MESSAGE_WHOLE,      /* all sent and, if that follows, all received */
    HV_MESSAGE_ENDED,      /* by the peer, before that */
    HV_MESSAGE_TOO_LONG,   /* more is announced than `limit` */
    HV_MESSAGE_NEEDS_ROOM, /* in.size bytes do not fit: set in.store, and continue */
} hv_message_outcome;

typedef struct {
    hv_op op; /* the transfer at hand */
    hv_socket *s;
    long me;
    int sends;            /* it is this thread's turn to send */
    const hv_span *spans; /* header first */
    size_t span_count;
    size_t spans_sent;   /* how many of them have been sent */
    uint64_t bytes_sent; /* and how many bytes those had */
    hv_iovec *iov;       /* room for all spans; one for a receive */
    int receives;        /* after that */
    size_t limit;        /* of the payload received */
    char *room;          /* where it goes while in.store is NULL */
    size_t room_size;
    size_t heap_max; /* up to this size room is made on the heap */
    char *heap;      /* the caller frees it */
    void *sent;      /* object: out.buffers of a request that has been sent; the caller releases it */
    hv_message_outcome outcome;
} hv_message;

static inline hv_status
hv_message_end(hv_message *m, hv_message_outcome outcome)
{
    m->outcome = outcome;
    m->op.result = outcome == HV_MESSAGE_WHOLE; /* it counts even if close() comes now */
    return HV_DONE;
}

static inline hv_status
hv_message_send(hv_message *m)
{
    hv_op *op = &m->op;
    int64_t left = m->s->out.size - m->s->out.sent;
    size_t room = m->span_count < HV_IOV_MAX ? m->span_count : HV_IOV_MAX;
    while ((uint64_t)m->s->out.sent - m->bytes_sent >= m->spans[m->spans_sent].length) {
        m->bytes_sent += m->spans[m->spans_sent++].length;
    }
    op->start = hv_sendmsg_start;
    op->writes = 1;
    op->buffers = m->iov;
    op->count = hv_spans_from(m->spans + m->spans_sent, m->span_count - m->spans_sent,
                              (uint64_t)m->s->out.sent - m->bytes_sent, HV_TRANSFER_MAX, m->iov, room);
    /* In an exchange, the receive that follows releases the GIL. */
    op->brief = m->receives && left <= HV_BRIEF_MAX;
    return HV_READY;
}

static inline int
hv_message_makes_room(hv_message *m)
{
    if (m->s->in.size > m->heap_max) {
        return 0;
    }
    m->heap = malloc(m->s->in.size);
    m->room = m->heap;
    m->room_size = m->heap == NULL ? 0 : m->s->in.size;
    return m->heap != NULL;
}

/* The next receive: of the header, or of the payload. */
static inline hv_status
hv_message_receive(hv_message *m)
{
    hv_op *op = &m->op;
    hv_inbox *in = &m->s->in;
    char *to = (char *)in->header + in->header_got;
    size_t length = sizeof in->header - in->header_got;
    if (length == 0) {
        if (in->size > m->limit) {
            return hv_message_end(m, HV_MESSAGE_TOO_LONG);
        }
        if (in->got == in->size) {
            return hv_message_end(m, HV_MESSAGE_WHOLE);
        }
        if (in->store == NULL && in->size > m->room_size && !hv_message_makes_room(m)) {
            return hv_message_end(m, HV_MESSAGE_NEEDS_ROOM);
        }
        to = (in->store == NULL ? m->room : in->memory) + in->got;
        length = in->size - in->got;
    }
    hv_iovec_set(m->iov, to, hv_transfer_length(length));
    op->start = hv_recv_start;
    op->late = op->writes; /* the reply to what was sent just now */
    op->writes = 0;
    op->buffers = m->iov;
    op->count = 1;
    op->brief = 0;
    return HV_READY;
}

static inline int
hv_message_is_sent(const hv_message *m)
{
    return !m->sends || m->s->out.sent == m->s->out.size;
}

/* Prepares the next transfer: HV_READY, or HV_DONE with an outcome. */
static hv_status
hv_message_next(hv_message *m)
{
    if (m->sends) {
        hv_outbox *out = &m->s->out;
        if (out->sent < out->size) {
            return hv_message_send(m);
        }
        if (m->receives) { /* others may send while this one waits for a reply */
            m->sent = out->buffers;
            out->buffers = NULL;
            hv_cell_set(&out->size, 0);
            m->sends = 0;
            hv_turn_end(m->s, &m->s->sending, m->me);
        }
    }
    return m->receives ? hv_message_receive(m) : hv_message_end(m, HV_MESSAGE_WHOLE);
}

static inline void
hv_inbox_size(hv_inbox *in)
{
    const unsigned char *h = in->header;
    in->size = (size_t)h[0] << 24 | (size_t)h[1] << 16 | (size_t)h[2] << 8 | h[3];
}

static hv_status
hv_message_advance(hv_op *op)
{
    hv_message *m = (hv_message *)op;
    hv_inbox *in = &m->s->in;
    size_t n = op->result;
    op->result = 0;
    hv_pending_init(&op->pending);
    if (op->writes) {
        m->s->out.sent += (int64_t)n;
    } else if (n == 0) {
        return hv_message_end(m, HV_MESSAGE_ENDED);
    } else if (in->header_got < sizeof in->header) {
        in->header_got += n;
        if (in->header_got == sizeof in->header) {
            hv_inbox_size(in);
        }
    } else {
        in->got += n;
    }
    op->spun = 0; /* busy_poll is for each wait */
    return hv_message_next(m);
}

#endif
