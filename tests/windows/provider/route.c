#include "route.h"

#include <stdio.h>
#include <string.h>

#define SERVICES_KEY "SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Virtualization\\GuestCommunicationServices\\"

enum policy { DENY_BIND = 1, DENY_CONNECT = 2, NO_WILDCARD = 4, DISABLED = 8 };

static BOOL
is_registered(const GUID *service)
{
    char path[sizeof SERVICES_KEY + 37], text[37];
    HKEY key;

    guid_format(service, text);
    snprintf(path, sizeof path, SERVICES_KEY "%s", text);
    if (RegOpenKeyExA(HKEY_LOCAL_MACHINE, path, 0, KEY_READ | KEY_WOW64_64KEY, &key) != 0) {
        return FALSE;
    }
    RegCloseKey(key);
    return TRUE;
}

static unsigned
policy_words(const char *words)
{
    static const struct {
        const char *word;
        enum policy policy;
    } known[] = {
        {"deny-bind", DENY_BIND},
        {"deny-connect", DENY_CONNECT},
        {"no-wildcard", NO_WILDCARD},
        {"disabled", DISABLED},
    };
    unsigned policy = 0;

    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strstr(words, known[i].word) != NULL) {
            policy |= known[i].policy;
        }
    }
    return policy;
}

/* HVSIM_POLICY is a list SERVICE=WORD,WORD;SERVICE=WORD where a SERVICE may be "*". With
 * HVSIM_REGISTRY set, a service that is not in the registry is closed to virtual machines. */
static unsigned
policy_of(const GUID *service)
{
    char text[1024], flag[4];
    DWORD length = GetEnvironmentVariableA("HVSIM_POLICY", text, sizeof text);
    unsigned policy = 0;

    if (length > 0 && length < sizeof text) {
        for (char *entry = strtok(text, ";"); entry != NULL; entry = strtok(NULL, ";")) {
            char *words = strchr(entry, '=');
            GUID named;

            if (words != NULL && (*entry == '*' || (guid_parse(entry, &named) && guid_equal(&named, service)))) {
                policy |= policy_words(words + 1);
            }
        }
    }
    if (GetEnvironmentVariableA("HVSIM_REGISTRY", flag, sizeof flag) > 0 && flag[0] == '1' && !is_registered(service)) {
        policy |= DENY_BIND | DENY_CONNECT | NO_WILDCARD;
    }
    return policy;
}

static BOOL
is_one_of(const GUID *vm, const GUID *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (guid_equal(vm, list[i])) {
            return TRUE;
        }
    }
    return FALSE;
}

/* The id of one certain VM, and none of the well-known ones. */
static BOOL
is_exact(const GUID *vm)
{
    const GUID *const special[] = {&VM_WILDCARD, &VM_BROADCAST, &VM_CHILDREN, &VM_LOOPBACK, &VM_PARENT, &VM_SILOHOST};

    return !is_one_of(vm, special, sizeof special / sizeof *special);
}

int
may_bind(const struct endpoint *self, const struct hv_address *address)
{
    if (guid_equal(&address->vm, &VM_BROADCAST) || guid_equal(&address->vm, &VM_SILOHOST)) {
        return WSAEADDRNOTAVAIL;
    }
    if (!is_host(&self->owner)) {
        return 0;
    }
    if (guid_equal(&address->vm, &VM_PARENT)) {
        return WSAEADDRNOTAVAIL; /* "Not supported" on a physical host, says the SDK's header */
    }
    if (is_exact(&address->vm) && policy_of(&address->service) & DENY_BIND) {
        return WSAEACCES;
    }
    return 0;
}

int
may_listen(const struct endpoint *self)
{
    /* No system program is known to listen on "any service", so nothing may come to need it. */
    if (guid_equal(&self->local.service, &VM_WILDCARD)) {
        return WSAEINVAL;
    }
    if (is_host(&self->owner) && is_exact(&self->local.vm) && policy_of(&self->local.service) & DISABLED) {
        return WSAEINVAL;
    }
    return 0;
}

/* The partition that a connect is for. */
static int
destination(const struct endpoint *self, const struct hv_address *to, partition *other)
{
    const GUID *const unreachable[] = {&VM_WILDCARD, &VM_BROADCAST, &VM_CHILDREN, &VM_SILOHOST};

    if (is_one_of(&to->vm, unreachable, sizeof unreachable / sizeof *unreachable)) {
        return WSAEADDRNOTAVAIL;
    }
    if (guid_equal(&to->vm, &VM_LOOPBACK)) {
        *other = self->owner;
        return 0;
    }
    if (guid_equal(&to->vm, &VM_PARENT)) {
        *other = VM_WILDCARD;
        return is_host(&self->owner) ? WSAENETUNREACH : 0;
    }
    *other = to->vm;
    if (!is_host(&self->owner)) {
        return WSAENETUNREACH; /* siblings do not see each other */
    }
    return partition_runs(other) ? 0 : WSAENETUNREACH;
}

/* What the host's configuration says of this connect. */
static int
permission(const struct endpoint *self, const partition *other, unsigned policy)
{
    if (!is_host(&self->owner) || is_host(other)) {
        return 0;
    }
    if (policy & DISABLED) {
        return WSAEINVAL;
    }
    return policy & DENY_CONNECT ? WSAEACCES : 0;
}

int
route(const struct endpoint *self, const struct hv_address *to, unsigned *port)
{
    const GUID *filters[3];
    unsigned count = 0, policy = policy_of(&to->service);
    partition other;
    int error = destination(self, to, &other);

    if (error == 0) {
        error = permission(self, &other, policy);
    }
    if (error != 0) {
        return error;
    }
    /* What a listener there may be bound to, the most specific first. */
    if (guid_equal(&self->owner, &other)) {
        filters[count++] = &VM_LOOPBACK;
        filters[count++] = &VM_WILDCARD;
    } else if (is_host(&self->owner)) {
        filters[count++] = &VM_PARENT;
        filters[count++] = &VM_WILDCARD;
    } else {
        filters[count++] = &self->owner;
        if (!(policy & (NO_WILDCARD | DISABLED))) {
            filters[count++] = &VM_CHILDREN;
            filters[count++] = &VM_WILDCARD;
        }
    }
    *port = 0;
    for (unsigned i = 0; i < count && *port == 0; i++) {
        *port = name_lookup(&other, &to->service, filters[i]);
    }
    return 0;
}
