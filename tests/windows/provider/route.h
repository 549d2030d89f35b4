/* Who may reach whom, and what the host's configuration forbids. */
#ifndef HVSIM_ROUTE_H
#define HVSIM_ROUTE_H

#include "world.h"

/* May `self` be bound to, or listen on, this address? 0, or the Winsock error. */
int may_bind(const struct endpoint *self, const struct hv_address *address);
int may_listen(const struct endpoint *self);
/* Where a connect from `self` goes. 0 and the listener's port, which is 0 if nobody listens; or
 * the Winsock error. */
int route(const struct endpoint *self, const struct hv_address *to, unsigned *port);

#endif
