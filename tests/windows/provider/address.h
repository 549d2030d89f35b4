/* SOCKADDR_HV, the well-known VM ids, and the partition that this process plays. */
#ifndef HVSIM_ADDRESS_H
#define HVSIM_ADDRESS_H

#include <winsock2.h>
#include <windows.h>

#define FAMILY_HYPERV 34
#define PROTOCOL_RAW 1

struct hv_address {
    USHORT family;
    USHORT reserved;
    GUID vm;
    GUID service;
};
_Static_assert(sizeof(struct hv_address) == 36, "SOCKADDR_HV has 36 bytes");

/* A partition is a VM's id; the parent partition, the host, is all zero. */
typedef GUID partition;

extern const GUID VM_WILDCARD, VM_BROADCAST, VM_CHILDREN, VM_LOOPBACK, VM_PARENT, VM_SILOHOST;

BOOL guid_equal(const GUID *one, const GUID *other);
BOOL guid_parse(const char *text, GUID *guid);
void guid_format(const GUID *guid, char text[37]);
void guid_random(GUID *guid);

/* HVSIM_PARTITION, read anew at each call: a test may change it between two sockets. */
void current_partition(partition *self);
BOOL is_host(const partition *self);
/* The id under which a process in `self` sees one in `other`. */
GUID seen_from(const partition *self, const partition *other);

/* Copy an address of the caller's in or out: 0, or the Winsock error. */
int address_read(const struct sockaddr *from, int size, struct hv_address *address);
int address_write(const struct hv_address *address, struct sockaddr *to, int *size);

#endif
