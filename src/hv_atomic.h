/* The atomic numbers of this extension, for every compiler: words that order what is around them, cells that are only
 * always seen whole, and counters. */
#ifndef HV_ATOMIC_H
#define HV_ATOMIC_H

#include <stddef.h>
#include <stdint.h>

#if defined(_MSC_VER) && !defined(__clang__)
#ifndef _WIN64
#error "hvsock needs 64-bit atomic loads and stores: a 32-bit build of MSVC has none"
#endif
#include <intrin.h>

typedef volatile long hv_word;
typedef volatile __int64 hv_cell;
typedef volatile __int64 hv_counter;

static inline long
hv_word_get(hv_word *word)
{
    return _InterlockedOr(word, 0);
}

static inline int
hv_word_swap_if(hv_word *word, long *seen, long wanted)
{
    long was = _InterlockedCompareExchange(word, wanted, *seen);
    int swapped = was == *seen;
    *seen = was;
    return swapped;
}

static inline long
hv_word_add(hv_word *word, long n)
{
    return _InterlockedExchangeAdd(word, n) + n;
}

static inline int64_t
hv_cell_get(const hv_cell *cell)
{
    return __iso_volatile_load64(cell);
}

static inline void
hv_cell_set(hv_cell *cell, int64_t value)
{
    __iso_volatile_store64(cell, value);
}

static inline void
hv_counter_add(hv_counter *counter, size_t n)
{
    _InterlockedExchangeAdd64(counter, (__int64)n);
}

static inline uint64_t
hv_counter_get(const hv_counter *counter)
{
    return (uint64_t)__iso_volatile_load64(counter);
}
#else
typedef long hv_word;
typedef int64_t hv_cell;
typedef uint64_t hv_counter;

static inline long
hv_word_get(hv_word *word)
{
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

/* Sets the word if it is *seen; *seen is what it was. */
static inline int
hv_word_swap_if(hv_word *word, long *seen, long wanted)
{
    return __atomic_compare_exchange_n(word, seen, wanted, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Returns the sum. */
static inline long
hv_word_add(hv_word *word, long n)
{
    return __atomic_add_fetch(word, n, __ATOMIC_SEQ_CST);
}

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

static inline void
hv_counter_add(hv_counter *counter, size_t n)
{
    __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

static inline uint64_t
hv_counter_get(const hv_counter *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}
#endif

#endif
