/* CancelIoEx reaches Wine by one system call. Its entry in ntdll is the same few instructions in all
 * of them, and it is what every caller comes through: kernel32's import, ctypes, _overlapped. So the
 * entry is given a jump to our code, and what was there is kept as a copy. */
#include "cancel.h"

#include <stdlib.h>
#include <string.h>

#define ENTRY_SIZE 32
#define NUMBER_AT 4 /* four bytes: which system call it is */

/* mov r10, rcx; mov eax, NUMBER; test byte [0x7ffe0308], 1; jne ...; syscall; ret. None of it depends
 * on where it stands. */
static const BYTE entry_start[] = {0x4c, 0x8b, 0xd1, 0xb8, 0,    0,    0,    0,    0xf6, 0x04, 0x25,
                                   0x08, 0x03, 0xfe, 0x7f, 0x01, 0x75, 0x03, 0x0f, 0x05, 0xc3};

typedef LONG(WINAPI *cancel_function)(HANDLE handle, void *operation, void *status);

static cancel_function real_cancel;

static LONG WINAPI
hook_cancel(HANDLE handle, void *operation, void *status)
{
    if (connect_ignores_cancel((SOCKET)handle, operation)) {
        return 0; /* STATUS_SUCCESS */
    }
    return real_cancel(handle, operation, status);
}

static BOOL
is_entry(const BYTE *code)
{
    return memcmp(code, entry_start, NUMBER_AT) == 0 &&
           memcmp(code + 2 * NUMBER_AT, entry_start + 2 * NUMBER_AT, sizeof entry_start - 2 * NUMBER_AT) == 0;
}

static void
jump_from(BYTE *code)
{
    BYTE jump[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* mov rax, TARGET; jmp rax */
    cancel_function target = hook_cancel;
    DWORD access;

    memcpy(jump + 2, &target, sizeof target);
    if (!VirtualProtect(code, sizeof jump, PAGE_EXECUTE_READWRITE, &access)) {
        abort();
    }
    memcpy(code, jump, sizeof jump);
    VirtualProtect(code, sizeof jump, access, &access);
}

static BOOL CALLBACK
install(PINIT_ONCE once, void *parameter, void **context)
{
    BYTE *entry = (BYTE *)(void *)GetProcAddress(GetModuleHandleA("ntdll"), "NtCancelIoFileEx");
    void *copy = VirtualAlloc(NULL, ENTRY_SIZE, MEM_RESERVE | MEM_COMMIT, PAGE_EXECUTE_READWRITE);

    (void)once, (void)parameter, (void)context;
    if (entry == NULL || copy == NULL || !is_entry(entry)) {
        OutputDebugStringA("hvsim: this Wine's NtCancelIoFileEx is not as expected");
        abort();
    }
    memcpy(copy, entry, ENTRY_SIZE);
    *(void **)&real_cancel = copy;
    jump_from(entry);
    return TRUE;
}

void
cancel_watch(void)
{
    static INIT_ONCE once = INIT_ONCE_STATIC_INIT;

    InitOnceExecuteOnce(&once, install, NULL, NULL);
}

void
cancel_at_once(SOCKET s, LPOVERLAPPED overlapped)
{
    ULONG_PTR status[2]; /* an IO_STATUS_BLOCK */

    if (real_cancel == NULL) {
        CancelIoEx((HANDLE)s, overlapped);
    } else {
        real_cancel((HANDLE)s, overlapped, status);
    }
}
