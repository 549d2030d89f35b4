/* One error of each kind that `run` looks for, so that it can tell that it would see one. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

int planted_heap(int size);
int planted_undefined(int shift);
int planted_race(int count);

/* Reads one byte behind the end. */
int
planted_heap(int size)
{
    volatile char *memory = calloc(1, (size_t)size);
    int byte = memory[size];
    free((void *)memory);
    return byte;
}

/* Shifts by more than an int has bits, for shift > 31. */
int
planted_undefined(int shift)
{
    return 1 << shift;
}

static int counter;

static void *
add(void *count)
{
    counter += *(int *)count;
    return NULL;
}

/* Two threads write without a lock. */
int
planted_race(int count)
{
    pthread_t other;
    if (pthread_create(&other, NULL, add, &count) != 0) {
        return -1;
    }
    add(&count);
    pthread_join(other, NULL);
    return counter;
}
