#include "address.h"

#include <stdio.h>
#include <string.h>

/* Exported by advapi32 under this name only (RtlGenRandom in the documentation). */
BOOLEAN WINAPI SystemFunction036(PVOID buffer, ULONG size);

const GUID VM_WILDCARD = {0};
const GUID VM_BROADCAST = {0xffffffff, 0xffff, 0xffff, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};
const GUID VM_CHILDREN = {0x90db8b89, 0x0d35, 0x4f79, {0x8c, 0xe9, 0x49, 0xea, 0x0a, 0xc8, 0xb7, 0xcd}};
const GUID VM_LOOPBACK = {0xe0e16197, 0xdd56, 0x4a10, {0x91, 0x95, 0x5e, 0xe7, 0xa1, 0x55, 0xa8, 0x38}};
const GUID VM_PARENT = {0xa42e7cda, 0xd03f, 0x480c, {0x9c, 0xc2, 0xa4, 0xde, 0x20, 0xab, 0xb8, 0x78}};
const GUID VM_SILOHOST = {0x36bd0c5c, 0x7276, 0x4223, {0x88, 0xba, 0x7d, 0x03, 0xb6, 0x54, 0xc5, 0x68}};

BOOL
guid_equal(const GUID *one, const GUID *other)
{
    return memcmp(one, other, sizeof *one) == 0;
}

BOOL
guid_parse(const char *text, GUID *guid)
{
    unsigned long first;
    unsigned part[10];
    int end = 0;

    if (*text == '{') {
        text++;
    }
    if (sscanf(text, "%8lx-%4x-%4x-%2x%2x-%2x%2x%2x%2x%2x%2x%n", &first, &part[0], &part[1], &part[2], &part[3],
               &part[4], &part[5], &part[6], &part[7], &part[8], &part[9], &end) != 11 ||
        end != 36) {
        return FALSE;
    }
    guid->Data1 = first;
    guid->Data2 = (USHORT)part[0];
    guid->Data3 = (USHORT)part[1];
    for (int i = 0; i < 8; i++) {
        guid->Data4[i] = (UCHAR)part[2 + i];
    }
    return TRUE;
}

void
guid_format(const GUID *guid, char text[37])
{
    const UCHAR *tail = guid->Data4;

    snprintf(text, 37, "%08lx-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", (unsigned long)guid->Data1, guid->Data2,
             guid->Data3, tail[0], tail[1], tail[2], tail[3], tail[4], tail[5], tail[6], tail[7]);
}

void
guid_random(GUID *guid)
{
    SystemFunction036(guid, sizeof *guid);
    guid->Data3 = (guid->Data3 & 0x0fff) | 0x4000; /* version 4 */
    guid->Data4[0] = (guid->Data4[0] & 0x3f) | 0x80;
}

void
current_partition(partition *self)
{
    char text[64];
    DWORD length = GetEnvironmentVariableA("HVSIM_PARTITION", text, sizeof text);

    if (length == 0 || length >= sizeof text || !guid_parse(text, self)) {
        *self = VM_WILDCARD; /* unset, or "parent" */
    }
}

BOOL
is_host(const partition *self)
{
    return guid_equal(self, &VM_WILDCARD);
}

GUID
seen_from(const partition *self, const partition *other)
{
    if (guid_equal(self, other)) {
        return VM_LOOPBACK;
    }
    return is_host(other) ? VM_PARENT : *other;
}

int
address_read(const struct sockaddr *from, int size, struct hv_address *address)
{
    if (from == NULL || size < (int)sizeof *address) {
        return WSAEFAULT;
    }
    memcpy(address, from, sizeof *address);
    if (address->family != FAMILY_HYPERV) {
        return WSAEAFNOSUPPORT;
    }
    /* What Windows does with a stray value here is not known: refuse it, so that none is sent. */
    return address->reserved == 0 ? 0 : WSAEINVAL;
}

int
address_write(const struct hv_address *address, struct sockaddr *to, int *size)
{
    /* As on Windows, a short buffer is refused and the needed size is not told. */
    if (to == NULL || size == NULL || *size < (int)sizeof *address) {
        return WSAEFAULT;
    }
    memcpy(to, address, sizeof *address);
    *size = sizeof *address;
    return 0;
}
