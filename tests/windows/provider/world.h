/* What all processes of the simulation share: the sockets, the listening names, the running VMs. */
#ifndef HVSIM_WORLD_H
#define HVSIM_WORLD_H

#include "address.h"

#define OPTION_CONNECT_TIMEOUT 0x01
#define OPTION_CONTAINER_PASSTHRU 0x02
#define OPTION_CONNECTED_SUSPEND 0x04
#define OPTION_HIGH_VTL 0x08
#define OPTION_SLOTS 4
#define CONNECT_TIMEOUT_DEFAULT 2000
#define CONNECT_TIMEOUT_MAX 300000

struct options {
    DWORD value[OPTION_SLOTS];
};

/* One Hyper-V socket, kept under its TCP port. A connection has one record: the client's.
 * The accepted end has the listener's port, so it finds the record under its peer's port. */
struct endpoint {
    partition owner;
    struct hv_address local;
    struct hv_address peer;
    BOOL bound;
    BOOL listening;
    BOOL connected;   /* a connect was begun */
    BOOL established; /* and has reached the other end: its address stays known when that has gone */
    struct options options;
    struct options accepted_options;
};

BOOL world_open(void);
struct endpoint *endpoint_at(unsigned port);

/* A listening name is taken as long as a handle of it is open, in any process: one that is killed
 * frees its names. Returns NULL if the name is taken. */
HANDLE name_claim(const struct endpoint *listener, unsigned port);
/* The port that listens on exactly this name, or 0. */
unsigned name_lookup(const partition *owner, const GUID *service, const GUID *vm);

/* A VM runs as long as a process that has made a socket in it. */
void partition_enter(const partition *self);
BOOL partition_runs(const partition *other);

#endif
