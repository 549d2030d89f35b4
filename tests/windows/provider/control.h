/* What a test asks of the provider: count calls, make calls fail. */
#ifndef HVSIM_CONTROL_H
#define HVSIM_CONTROL_H

#include "calls.h"
#include "handles.h"

/* Exported, for ctypes (hvsim.py wraps them). */

/* How often a call was made on Hyper-V sockets of this process; -1: no such call. */
int hvsim_count(const char *call);
void hvsim_reset_counts(void);
/* The name of call number `index`, or NULL past the last. */
const char *hvsim_call_name(int index);
/* Replace the list of faults; README.md has the grammar. 0, or 1 for a mistake in the text (then
 * there are no faults). HVSIM_FAULTS is the list a process starts with. */
int hvsim_set_faults(const char *text);

/* For the hooks. */

enum fault_kind { FAULT_NONE, FAULT_ERROR, FAULT_SHORT, FAULT_LIMIT, FAULT_PENDING, FAULT_STUBBORN };

struct fault {
    enum fault_kind kind;
    /* FAULT_ERROR: the last error; FAULT_SHORT, FAULT_LIMIT: the most bytes; FAULT_STUBBORN: milliseconds */
    DWORD value;
};

/* What only some calls of a function do, and fails by a fault of its own. Not counted by themselves. */
enum step { STEP_ACCEPT_CONTEXT = CALL_COUNT, STEP_CONNECT_CONTEXT, STEP_REUSE_OPTION, STEP_END };

void control_open(void);
void count_call(enum call call);
/* Every hook that has a SOCKET begins with this. FALSE: not a Hyper-V socket, let Wine do it. Else
 * the call was counted, and `fault` is what is to go wrong with it. */
BOOL hyperv_call(SOCKET s, enum call call, struct handle *h, struct fault *fault);
struct fault step_fault(enum step step);
/* The number that an environment variable holds now; 0: unset. */
DWORD setting(const char *variable);
/* SOCKET_ERROR, with this last error. */
int fail(DWORD error);

#endif
