/* A socket's own state, and one operation on it: what the driver, the turns and both platforms share. No Python here:
 * what is an object for the methods is a void pointer. Included by hv_platform.h behind the platform's types. */
#ifndef HV_SOCKET_H
#define HV_SOCKET_H

#include "hv_address.h"
#include "hv_gate.h"

typedef enum {
    HV_DONE,        /* finished; op->result or op->accepted holds what came of it */
    HV_READY,       /* worth an attempt */
    HV_BLOCKED,     /* not possible yet; op->error is the system's word for that */
    HV_INTERRUPTED, /* a signal has arrived, and nothing was transferred */
    HV_AGAIN,       /* look whether a signal has arrived, then continue */
    HV_TIMED_OUT,   /* the deadline has passed, and nothing of the operation is left pending */
    HV_FAILED,      /* op->error says why */
    HV_RAISED,      /* a Python exception is set: said by the driver and the methods, never by the platform */
} hv_status;

typedef struct hv_op hv_op;
typedef struct hv_socket hv_socket;
typedef struct hv_turn_op hv_turn_op;

struct hv_op {
    hv_status (*start)(hv_op *op);   /* one attempt; without a timeout it may wait in the kernel */
    hv_status (*advance)(hv_op *op); /* of an operation of several transfers, after each: prepares the next one */
    hv_socket *socket;
    hv_handle handle;
    int64_t timeout;  /* ns; 0 never waits, < 0 waits without end */
    int64_t deadline; /* hv_now(); 0 until the clock of a timed operation has been started */
    int writes;       /* waits for room, not for data */
    int waits;        /* HV_BLOCKED is waited for, not reported */
    int brief;        /* the next transfer does not wait and is short: the GIL is kept */
    int late;         /* a receive whose data cannot be there yet */
    int spun;         /* busy_poll has been spent */
    int flags;
    hv_iovec *buffers;
    size_t count;
    hv_sockaddr *address; /* connect: where to; accept: filled with the peer's */
    size_t result;        /* bytes */
    hv_handle accepted;
    int error;
    hv_pending pending; /* what the platform remembers between attempts */
    hv_op *next;        /* in hv_socket.waiting */
};

/* Threads that take turns. */
typedef struct {
    hv_word owner;     /* the identity of the thread whose turn it is, or 0 */
    hv_word waiting;   /* how many threads wait for it */
    hv_word kept;      /* the next turn is reserved for the first of them */
    hv_turn_op *first; /* they, in the order in which they came; guarded by the socket's lock */
} hv_turn;

/* A message that was partly sent, to be continued by a call with the same buffers. */
typedef struct {
    hv_cell size; /* with the header; 0: there is none. Every sender looks at it */
    int64_t sent;
    void *buffers; /* object: what it is made of; NULL: not known */
    int orphaned;  /* by a fork amid the message: only the parent's thread knew how much was sent */
} hv_outbox;

enum { HV_INBOX_EMPTY, HV_INBOX_EXACTLY, HV_INBOX_MESSAGE, HV_INBOX_LOST };

/* What was received of something that is delivered as a whole. */
typedef struct {
    hv_cell state; /* one of the above. Every receiver looks at it */
    unsigned char header[4];
    size_t header_got;
    size_t size; /* known with the last byte of the header */
    size_t got;
    void *store; /* object that holds the bytes, with room for all, at `memory`; NULL: they are with the caller */
    char *memory;
    void *request; /* object: the buffers of the message whose reply this is to be; NULL: there is none */
} hv_inbox;

struct hv_socket {
    hv_gate gate;
    hv_handle handle; /* readable while the gate is open or a call is inside */
    int family;
    hv_cell timeout;        /* ns, as in hv_op */
    hv_cell busy_poll;      /* ns */
    hv_cell no_spin_before; /* hv_now() */
    hv_cell switches;       /* of the thread that spins: how often it has lost its core, */
    hv_cell switches_seen;  /* and hv_now() of that look */
    hv_cell nonblocking;    /* Windows: settimeout() has made the handle so, and keeps it so whatever the timeout */
    unsigned generation;    /* POSIX: forks so far */
    hv_lock lock;   /* guards waiting, and the waits for a turn */
    hv_op *waiting; /* operations that close() must wake by name */
    hv_cond left;   /* a call has left the shut gate */
    hv_turn sending, receiving;
    hv_outbox out; /* belongs to the thread whose turn it is to send */
    hv_inbox in;   /* belongs to the thread whose turn it is to receive */
    hv_cell send_lost; /* how much of the stream was sent is unknown: nothing may follow */
};

