/* The gate of a socket: close() shuts it, every call passes through it, and the last call that leaves
 * releases the handle, so that the system cannot give its number to another socket while a call
 * still uses it. One word holds the open bit and the number of calls inside. */
#ifndef HV_GATE_H
#define HV_GATE_H

#include <assert.h>

#include "hv_atomic.h"

typedef hv_word hv_gate;

#define HV_GATE_OPEN 0x40000000L     /* calls may enter */
#define HV_GATE_DETACHED 0x20000000L /* the handle has another owner now: never release it */
#define HV_GATE_CALLS 0x1fffffffL    /* how many are inside */

/* True if a call may use the handle; it must hv_gate_leave() afterwards. */
static inline int
hv_gate_enter(hv_gate *gate)
{
    long seen = hv_word_get(gate);
    do {
        if (!(seen & HV_GATE_OPEN)) {
            return 0;
        }
    } while (!hv_word_swap_if(gate, &seen, seen + 1));
    return 1;
}

/* Returns what is left of the word. Zero: the caller was the last one inside a closed gate and must release the handle. */
static inline long
hv_gate_leave(hv_gate *gate)
{
    long left = hv_word_add(gate, -1);
    assert((left & HV_GATE_CALLS) != HV_GATE_CALLS); /* below zero */
    return left;
}

/* The gate of a handle that is new to the socket; nothing is inside. */
static inline void
hv_gate_open(hv_gate *gate)
{
    long seen = hv_word_get(gate);
    while (!hv_word_swap_if(gate, &seen, HV_GATE_OPEN)) {
    }
}

/* True if this call shut the gate. The caller then is inside, and leaves like the others.
 * `also`: another bit to set, or 0. */
static inline int
hv_gate_shut(hv_gate *gate, long also)
{
    long seen = hv_word_get(gate);
    do {
        if (!(seen & HV_GATE_OPEN)) {
            return 0;
        }
    } while (!hv_word_swap_if(gate, &seen, ((seen & ~HV_GATE_OPEN) | also) + 1));
    return 1;
}

/* Undoes hv_gate_shut(gate, 0); the caller leaves by it. */
static inline void
hv_gate_reopen(hv_gate *gate)
{
    hv_word_add(gate, HV_GATE_OPEN - 1);
}

static inline int
hv_gate_is_open(hv_gate *gate)
{
    return (hv_word_get(gate) & HV_GATE_OPEN) != 0;
}

/* Shut, and not by detach(): an error of a call inside is only a consequence of close(). */
static inline int
hv_gate_is_closed(hv_gate *gate)
{
    return (hv_word_get(gate) & (HV_GATE_OPEN | HV_GATE_DETACHED)) == 0;
}

/* Shut, while close() or detach() itself or other calls are still inside. */
static inline int
hv_gate_is_ending(hv_gate *gate)
{
    long seen = hv_word_get(gate);
    return !(seen & HV_GATE_OPEN) && (seen & HV_GATE_CALLS) != 0;
}

static inline int
hv_gate_has_others(hv_gate *gate)
{
    return (hv_word_get(gate) & HV_GATE_CALLS) > 1;
}

static inline int
hv_gate_is_empty(hv_gate *gate)
{
    return (hv_word_get(gate) & HV_GATE_CALLS) == 0;
}

#endif
