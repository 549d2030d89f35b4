/* Whole messages, as one operation of several transfers: a length of 4 bytes, big-endian, and that many bytes.
 * What has been transferred is in the socket (hv_outbox, hv_inbox), so that a call that ended early can be
 * gone on with. Each of the two belongs to one thread at a time, whose turn it is. No Python types. */
#ifndef HV_MESSAGE_H
#define HV_MESSAGE_H

#include <stdlib.h>

#include "hv_platform.h"

#define HV_MESSAGE_MAX 0xffffffffU
#define HV_IOV_MAX 1024        /* of one call; POSIX systems allow that many */
#define HV_TURN_SLICE 50000000 /* ns that a thread waits for its turn between looks at its signals */
#define HV_TURN_KEPT 1000000   /* ns, after which the next turn is kept for a thread that waits for it */

/* ---- turns ---- */

/* A wait for a turn. */
struct hv_turn_op {
    hv_op op;
    hv_turn *turn;
    long me;
    int64_t began; /* hv_now() */
    hv_cond woken;
    hv_turn_op *behind; /* who came later */
};

/* True if it is the thread's turn now, whoever it is kept for; hv_turn_end() is due then. */
static inline int
hv_turn_seize(hv_turn *turn, long me)
{
    long nobody = 0;
    return hv_atomic_swap_if(&turn->owner, &nobody, me);
}

/* The same, but not of a turn that is kept. */
static inline int
hv_turn_take(hv_turn *turn, long me)
{
    return hv_atomic_load(&turn->kept) == 0 && hv_turn_seize(turn, me);
}

/* The next turn is the first thread's that waits. */
static inline void
hv_turn_keep(hv_turn *turn)
{
    long not_kept = 0;
    hv_atomic_swap_if(&turn->kept, &not_kept, 1);
}

/* Has the first thread look that waits for it: all of them would be too many. The socket is locked. */
static inline void
hv_turn_wake(hv_turn *turn)
{
    if (turn->first != NULL) {
        hv_cond_wake_all(&turn->first->woken);
    }
}

static inline void
hv_turn_end(hv_socket *s, hv_turn *turn, long me)
{
    hv_atomic_swap_if(&turn->owner, &me, 0);
    if (hv_atomic_load(&turn->waiting) != 0) {
        hv_lock_acquire(&s->lock);
        hv_turn_wake(turn);
        hv_lock_release(&s->lock);
    }
}

/* Has all threads look whether the gate is open. */
static inline void
hv_turn_wake_all(hv_socket *s)
{
    hv_turn *const turns[] = {&s->sending, &s->receiving};
    hv_turn_op *wait;
    size_t i;
    hv_lock_acquire(&s->lock);
    for (i = 0; i < 2; i++) {
        for (wait = turns[i]->first; wait != NULL; wait = wait->behind) {
            hv_cond_wake_all(&wait->woken);
        }
    }
    hv_lock_release(&s->lock);
}

static inline int
hv_message_is_on(hv_socket *s)
{
    return hv_atomic_load(&s->sending.owner) != 0 || hv_atomic_load(&s->receiving.owner) != 0;
}

/* Has a place in the queue from here on. */
static inline void
hv_turn_enqueue(hv_turn_op *wait)
{
    hv_turn_op **link = &wait->turn->first;
    while (*link != NULL && (*link)->began <= wait->began) {
        link = &(*link)->behind;
    }
    wait->behind = *link;
    *link = wait;
    hv_cond_init(&wait->woken);
    hv_atomic_add(&wait->turn->waiting, 1);
}

static inline void
hv_turn_dequeue(hv_turn_op *wait)
{
    hv_turn *turn = wait->turn;
    hv_turn_op **link = &turn->first;
    long kept = 1;
    while (*link != wait) {
        link = &(*link)->behind;
    }
    *link = wait->behind;
    hv_atomic_add(&turn->waiting, -1);
    hv_cond_destroy(&wait->woken);
    if (link == &turn->first) {
        hv_atomic_swap_if(&turn->kept, &kept, 0);
        if (!wait->op.result) {
            hv_turn_wake(turn); /* the turn may be over whose end woke this one */
        }
    }
}

/* Waits for a turn. Whoever is there takes it, which costs the least; but after a while it is kept for the first
 * that waits, or others that pause for nobody could keep it waiting for ever. HV_INTERRUPTED: it is time to look
 * at the signals. */
static hv_status
hv_turn_start(hv_op *op)
{
    hv_turn_op *wait = (hv_turn_op *)op;
    hv_turn *turn = wait->turn;
    hv_socket *s = op->socket;
    int64_t left = hv_time_left(op), now = hv_now(), until;
    if (op->timeout == 0) {
        op->error = HV_ERROR_WOULD_BLOCK;
        return HV_FAILED;
    }
    if (left == 0) {
        return HV_TIMED_OUT;
    }
    until = now + (left > 0 && left < HV_TURN_SLICE ? left : HV_TURN_SLICE);
    hv_lock_acquire(&s->lock);
    hv_turn_enqueue(wait);
    for (;;) {
        int first = turn->first == wait;
        op->result = (size_t)(first ? hv_turn_seize(turn, wait->me) : hv_turn_take(turn, wait->me));
        if (op->result || !hv_gate_is_open(&s->gate) || now >= until) {
            break;
        }
        if (first && now - wait->began > HV_TURN_KEPT) {
            hv_turn_keep(turn);
        }
        hv_cond_wait(&wait->woken, &s->lock, until - now);
        now = hv_now();
    }
    hv_turn_dequeue(wait);
    hv_lock_release(&s->lock);
    return op->result ? HV_DONE : HV_INTERRUPTED;
}

/* ---- what a message is made of ---- */

typedef struct {
    const char *base;
    size_t length;
} hv_span;

/* Points iov at up to HV_IO_MAX bytes of the spans from an offset on; returns how many of its `room` it took. */
static size_t
hv_spans_from(const hv_span *spans, size_t count, uint64_t offset, hv_iovec *iov, size_t room)
{
    size_t i, used = 0, left = HV_IO_MAX;
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
    HV_MESSAGE_ENDED,      /* the peer sent no more */
    HV_MESSAGE_TOO_LONG,   /* more is announced than `limit` */
    HV_MESSAGE_NEEDS_ROOM, /* in.size bytes do not fit: set in.store, and go on */
} hv_message_outcome;

typedef struct {
    hv_op op; /* the transfer at hand */
    hv_socket *s;
    long me;
    int sends;            /* it is this thread's turn to send */
    const hv_span *spans; /* header first */
    size_t span_count;
    size_t spans_sent;   /* of which so many are behind us */
    uint64_t bytes_sent; /* with so many bytes */
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
                              (uint64_t)m->s->out.sent - m->bytes_sent, m->iov, room);
    op->brief = hv_is_brief((uint64_t)left > HV_IO_MAX ? HV_IO_MAX : (size_t)left);
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
    hv_iovec_set(m->iov, to, length < HV_IO_MAX ? length : HV_IO_MAX);
    op->start = hv_recv_start;
    op->late = op->writes; /* the reply to what was sent just now */
    op->writes = 0;
    op->buffers = m->iov;
    op->count = 1;
    op->brief = !op->late && hv_is_brief(length);
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
