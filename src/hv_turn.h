/* Turns: on one socket, one thread at a time sends messages, and one receives them. The others wait in the order in which
 * they came. */
#ifndef HV_TURN_H
#define HV_TURN_H

#include "hv_platform.h"

#define HV_TURN_SLICE 50000000 /* ns that a thread waits for its turn between looks at its signals */
#define HV_TURN_KEPT 1000000   /* ns, after which the next turn is kept for a thread that waits for it */

/* A wait for a turn. */
struct hv_turn_op {
    hv_op op;
    hv_turn *turn;
    long me;
    int64_t began; /* hv_now() */
    hv_cond woken;
    hv_turn_op *behind; /* the one that came next */
};

/* True if it is the thread's turn now, even if it is kept for another; hv_turn_end() is due then. */
static inline int
hv_turn_seize(hv_turn *turn, long me)
{
    long free = 0;
    return hv_word_swap_if(&turn->owner, &free, me);
}

/* The same, but not of a turn that is kept. */
static inline int
hv_turn_take(hv_turn *turn, long me)
{
    return hv_word_get(&turn->kept) == 0 && hv_turn_seize(turn, me);
}

/* Reserves the next turn for the thread that has waited longest. */
static inline void
hv_turn_keep(hv_turn *turn)
{
    long not_kept = 0;
    hv_word_swap_if(&turn->kept, &not_kept, 1);
}

/* Wakes the thread that has waited longest, to look; waking all would cost too much. The socket is locked. */
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
    hv_word_swap_if(&turn->owner, &me, 0);
    if (hv_word_get(&turn->waiting) != 0) {
        hv_socket_sync(s); /* after a fork, waiters and lock may be those of the parent process */
        hv_lock_acquire(&s->lock);
        hv_turn_wake(turn);
        hv_lock_release(&s->lock);
    }
}

/* Wakes all threads, to look whether the gate is open. */
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
    return hv_word_get(&s->sending.owner) != 0 || hv_word_get(&s->receiving.owner) != 0;
}

/* Enters the queue. */
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
    hv_word_add(&wait->turn->waiting, 1);
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
    hv_word_add(&turn->waiting, -1);
    hv_cond_destroy(&wait->woken);
    if (link == &turn->first) {
        hv_word_swap_if(&turn->kept, &kept, 0);
        if (!wait->op.result) {
            hv_turn_wake(turn); /* this thread was woken by the end of a turn, and does not take the next one */
        }
    }
}

/* Waits for a turn. A free turn goes to the thread that asks first, which costs least. After a millisecond it is reserved
 * for the longest waiter, since threads that never pause could keep that one waiting for ever. HV_AGAIN: it is time to
 * look at the signals. */
static hv_status
hv_turn_start(hv_op *op)
{
    hv_turn_op *wait = (hv_turn_op *)op;
    hv_turn *turn = wait->turn;
    hv_socket *s = op->socket;
    int64_t left = hv_op_time_left(op), now = hv_now(), until;
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
    return op->result ? HV_DONE : HV_AGAIN;
}

/* ---- the end ---- */

#define HV_END_SLICE 5000000    /* ns after which calls that are still inside are woken again */
#define HV_END_LIMIT 1000000000 /* ns that close() waits for them at most */

/* The gate is shut, and the caller inside: wakes the other calls and waits until they have left, so that the socket
 * itself is gone when close() returns. One that the system does not let go of releases the handle as it leaves. */
static void
hv_end_calls(hv_socket *s)
{
    int64_t until = hv_now() + HV_END_LIMIT;
    while (hv_gate_has_others(&s->gate) && hv_now() < until) {
        hv_wake_all(s);
        hv_turn_wake_all(s);
        hv_lock_acquire(&s->lock);
        if (hv_gate_has_others(&s->gate)) {
            hv_cond_wait(&s->left, &s->lock, HV_END_SLICE);
        }
        hv_lock_release(&s->lock);
    }
}

#endif
