/* A socket's own state, and one operation on it as the platform seam sees it. Included by hv_posix.h
 * and hv_windows.h after they have named the platform's types. */
#ifndef HV_OP_H
#define HV_OP_H

#include "hv_address.h"
#include "hv_gate.h"

typedef enum {
    HV_DONE,        /* finished; op->result or op->accepted holds what came of it */
    HV_READY,       /* worth another try */
    HV_BLOCKED,     /* cannot go on yet; op->error is the system's word for that */
    HV_INTERRUPTED, /* a signal arrived before anything was transferred */
    HV_TIMED_OUT,   /* the deadline passed, and nothing of the operation is left pending */
    HV_FAILED,      /* op->error says why */
} hv_status;

typedef struct hv_op hv_op;
typedef struct hv_socket hv_socket;
typedef struct hv_turn_op hv_turn_op;

/* Threads that take turns. The words are atomic like a gate's. */
typedef struct {
    hv_gate owner;     /* the identity of the thread whose turn it is, or 0 */
    hv_gate waiting;   /* how many threads wait for it */
    hv_gate kept;      /* the next turn is the first one's of them */
    hv_turn_op *first; /* they, in the order in which they came; guarded by the socket's lock */
} hv_turn;

static int64_t hv_now(void); /* ns, of a clock that never goes back */

struct hv_op {
    hv_status (*start)(hv_op *op);   /* one attempt that does not wait, or may wait in the kernel */
    hv_status (*advance)(hv_op *op); /* after each HV_DONE of an operation of several transfers: what follows */
    hv_socket *socket;
    hv_handle handle;
    int64_t timeout;  /* ns; 0 never waits, < 0 waits without end */
    int64_t deadline; /* hv_now(); 0 until the first wait of a timed operation */
    int writes;       /* waits for room, not for data */
    int waits;        /* HV_BLOCKED is waited for, not reported */
    int brief;        /* the first attempt neither blocks nor takes long: hv_brief_start, with the GIL kept */
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

/* A message that was partly sent: calling again with the same one goes on. */
typedef struct {
    hv_cell size; /* with the header; 0: there is none. Every sender looks at it */
    int64_t sent;
    void *buffers; /* object: what it is made of; NULL: of what nobody can give again */
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
    unsigned generation;
    hv_lock lock;    /* guards waiting, and the waits for a turn */
    hv_op *waiting;  /* operations that close() must wake by name */
    hv_cond emptied; /* there are none any more: close() waits for that */
    hv_turn sending, receiving;
    hv_outbox out; /* belongs to the thread whose turn it is to send */
    hv_inbox in;   /* belongs to the thread whose turn it is to receive */
    /* Held while the timeout and the handle's blocking mode change, or must not. Never waited for with the GIL,
     * which its holder may be waiting for. */
    hv_lock mode;
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

/* Another attempt, or a wait for it, is due. */
static inline int
hv_op_goes_on(const hv_op *op, hv_status status)
{
    return status == HV_READY || (status == HV_BLOCKED && op->waits);
}

/* busy_poll may be spent on it: tries that do not wait, which MSG_WAITALL does not go with. */
static inline int
hv_op_may_spin(const hv_op *op)
{
    return !op->writes && !op->spun && !(op->flags & MSG_WAITALL);
}

/* Spinning is worse than sleeping where others want the core: a thread that gives it away, or loses it, gets it back
 * after their time slices, a sleeper as soon as it is woken. A gap of so many ns between two tries shows that, and for
 * so many times the gap there is no spin: what it loses stays a fiftieth. */
#define HV_CORE_LOST 200000
#define HV_GAPS_WITHOUT_SPIN 50

/* busy_poll, as far as the last spin found the core free. */
static inline int64_t
hv_busy_poll(hv_socket *s)
{
    int64_t busy_poll = hv_cell_get(&s->busy_poll);
    return busy_poll > 0 && hv_now() >= hv_cell_get(&s->no_spin_before) ? busy_poll : 0;
}

/* Another try or look of a spin is due; `last` is when the one before was. */
static inline int
hv_spin_goes_on(hv_op *op, int64_t *last, int64_t until)
{
    int64_t now = hv_now(), gap = now - *last;
    *last = now;
    if (gap >= HV_CORE_LOST) {
        hv_cell_set(&op->socket->no_spin_before, now + HV_GAPS_WITHOUT_SPIN * gap);
        return 0;
    }
    return now < until;
}

/* Nanoseconds until the deadline, which counts from the first call of this; 0: it has passed, < 0: there is none. */
static inline int64_t
hv_time_left(hv_op *op)
{
    int64_t now;
    if (op->timeout < 0) {
        return -1;
    }
    now = hv_now();
    if (op->deadline == 0) {
        op->deadline = now + op->timeout;
    }
    return op->deadline > now ? op->deadline - now : 0;
}

/* Something came of it that must not be lost, whatever else happened. */
static inline int
hv_op_has_result(const hv_op *op, hv_status status)
{
    return status == HV_DONE && (op->result > 0 || op->accepted != HV_NO_HANDLE);
}

/* Puts a waiting operation where close() finds it. False if close() has been here already. */
static inline int
hv_waiting_add(hv_socket *s, hv_op *op)
{
    hv_lock_acquire(&s->lock);
    op->next = s->waiting;
    s->waiting = op;
    hv_lock_release(&s->lock);
    return hv_gate_is_open(&s->gate);
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
    if (s->waiting == NULL && !hv_gate_is_open(&s->gate)) {
        hv_cond_wake_all(&s->emptied);
    }
    hv_lock_release(&s->lock);
}

static inline void
hv_waiting_wake(hv_socket *s, void (*wake)(hv_op *op))
{
    hv_op *op;
    hv_lock_acquire(&s->lock);
    for (op = s->waiting; op != NULL; op = op->next) {
        wake(op);
    }
    hv_lock_release(&s->lock);
}

#endif
