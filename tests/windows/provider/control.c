#include "control.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FAULTS 16

static const char *const call_names[] = {
#define NAME_CALL(type, name, parameters) #name,
    HOOKED_EXPORTS(NAME_CALL) HOOKED_EXTENSIONS(NAME_CALL)
#undef NAME_CALL
};
static volatile LONG counts[CALL_COUNT];

/* Names for what a test means, whichever Winsock call the code under test takes for it. */
static const struct {
    const char *name;
    unsigned long long calls;
} groups[] = {
    {"sending", 1ull << CALL_send | 1ull << CALL_WSASend},
    {"receiving", 1ull << CALL_recv | 1ull << CALL_WSARecv},
    {"connecting", 1ull << CALL_connect | 1ull << CALL_WSAConnect | 1ull << CALL_ConnectEx},
    {"accepting", 1ull << CALL_accept | 1ull << CALL_WSAAccept | 1ull << CALL_AcceptEx},
    {"accept-context", 1ull << STEP_ACCEPT_CONTEXT},
    {"connect-context", 1ull << STEP_CONNECT_CONTEXT},
    {"reuse-option", 1ull << STEP_REUSE_OPTION},
};
_Static_assert(STEP_END <= 64, "a set of calls is 64 bits");

/* The faults that are a word with a number, which is not 0. */
static const struct {
    const char *word;
    enum fault_kind kind;
} numbered[] = {
    {"short:", FAULT_SHORT},
    {"limit:", FAULT_LIMIT},
    {"stubborn:", FAULT_STUBBORN},
};

struct planned_fault {
    unsigned long long calls;
    struct fault fault;
    unsigned skip;
    unsigned times; /* 0: for ever */
    BOOL spent;
};
static struct planned_fault faults[MAX_FAULTS];
static unsigned fault_count;
static SRWLOCK fault_lock = SRWLOCK_INIT;

int
hvsim_count(const char *call)
{
    for (int i = 0; i < CALL_COUNT; i++) {
        if (strcmp(call, call_names[i]) == 0) {
            return counts[i];
        }
    }
    return -1;
}

void
hvsim_reset_counts(void)
{
    for (int i = 0; i < CALL_COUNT; i++) {
        InterlockedExchange(&counts[i], 0);
    }
}

const char *
hvsim_call_name(int index)
{
    return index >= 0 && index < CALL_COUNT ? call_names[index] : NULL;
}

static unsigned long long
calls_named(const char *name)
{
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        if (strcmp(name, groups[i].name) == 0) {
            return groups[i].calls;
        }
    }
    for (int i = 0; i < CALL_COUNT; i++) {
        if (strcmp(name, call_names[i]) == 0) {
            return 1ull << i;
        }
    }
    return 0;
}

static BOOL
parse_number(const char *text, DWORD *number)
{
    char *end;

    *number = strtoul(text, &end, 10);
    return end != text && *end == '\0';
}

static BOOL
parse_what(const char *what, struct fault *fault)
{
    if (strcmp(what, "pending") == 0) {
        fault->kind = FAULT_PENDING;
        return TRUE;
    }
    for (size_t i = 0; i < sizeof numbered / sizeof *numbered; i++) {
        size_t length = strlen(numbered[i].word);

        if (strncmp(what, numbered[i].word, length) == 0) {
            fault->kind = numbered[i].kind;
            return parse_number(what + length, &fault->value) && fault->value != 0;
        }
    }
    fault->kind = FAULT_ERROR;
    return parse_number(what, &fault->value);
}

/* CALL=WHAT[@SKIP][*TIMES] */
static BOOL
parse_fault(const char *text, struct planned_fault *planned)
{
    char call[32], what[32], *end;

    memset(planned, 0, sizeof *planned);
    planned->times = 1;
    if (sscanf(text, "%31[A-Za-z-]=%31[a-z0-9:]", call, what) != 2 || !parse_what(what, &planned->fault)) {
        return FALSE;
    }
    planned->calls = calls_named(call);
    text += strlen(call) + 1 + strlen(what);
    if (*text == '@') {
        planned->skip = strtoul(text + 1, &end, 10);
        text = end;
    }
    if (*text == '*') {
        planned->times = strtoul(text + 1, &end, 10);
        text = end;
    }
    return *text == '\0' && planned->calls != 0;
}

int
hvsim_set_faults(const char *text)
{
    char copy[1024];
    int bad = strlen(text) >= sizeof copy;

    AcquireSRWLockExclusive(&fault_lock);
    fault_count = 0;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *word = strtok(copy, " "); word != NULL && !bad; word = strtok(NULL, " ")) {
        bad = fault_count == MAX_FAULTS || !parse_fault(word, &faults[fault_count]);
        fault_count++;
    }
    if (bad) {
        fault_count = 0;
    }
    ReleaseSRWLockExclusive(&fault_lock);
    return bad;
}

/* The next fault of a call, or of a step. */
static struct fault
take_fault(unsigned call)
{
    struct fault taken = {FAULT_NONE, 0};

    AcquireSRWLockExclusive(&fault_lock);
    for (unsigned i = 0; i < fault_count && taken.kind == FAULT_NONE; i++) {
        struct planned_fault *planned = &faults[i];

        if (planned->spent || !(planned->calls >> call & 1)) {
            continue;
        }
        if (planned->skip > 0) {
            planned->skip--;
            continue;
        }
        taken = planned->fault;
        planned->spent = planned->times != 0 && --planned->times == 0;
    }
    ReleaseSRWLockExclusive(&fault_lock);
    return taken;
}

void
control_open(void)
{
    char text[1024];
    DWORD length = GetEnvironmentVariableA("HVSIM_FAULTS", text, sizeof text);

    if (length >= sizeof text || (length > 0 && hvsim_set_faults(text) != 0)) {
        OutputDebugStringA("hvsim: HVSIM_FAULTS is malformed");
        abort();
    }
}

void
count_call(enum call call)
{
    InterlockedIncrement(&counts[call]);
}

DWORD
setting(const char *variable)
{
    char text[16];
    DWORD length = GetEnvironmentVariableA(variable, text, sizeof text), number;

    return length > 0 && length < sizeof text && parse_number(text, &number) ? number : 0;
}

/* Duplicates of a socket share their mode in Wine: where they are to have one each, a call finds its handle's. */
static void
apply_own_mode(const struct handle *h)
{
    u_long nonblocking = h->nonblocking;

    if (setting("HVSIM_OWN_MODE")) {
        real_ioctlsocket(h->socket, FIONBIO, &nonblocking);
    }
}

BOOL
hyperv_call(SOCKET s, enum call call, struct handle *h, struct fault *fault)
{
    if (!handle_get(s, h)) {
        return FALSE;
    }
    apply_own_mode(h);
    count_call(call);
    *fault = take_fault(call);
    return TRUE;
}

struct fault
step_fault(enum step step)
{
    return take_fault(step);
}

int
fail(DWORD error)
{
    SetLastError(error); /* WSASetLastError is the same, in another DLL */
    return SOCKET_ERROR;
}
