/* A stand-in for computecore.dll: the four functions of the Host Compute Service by which compute systems are listed.

   Read from the environment at each call:
   HCSIM_DOCUMENT  a file with the answer, in UTF-8; unset: success without a document, as the API allows
   HCSIM_FAULTS    words CALL=CODE, CALL one of create, enumerate, wait; CODE an HRESULT in hexadecimal, or for wait the
                   word pending: it takes all of its time and ends with HCS_E_OPERATION_TIMEOUT
   What Windows forbids (a NULL operation, one that was not started or is closed) ends with the error that Windows has
   for it. hcsim_operations() tells how many operations are open. */
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <stdlib.h>
#include <string.h>

#define HCS_E_OPERATION_NOT_STARTED_ ((HRESULT)0x80370115)
#define HCS_E_OPERATION_TIMEOUT_ ((HRESULT)0x80370118)

#define MAGIC 0x4f504552u

typedef struct operation {
    unsigned magic;
    BOOL started;
} *HCS_OPERATION;

static volatile LONG open_operations;

/* What HCSIM_FAULTS has for a call: TRUE and the text after its "=". */
static BOOL
planned(const char *call, char value[32])
{
    char plan[512];
    DWORD length = GetEnvironmentVariableA("HCSIM_FAULTS", plan, sizeof(plan));
    if (length == 0 || length >= sizeof(plan)) {
        return FALSE;
    }
    for (char *word = strtok(plan, " "); word != NULL; word = strtok(NULL, " ")) {
        size_t name = strlen(call);
        if (strncmp(word, call, name) == 0 && word[name] == '=' && strlen(word + name + 1) < 32) {
            strcpy(value, word + name + 1);
            return TRUE;
        }
    }
    return FALSE;
}

static HRESULT
failure(const char *call)
{
    char value[32];
    return planned(call, value) ? (HRESULT)strtoul(value, NULL, 16) : S_OK;
}

static BOOL
is_open(HCS_OPERATION operation)
{
    return operation != NULL && operation->magic == MAGIC;
}

/* The document in a string that LocalFree releases; NULL if there is none. */
static HRESULT
read_document(WCHAR **document)
{
    WCHAR path[MAX_PATH];
    DWORD length = GetEnvironmentVariableW(L"HCSIM_DOCUMENT", path, MAX_PATH);
    *document = NULL;
    if (length == 0 || length >= MAX_PATH) {
        return S_OK;
    }
    HANDLE file = CreateFileW(path, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL);
    if (file == INVALID_HANDLE_VALUE) {
        return HRESULT_FROM_WIN32(GetLastError());
    }
    DWORD size = GetFileSize(file, NULL), got = 0;
    char *bytes = malloc(size + 1);
    BOOL read = bytes != NULL && ReadFile(file, bytes, size, &got, NULL) && got == size;
    CloseHandle(file);
    HRESULT result = read ? S_OK : E_OUTOFMEMORY;
    if (read) {
        int units = size == 0 ? 0 : MultiByteToWideChar(CP_UTF8, 0, bytes, (int)size, NULL, 0);
        *document = LocalAlloc(LMEM_FIXED | LMEM_ZEROINIT, ((size_t)units + 1) * sizeof(WCHAR));
        if (*document == NULL) {
            result = E_OUTOFMEMORY;
        } else if (units > 0) {
            MultiByteToWideChar(CP_UTF8, 0, bytes, (int)size, *document, units);
        }
    }
    free(bytes);
    return result;
}

__declspec(dllexport) HCS_OPERATION WINAPI
HcsCreateOperation(const void *context, void *callback)
{
    (void)context;
    (void)callback;
    HCS_OPERATION operation = FAILED(failure("create")) ? NULL : calloc(1, sizeof(*operation));
    if (operation != NULL) {
        operation->magic = MAGIC;
        InterlockedIncrement(&open_operations);
    }
    return operation;
}

__declspec(dllexport) HRESULT WINAPI
HcsEnumerateComputeSystems(const WCHAR *query, HCS_OPERATION operation)
{
    (void)query;
    if (!is_open(operation)) {
        return E_HANDLE;
    }
    HRESULT result = failure("enumerate");
    operation->started = SUCCEEDED(result);
    return result;
}

__declspec(dllexport) HRESULT WINAPI
HcsWaitForOperationResult(HCS_OPERATION operation, DWORD timeout, WCHAR **document)
{
    char value[32];
    if (!is_open(operation)) {
        return E_HANDLE;
    }
    if (!operation->started) {
        return HCS_E_OPERATION_NOT_STARTED_;
    }
    if (planned("wait", value) && strcmp(value, "pending") == 0) {
        Sleep(timeout);
        return HCS_E_OPERATION_TIMEOUT_;
    }
    /* A failure has a document too: an error in JSON. */
    HRESULT read = read_document(document), result = failure("wait");
    return FAILED(result) ? result : read;
}

__declspec(dllexport) void WINAPI
HcsCloseOperation(HCS_OPERATION operation)
{
    if (is_open(operation)) {
        operation->magic = 0;
        InterlockedDecrement(&open_operations);
        free(operation);
    }
}

__declspec(dllexport) LONG WINAPI
hcsim_operations(void)
{
    return open_operations;
}