/* One operation of `s`, not started yet. */
static inline void
hv_op_init(hv_op *op, hv_socket *s, hv_status (*start)(hv_op *op))
{
    op->start = start;
    op->advance = NULL;
    op->socket = s;
    op->timeout = hv_cell_get(&s->timeout);
    op->deadline = 0;
    op->writes = 0;
    op->waits = HV_WAITS(op->timeout);
    op->brief = 0;
    op->late = 0;
    op->spun = 0;
    op->flags = 0;
    op->buffers = NULL;
    op->count = 0;
    op->address = NULL;
    op->result = 0;
    op->accepted = HV_NO_HANDLE;
    op->error = 0;
    hv_pending_init(&op->pending);
}

static inline hv_status
hv_op_fail(hv_op *op, int error)
{
    op->error = error;
    return HV_FAILED;
}

/* Another attempt, or a wait for it, is due. */
static inline int
hv_op_continues(const hv_op *op, hv_status status)
{
    return status == HV_READY || (status == HV_BLOCKED && op->waits);
}

/* busy_poll may be spent on it: tries that do not wait, which MSG_WAITALL does not go with. */
static inline int
hv_op_may_spin(const hv_op *op)
{
    return !op->writes && !op->spun && !(op->flags & MSG_WAITALL);
}

/* Something came of it that must not be lost, whatever else happened. */
static inline int
hv_op_has_result(const hv_op *op, hv_status status)
{
    return status == HV_DONE && (op->result > 0 || op->accepted != HV_NO_HANDLE);
}

/* Starts the clock of a call, whose timeout covers all of it. */
static inline void
hv_op_start_clock(hv_op *op)
{
    if (op->timeout > 0 && op->deadline == 0) {
        op->deadline = hv_now() + op->timeout;
    }
}

/* Nanoseconds until the deadline; 0: it has passed, < 0: there is none. */
static inline int64_t
hv_op_time_left(hv_op *op)
{
    int64_t left;
    if (op->timeout <= 0) {
        return op->timeout;
    }
    hv_op_start_clock(op);
    left = op->deadline - hv_now();
    return left > 0 ? left : 0;
}

/* Puts an operation that may sleep where close() finds it. False if close() has been here already. */
static inline int
hv_waiting_add(hv_socket *s, hv_op *op)
{
    hv_lock_acquire(&s->lock);
    op->next = s->waiting;
    s->waiting = op;
    hv_lock_release(&s->lock);
    return !hv_gate_is_closed(&s->gate);
}

static inline void
hv_waiting_remove(hv_socket *s, hv_op *op)
{
    hv_op **link;
    hv_lock_acquire(&s->lock);
    for (link = &s->waiting; *link != op; link = &(*link)->next) {
        assert(*link != NULL);
    }
    *link = op->next;
    hv_lock_release(&s->lock);
}

/* The socket is locked. */
static inline void
hv_waiting_wake(hv_socket *s, void (*wake)(hv_op *op))
{
    hv_op *op;
    for (op = s->waiting; op != NULL; op = op->next) {
        wake(op);
    }
}

/* ---- leaving ---- */

static int hv_close(hv_handle handle); /* 0, or the error */

/* Out of a shut gate: close() may be waiting for that, or has left the handle to the last call. */
static inline void
hv_leave_shut(hv_socket *s, hv_handle handle, long left)
{
    if (left == 0) {
        hv_close(handle);
        return;
    }
    hv_lock_acquire(&s->lock);
    hv_cond_wake_all(&s->left);
    hv_lock_release(&s->lock);
}

static inline void
hv_leave(hv_socket *s, hv_handle handle)
{
    long left = hv_gate_leave(&s->gate);
    if (!(left & HV_GATE_OPEN)) {
        hv_leave_shut(s, handle, left);
    }
}

#endif
