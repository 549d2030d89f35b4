/* The DLL itself: find Wine's ws2_32 and give every export its function. */
#include "control.h"

#include <string.h>

/* Made by bench.py, with one jump for each export that no hook takes. */
extern const int passed_count;
extern void *passed_functions[];
extern const char *const passed_names[];

#define DEFINE_REAL(type, name, parameters) type(WSAAPI *real_##name) parameters;
HOOKED_EXPORTS(DEFINE_REAL)
HOOKED_EXTENSIONS(DEFINE_REAL)
#undef DEFINE_REAL

static void *
function(HMODULE library, const char *name)
{
    return (void *)GetProcAddress(library, name);
}

static BOOL
find_real(HMODULE wine)
{
    BOOL found = TRUE;

    for (int i = 0; i < passed_count; i++) {
        passed_functions[i] = function(wine, passed_names[i]);
    }
#define FIND_REAL(type, name, parameters)                                                                              \
    *(void **)&real_##name = function(wine, #name);                                                                    \
    found = found && real_##name != NULL;
    HOOKED_EXPORTS(FIND_REAL)
#undef FIND_REAL
    return found;
}

BOOL WINAPI
DllMain(HINSTANCE self, DWORD reason, LPVOID reserved)
{
    WCHAR path[MAX_PATH];
    HMODULE wine;
    UINT length;

    (void)reserved;
    if (reason != DLL_PROCESS_ATTACH) {
        return TRUE;
    }
    /* By its full path, or the loader would hand out this very DLL. */
    length = GetSystemDirectoryW(path, MAX_PATH - 16);
    memcpy(path + length, L"\\ws2_32.dll", sizeof L"\\ws2_32.dll");
    wine = LoadLibraryW(path);
    if (wine == NULL || wine == (HMODULE)self || !find_real(wine) || !world_open()) {
        return FALSE;
    }
    control_open();
    return TRUE;
}
