/* The gate of a socket: close() shuts it, every call passes through it, and the handle is released
 * by whoever leaves last, so that the system cannot give its number to another socket while a call
 * still uses it. One word holds the open bit and the number of calls inside. */
#ifndef HV_GATE_H
#define HV_GATE_H

#include <assert.h>

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
typedef volatile long hv_gate;

static inline long
hv_atomic_load(hv_gate *word)
{
    return _InterlockedOr(word, 0);
}

static inline int
hv_atomic_swap_if(hv_gate *word, long *seen, long wanted)
{
    long was = _InterlockedCompareExchange(word, wanted, *seen);
    int swapped = was == *seen;
    *seen = was;
    return swapped;
}

static inline long
hv_atomic_add(hv_gate *word, long n)
{
    return _InterlockedExchangeAdd(word, n) + n;
}

typedef volatile __int64 hv_cell;

static inline int64_t
hv_cell_get(const hv_cell *cell)
{
    return *cell;
}

static inline void
hv_cell_set(hv_cell *cell, int64_t value)
{
    *cell = value;
}
#else
typedef long hv_gate;

static inline long
hv_atomic_load(hv_gate *word)
{
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static inline int
hv_atomic_swap_if(hv_gate *word, long *seen, long wanted)
{
    return __atomic_compare_exchange_n(word, seen, wanted, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static inline long
hv_atomic_add(hv_gate *word, long n)
{
    return __atomic_add_fetch(word, n, __ATOMIC_SEQ_CST);
}

/* A number that is always seen whole, by whichever thread; nothing else is ordered by it. */
typedef int64_t hv_cell;

static inline int64_t
hv_cell_get(const hv_cell *cell)
{
    return __atomic_load_n(cell, __ATOMIC_RELAXED);
}

static inline void
hv_cell_set(hv_cell *cell, int64_t value)
{
    __atomic_store_n(cell, value, __ATOMIC_RELAXED);
}
#endif

#define HV_GATE_OPEN 0x40000000L     /* calls may enter */
#define HV_GATE_DETACHED 0x20000000L /* the handle is someone else's now: never release it */
#define HV_GATE_CALLS 0x1fffffffL    /* how many are inside */

/* True if a call may use the handle; it must hv_gate_leave() afterwards. */
static inline int
hv_gate_enter(hv_gate *gate)
{
    long seen = hv_atomic_load(gate);
    do {
        if (!(seen & HV_GATE_OPEN)) {
            return 0;
        }
    } while (!hv_atomic_swap_if(gate, &seen, seen + 1));
    return 1;
}

/* True if the caller was the last one inside a closed gate and must release the handle. */
static inline int
hv_gate_leave(hv_gate *gate)
{
    long left = hv_atomic_add(gate, -1);
    assert((left & HV_GATE_CALLS) != HV_GATE_CALLS); /* below zero */
    return left == 0;
}

/* True if this call shut the gate. The caller then is inside, and leaves like everybody else. Whatever else
 * becomes of the handle is up to it. */
static inline int
hv_gate_shut(hv_gate *gate, long also)
{
    long seen = hv_atomic_load(gate);
    do {
        if (!(seen & HV_GATE_OPEN)) {
            return 0;
        }
    } while (!hv_atomic_swap_if(gate, &seen, ((seen & ~HV_GATE_OPEN) | also) + 1));
    return 1;
}

/* Undoes hv_gate_shut(gate, 0); the caller leaves by it. */
static inline void
hv_gate_reopen(hv_gate *gate)
{
    hv_atomic_add(gate, HV_GATE_OPEN - 1);
}

static inline int
hv_gate_is_open(hv_gate *gate)
{
    return (hv_atomic_load(gate) & HV_GATE_OPEN) != 0;
}

/* Shut, and not by detach(): what comes out of a call inside is only an echo of close(). */
static inline int
hv_gate_is_closed(hv_gate *gate)
{
    return (hv_atomic_load(gate) & (HV_GATE_OPEN | HV_GATE_DETACHED)) == 0;
}

/* Shut by close() or detach(), which is not over, or there are calls inside. */
static inline int
hv_gate_is_ending(hv_gate *gate)
{
    long seen = hv_atomic_load(gate);
    return !(seen & HV_GATE_OPEN) && (seen & HV_GATE_CALLS) != 0;
}

static inline int
hv_gate_has_others(hv_gate *gate)
{
    return (hv_atomic_load(gate) & HV_GATE_CALLS) > 1;
}

static inline int
hv_gate_is_empty(hv_gate *gate)
{
    return (hv_atomic_load(gate) & HV_GATE_CALLS) == 0;
}

#endif
