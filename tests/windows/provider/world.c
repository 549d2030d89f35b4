#include "world.h"

#include <stdio.h>

#define NAME_SIZE 160

static struct endpoint *endpoints;

BOOL
world_open(void)
{
    HANDLE section = CreateFileMappingA(INVALID_HANDLE_VALUE, NULL, PAGE_READWRITE, 0,
                                        (DWORD)(65536 * sizeof *endpoints), "hvsim-endpoints");

    if (section != NULL) {
        endpoints = MapViewOfFile(section, FILE_MAP_ALL_ACCESS, 0, 0, 0);
    }
    return endpoints != NULL; /* the section stays open for as long as the process lives */
}

struct endpoint *
endpoint_at(unsigned port)
{
    return &endpoints[port];
}

static void
format_name(char name[NAME_SIZE], const partition *owner, const GUID *service, const GUID *vm)
{
    char owner_text[37], service_text[37], vm_text[37];

    guid_format(owner, owner_text);
    guid_format(service, service_text);
    guid_format(vm, vm_text);
    snprintf(name, NAME_SIZE, "hvsim-listen-%s-%s-%s", owner_text, service_text, vm_text);
}

HANDLE
name_claim(const struct endpoint *listener, unsigned port)
{
    char name[NAME_SIZE];
    HANDLE section;
    unsigned *content;

    format_name(name, &listener->owner, &listener->local.service, &listener->local.vm);
    section = CreateFileMappingA(INVALID_HANDLE_VALUE, NULL, PAGE_READWRITE, 0, sizeof port, name);
    if (section != NULL && GetLastError() == ERROR_ALREADY_EXISTS) {
        CloseHandle(section);
        return NULL;
    }
    content = MapViewOfFile(section, FILE_MAP_WRITE, 0, 0, 0);
    if (content == NULL) {
        CloseHandle(section);
        return NULL;
    }
    *content = port;
    UnmapViewOfFile(content);
    return section;
}

unsigned
name_lookup(const partition *owner, const GUID *service, const GUID *vm)
{
    char name[NAME_SIZE];
    HANDLE section;
    const unsigned *content;
    unsigned port = 0;

    format_name(name, owner, service, vm);
    section = OpenFileMappingA(FILE_MAP_READ, FALSE, name);
    if (section == NULL) {
        return 0;
    }
    content = MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0);
    if (content != NULL) {
        port = *content;
        UnmapViewOfFile(content);
    }
    CloseHandle(section);
    return port;
}

static void
format_vm(char name[NAME_SIZE], const partition *vm)
{
    char text[37];

    guid_format(vm, text);
    snprintf(name, NAME_SIZE, "hvsim-vm-%s", text);
}

void
partition_enter(const partition *self)
{
    static SRWLOCK lock = SRWLOCK_INIT;
    static partition entered[64];
    static unsigned count;
    char name[NAME_SIZE];
    unsigned i = 0;

    AcquireSRWLockExclusive(&lock);
    while (i < count && !guid_equal(&entered[i], self)) {
        i++;
    }
    if (i == count && count < 64 && !is_host(self)) {
        entered[count++] = *self;
        format_vm(name, self);
        CreateEventA(NULL, TRUE, FALSE, name); /* never closed: it ends with the process */
    }
    ReleaseSRWLockExclusive(&lock);
}

BOOL
partition_runs(const partition *other)
{
    char name[NAME_SIZE];
    HANDLE event;

    if (is_host(other)) {
        return TRUE;
    }
    format_vm(name, other);
    event = OpenEventA(SYNCHRONIZE, FALSE, name);
    if (event != NULL) {
        CloseHandle(event);
    }
    return event != NULL;
}
