/* What hv_address.h says of Hyper-V sockets, beside an SDK's own hvsocket.h. It is compiled only. */
#include <winsock2.h>
/* winsock2.h first */
#include <hvsocket.h>

/* HV_PROTOCOL_RAW is in both: a compiler takes that only of the same value. */
#include "hv_address.h"

#define SAME_PLACE(theirs, ours)                                                                                       \
    _Static_assert(offsetof(SOCKADDR_HV, theirs) == offsetof(hv_sockaddr_hyperv, ours) &&                              \
                       sizeof(((SOCKADDR_HV *)0)->theirs) == sizeof(((hv_sockaddr_hyperv *)0)->ours),                  \
                   "SOCKADDR_HV: " #theirs)

#ifdef AF_HYPERV /* not in every mingw-w64 */
_Static_assert(AF_HYPERV == HV_AF_HYPERV, "AF_HYPERV");
#endif
_Static_assert(sizeof(SOCKADDR_HV) == sizeof(hv_sockaddr_hyperv), "the size of SOCKADDR_HV");
SAME_PLACE(Family, family);
SAME_PLACE(Reserved, reserved);
SAME_PLACE(VmId, vm_id);
SAME_PLACE(ServiceId, service_id);
