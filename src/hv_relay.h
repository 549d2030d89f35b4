/* The relay's engine on Linux, without Python. Each of its threads waits by epoll for all of its connections, accepts and
 * connects by itself, and moves bytes. Readiness is edge-triggered: the kernel says once that a socket is ready, and
 * `readable` and `writable` remember it until a call says EAGAIN.
 *
 *   hv_engine   what the threads share: the listeners, the targets, the numbers, and what is to be logged
 *   hv_loop     one thread; nothing of it is touched by others but `wake` and, under the engine's lock, `adopted`
 *   hv_link     one connection, of two sides: the client is 0, the target 1
 */
#ifndef HV_RELAY_H
#define HV_RELAY_H

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

/* GCC's analyzer takes what a list has by its node for a leak. */
#if defined(__GNUC__) && __GNUC__ >= 10 && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif

#define HV_BATCH 64            /* events of one epoll_wait() */
#define HV_ACCEPTS 4           /* clients in a row: the rest is for the other threads, which are woken meanwhile */
#define HV_ROUNDS 16           /* receives in a row of one connection */
#define HV_ROOMS 16            /* that a thread keeps for later */
#define HV_UNIX_RETRY 10000000 /* ns; connect() to a Unix socket does not wait for room in its backlog */
#define HV_PAUSE_FIRST 50000000
#define HV_PAUSE_LONGEST 1000000000
#define HV_MOST_LISTENERS 16
#define HV_MOST_UNREAD 1000 /* entries of the log that Python has not taken; further ones are dropped */
#define HV_NEVER INT64_MAX

/* ---- lists ---- */

/* An element, or the list itself: a ring. An element of no list is a ring of its own. */
typedef struct hv_node {
    struct hv_node *next, *before;
} hv_node;

static inline void
hv_node_init(hv_node *node)
{
    node->next = node->before = node;
}

static inline int
hv_list_is_empty(const hv_node *list)
{
    return list->next == list;
}

static inline void
hv_node_remove(hv_node *node)
{
    node->next->before = node->before;
    node->before->next = node->next;
    hv_node_init(node);
}

/* At the end, wherever it was before. */
static inline void
hv_list_add(hv_node *list, hv_node *node)
{
    hv_node_remove(node);
    node->next = list;
    node->before = list->before;
    list->before->next = node;
    list->before = node;
}

/* All of one list to another. */
static inline void
hv_list_move(hv_node *from, hv_node *to)
{
    while (!hv_list_is_empty(from)) {
        hv_list_add(to, from->next);
    }
}

#define HV_OF(node, member) ((hv_link *)(void *)((char *)(node) - offsetof(hv_link, member)))

/* ---- what there is ---- */

typedef enum {
    HV_LOG_CONNECTED,
    HV_LOG_ENDED,
    HV_LOG_ABORTED,
    HV_LOG_FAILED,
    HV_LOG_REFUSED,
    HV_LOG_ACCEPT
} hv_log_kind;

/* Where a client came from: what accept() said, or what it was adopted with. */
typedef struct {
    uint8_t length;
    char bytes[119]; /* a longer one is cut */
} hv_origin;

static inline void
hv_origin_set(hv_origin *origin, const void *bytes, size_t length)
{
    origin->length = (uint8_t)(length < sizeof origin->bytes ? length : sizeof origin->bytes);
    memcpy(origin->bytes, bytes, origin->length);
}

static inline int
hv_origin_family(const hv_origin *origin)
{
    sa_family_t family = AF_UNSPEC;
    if (origin->length >= sizeof family) {
        memcpy(&family, origin->bytes, sizeof family);
    }
    return family;
}

typedef struct hv_log {
    struct hv_log *next;
    hv_log_kind kind;
    int error; /* the system's, or one of these: */
    hv_origin origin;
} hv_log;

#define HV_LOG_STOPPED 0
#define HV_LOG_IDLE (-1)

typedef struct {
    int family, proto;
    socklen_t length;
    struct sockaddr_storage address;
} hv_target;

typedef struct {
    hv_handle handle;
    uint8_t readable, writable;
    uint8_t is_inexact;  /* a receive that gets less than it asks for may not have taken all there is: AF_VSOCK's, */
    uint8_t closing;     /* ... or since the peer has ended its stream */
    uint8_t ended;       /* nothing more is passed on from here */
    uint32_t start, end; /* what was received from here and is not sent yet, in: */
    char *room;          /* NULL: nothing */
} hv_side;

typedef enum { HV_LINK_CONNECTING, HV_LINK_RETRYING, HV_LINK_MOVING, HV_LINK_OVER } hv_link_state;

typedef struct {
    hv_side sides[2];
    hv_node all, timed, blocked, more; /* the lists of its thread that it is in */
    int64_t deadline;                  /* of the list `timed` */
    int64_t limit;                     /* for connecting to this target */
    hv_link_state state;
    uint8_t has_moved; /* something, in this turn */
    int target;        /* index of the one that is tried */
    int error;         /* of a send */
    hv_origin origin;
} hv_link;

typedef struct hv_adopted {
    struct hv_adopted *next;
    hv_handle client, target;
    hv_origin origin;
} hv_adopted;

typedef enum { HV_ENGINE_RUNS, HV_ENGINE_CLOSED, HV_ENGINE_ABORTS, HV_ENGINE_OVER } hv_engine_state;

typedef struct hv_engine hv_engine;

typedef struct hv_loop {
    struct hv_loop *next;
    hv_engine *engine;
    int epoll, wake;
    hv_node all;
    hv_node connecting, retrying, idle; /* in the order of their deadlines */
    hv_node blocked;                    /* a side takes nothing more */
    hv_node more;                       /* there is more to be received at once */
    hv_node over;                       /* freed after the events, one of which may still name them */
    char *rooms[HV_ROOMS];
    int room_count;
    hv_handle spare;      /* the next target's: whoever is accepted has one */
    int accepts, listens; /* until the relay stops; and now */
    int64_t accept_at;    /* when to listen again if it accepts */
    int64_t pause;
    int64_t retry_at; /* of what is blocked */
    int64_t now;      /* when the last epoll_wait() returned */
    hv_adopted *adopted;
} hv_loop;

struct hv_engine {
    hv_lock lock;
    hv_cond changed;
    hv_handle listeners[HV_MOST_LISTENERS];
    int listener_count;
    hv_target *targets;
    int target_count;
    int64_t connect_limit, idle_limit; /* ns, < 0: none */
    long most;
    int is_verbose;
    hv_loop *loops; /* this, and what follows, is under the lock, but for the atomic numbers */
    int listening;  /* threads that may still use the listeners */
    int running;
    hv_word state;
    hv_log *first, *last;
    int unread;
    hv_word open;
    hv_counter total, refused, failed, aborted, moved[2];
};

/* ---- the log ---- */

static void
hv_engine_log(hv_engine *engine, hv_log_kind kind, int error, const hv_origin *origin)
{
    hv_log *entry;
    if (kind <= HV_LOG_ENDED && !engine->is_verbose) {
        return;
    }
    entry = malloc(sizeof *entry);
    if (entry == NULL) {
        return;
    }
    *entry = (hv_log){.kind = kind, .error = error, .origin = *origin};
    hv_lock_acquire(&engine->lock);
    if (engine->unread < HV_MOST_UNREAD) {
        if (engine->first == NULL) {
            engine->first = entry;
        } else {
            engine->last->next = entry;
        }
        engine->last = entry;
        engine->unread++;
        entry = NULL;
        hv_cond_wake_all(&engine->changed);
    }
    hv_lock_release(&engine->lock);
    free(entry);
}

/* ---- rooms ---- */

static char *
hv_loop_take_room(hv_loop *loop)
{
    return loop->room_count > 0 ? loop->rooms[--loop->room_count] : malloc(HV_PUMP_ROOM);
}

static void
hv_loop_return_room(hv_loop *loop, char *room)
{
    if (room != NULL && loop->room_count < HV_ROOMS) {
        loop->rooms[loop->room_count++] = room;
    } else {
        free(room);
    }
}

static void
hv_side_drop_room(hv_loop *loop, hv_side *side)
{
    hv_loop_return_room(loop, side->room);
    side->room = NULL;
    side->start = side->end = 0;
}

/* ---- the end of a connection ---- */

/* With a reset, where the family has one: the peer must not take it for the end of the stream. */
static void
hv_handle_abort(hv_handle handle)
{
    struct linger linger = {1, 0};
    setsockopt(handle, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(handle);
}

static void
hv_engine_count_end(hv_engine *engine)
{
    if (hv_word_add(&engine->open, -1) == 0) {
        hv_lock_acquire(&engine->lock);
        hv_cond_wake_all(&engine->changed);
        hv_lock_release(&engine->lock);
    }
}

static void
hv_link_close(hv_loop *loop, hv_link *link, int is_clean)
{
    int i;
    for (i = 0; i < 2; i++) {
        hv_side *side = &link->sides[i];
        hv_side_drop_room(loop, side);
        if (side->handle >= 0 && is_clean) {
            close(side->handle);
        } else if (side->handle >= 0) {
            hv_handle_abort(side->handle);
        }
        side->handle = -1;
    }
    hv_node_remove(&link->timed);
    hv_node_remove(&link->blocked);
    hv_node_remove(&link->more);
    link->state = HV_LINK_OVER;
    hv_list_add(&loop->over, &link->all);
    loop->accept_at = loop->now; /* there may be descriptors now */
}

static void
hv_link_end(hv_loop *loop, hv_link *link)
{
    hv_engine_log(loop->engine, HV_LOG_ENDED, 0, &link->origin);
    hv_link_close(loop, link, 1);
}

static void
hv_link_abort(hv_loop *loop, hv_link *link, int error)
{
    hv_counter_add(&loop->engine->aborted, 1);
    hv_engine_log(loop->engine, HV_LOG_ABORTED, error, &link->origin);
    hv_link_close(loop, link, 0);
}

static void
hv_link_fail(hv_loop *loop, hv_link *link, int error)
{
    hv_counter_add(&loop->engine->failed, 1);
    hv_engine_log(loop->engine, HV_LOG_FAILED, error, &link->origin);
    hv_link_close(loop, link, 0);
}

static void
hv_loop_free_over(hv_loop *loop)
{
    while (!hv_list_is_empty(&loop->over)) {
        hv_link *link = HV_OF(loop->over.next, all);
        hv_node_remove(&link->all);
        free(link);
        hv_engine_count_end(loop->engine);
    }
}

/* ---- moving ---- */

static void
hv_link_is_active(hv_loop *loop, hv_link *link)
{
    if (loop->engine->idle_limit >= 0) {
        link->deadline = loop->now + loop->engine->idle_limit;
        hv_list_add(&loop->idle, &link->timed);
    }
}

/* False: `to` takes nothing more now. */
static int
hv_link_send(hv_loop *loop, hv_link *link, int side)
{
    hv_side *from = &link->sides[side], *to = &link->sides[1 - side];
    while (from->start < from->end && to->writable) {
        ssize_t n = send(to->handle, from->room + from->start, from->end - from->start, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            from->start += (uint32_t)n;
            link->has_moved = 1;
            hv_counter_add(&loop->engine->moved[side], (size_t)n);
        } else if (errno == EAGAIN) {
            to->writable = 0;
        } else if (errno != EINTR) {
            /* The other direction continues: what the peer sent before it stopped reading can still be received. */
            link->error = errno == EPIPE ? link->error : errno;
            from->start = from->end;
            from->ended = 1;
        }
    }
    if (from->start < from->end) {
        if (hv_list_is_empty(&loop->blocked)) {
            loop->retry_at = loop->now + HV_SEND_RETRY;
        }
        hv_list_add(&loop->blocked, &link->blocked);
        return 0;
    }
    hv_side_drop_room(loop, from);
    return 1;
}

/* 0, also if there is nothing, or the error. */
static int
hv_link_receive(hv_loop *loop, hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    char *room = hv_loop_take_room(loop);
    ssize_t n;
    if (room == NULL) {
        return ENOMEM;
    }
    n = recv(from->handle, room, HV_PUMP_ROOM, MSG_DONTWAIT);
    if (n > 0) {
        from->room = room;
        from->end = (uint32_t)n;
        from->readable = n == HV_PUMP_ROOM || from->closing || from->is_inexact;
        link->has_moved = 1;
        return 0;
    }
    hv_loop_return_room(loop, room);
    /* On AF_VSOCK a socket that the peer has closed is no longer connected after shutdown(). */
    if (n == 0 || errno == ENOTCONN) {
        from->ended = 1;
        link->has_moved = 1;
        shutdown(link->sides[1 - side].handle, SHUT_WR);
    } else if (errno == EAGAIN) {
        from->readable = 0;
    } else if (errno != EINTR) {
        return errno;
    }
    return 0;
}

/* 0, or the error of the side. */
static int
hv_link_flow(hv_loop *loop, hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    int round;
    for (round = 0; hv_link_send(loop, link, side) && !from->ended && from->readable; round++) {
        int error;
        if (round == HV_ROUNDS) {
            hv_list_add(&loop->more, &link->more);
            break;
        }
        error = hv_link_receive(loop, link, side);
        if (error != 0) {
            return error;
        }
    }
    return 0;
}

static void
hv_link_move(hv_loop *loop, hv_link *link)
{
    int side, error = 0;
    hv_node_remove(&link->blocked);
    hv_node_remove(&link->more);
    link->has_moved = 0;
    for (side = 0; side < 2 && error == 0; side++) {
        error = hv_link_flow(loop, link, side);
    }
    if (error != 0) {
        hv_link_abort(loop, link, error);
    } else if (!link->sides[0].ended || !link->sides[1].ended) {
        if (link->has_moved) {
            hv_link_is_active(loop, link);
        }
    } else if (link->error != 0) {
        hv_link_abort(loop, link, link->error);
    } else {
        hv_link_end(loop, link);
    }
}

/* The error of a side that nothing is to be had from or given to now: neither a receive nor a send would find it. */
static int
hv_link_lost(const hv_link *link, int side)
{
    const hv_side *it = &link->sides[side], *other = &link->sides[1 - side];
    int is_unused = (it->ended || it->start < it->end) && other->start == other->end;
    return is_unused ? hv_side_error(it->handle) : 0;
}

/* ---- connecting ---- */

static int
hv_loop_watch(hv_loop *loop, hv_link *link, int side)
{
    struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.u64 = (uintptr_t)link | (uint64_t)side}};
    return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, link->sides[side].handle, &event) == 0 ? 0 : errno;
}

static void
hv_socket_tune(hv_handle handle, int family)
{
    int on = 1;
    if (family == AF_INET || family == AF_INET6) {
        setsockopt(handle, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(handle, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    }
}

static hv_handle
hv_target_socket(const hv_engine *engine, const hv_target *target)
{
    hv_handle handle = socket(target->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, target->proto);
    if (handle >= 0) {
        hv_socket_tune(handle, target->family);
    }
    if (handle >= 0 && target->family == AF_VSOCK && engine->connect_limit >= 0) {
        /* It gives up after 2 s by itself. */
        int64_t us = engine->connect_limit / 1000 + 1;
        struct timeval limit = {us / 1000000, us % 1000000};
        setsockopt(handle, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit, sizeof limit);
    }
    return handle;
}

/* Both sides are connected. */
static void
hv_link_begin(hv_loop *loop, hv_link *link, int is_target_watched)
{
    int error = hv_loop_watch(loop, link, 0);
    if (error == 0 && !is_target_watched) {
        error = hv_loop_watch(loop, link, 1);
    }
    if (error != 0) {
        hv_link_fail(loop, link, error);
        return;
    }
    link->state = HV_LINK_MOVING;
    hv_node_remove(&link->timed);
    hv_link_is_active(loop, link);
    hv_engine_log(loop->engine, HV_LOG_CONNECTED, 0, &link->origin);
}

static void
hv_link_connect(hv_loop *loop, hv_link *link)
{
    const hv_engine *engine = loop->engine;
    const hv_target *target = &engine->targets[link->target];
    int error = connect(link->sides[1].handle, (const struct sockaddr *)&target->address, target->length);
    error = error == 0 ? 0 : errno;
    if (error == 0) {
        hv_link_begin(loop, link, 0);
    } else if (error == EAGAIN) { /* a Unix socket's backlog is full */
        link->state = HV_LINK_RETRYING;
        link->deadline = loop->now + HV_UNIX_RETRY;
        hv_list_add(&loop->retrying, &link->timed);
    } else if (error == EINPROGRESS && (error = hv_loop_watch(loop, link, 1)) == 0) {
        link->state = HV_LINK_CONNECTING;
        if (link->limit != HV_NEVER) {
            link->deadline = link->limit;
            hv_list_add(&loop->connecting, &link->timed);
        }
    } else {
        hv_link_fail(loop, link, error);
    }
}

/* Connects to the target that is next. They share the time. */
static void
hv_link_try(hv_loop *loop, hv_link *link)
{
    int64_t limit = loop->engine->connect_limit;
    link->limit = limit < 0 ? HV_NEVER : loop->now + limit / loop->engine->target_count;
    hv_link_connect(loop, link);
}

/* The target was not reached: it is the next one's turn. */
static void
hv_link_try_next(hv_loop *loop, hv_link *link, int error)
{
    hv_side *side = &link->sides[1];
    if (link->target + 1 == loop->engine->target_count) {
        hv_link_fail(loop, link, error);
        return;
    }
    close(side->handle);
    side->handle = hv_target_socket(loop->engine, &loop->engine->targets[++link->target]);
    if (side->handle < 0) {
        hv_link_fail(loop, link, errno);
        return;
    }
    hv_node_remove(&link->timed);
    hv_link_try(loop, link);
}

static void
hv_link_settle(hv_loop *loop, hv_link *link)
{
    int error = hv_side_error(link->sides[1].handle);
    if (error != 0) {
        hv_link_try_next(loop, link, error);
    } else {
        hv_link_begin(loop, link, 1);
    }
}

/* ---- accepting ---- */

static hv_link *
hv_loop_new_link(hv_loop *loop, hv_handle client, hv_handle target)
{
    hv_link *link = calloc(1, sizeof *link);
    if (link != NULL) {
        link->sides[0].handle = client;
        link->sides[1].handle = target;
        hv_node_init(&link->all);
        hv_node_init(&link->timed);
        hv_node_init(&link->blocked);
        hv_node_init(&link->more);
        hv_list_add(&loop->all, &link->all);
    }
    return link;
}

static void
hv_loop_listen(hv_loop *loop, int on)
{
    hv_engine *engine = loop->engine;
    int i;
    if (loop->listens != on) {
        for (i = 0; i < engine->listener_count; i++) {
            struct epoll_event event = {EPOLLIN | EPOLLEXCLUSIVE, {.u64 = (uint64_t)i + 1}};
            epoll_ctl(loop->epoll, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, engine->listeners[i], &event);
        }
    }
    loop->listens = on;
}

/* The system lacks something: clients wait in the backlog until it may be back. */
static void
hv_loop_pause(hv_loop *loop, int error)
{
    hv_origin none = {0};
    hv_loop_listen(loop, 0);
    loop->accept_at = loop->now + loop->pause;
    loop->pause = 2 * loop->pause < HV_PAUSE_LONGEST ? 2 * loop->pause : HV_PAUSE_LONGEST;
    hv_engine_log(loop->engine, HV_LOG_ACCEPT, error, &none);
}

static int
hv_error_is_of_client(int error)
{
    return error == ECONNABORTED || error == ECONNRESET || error == EPROTO || error == EINTR;
}

static void
hv_loop_refuse(hv_loop *loop, hv_handle client, const hv_origin *origin)
{
    hv_counter_add(&loop->engine->refused, 1);
    hv_engine_log(loop->engine, HV_LOG_REFUSED, 0, origin);
    hv_handle_abort(client);
}

/* One connection more, unless there are as many as there may be. */
static int
hv_engine_reserve(hv_engine *engine)
{
    long open = hv_word_get(&engine->open);
    while (open < engine->most && !hv_word_swap_if(&engine->open, &open, open + 1)) {
    }
    return open < engine->most;
}

static void
hv_loop_admit(hv_loop *loop, hv_handle client, const hv_origin *origin)
{
    hv_engine *engine = loop->engine;
    int is_reserved = hv_engine_reserve(engine);
    hv_link *link = is_reserved ? hv_loop_new_link(loop, client, loop->spare) : NULL;
    hv_counter_add(&engine->total, 1);
    if (link == NULL) {
        hv_loop_refuse(loop, client, origin);
        if (is_reserved) {
            hv_engine_count_end(engine);
        }
        return;
    }
    loop->spare = -1;
    link->origin = *origin;
    link->sides[0].is_inexact = hv_origin_family(origin) == AF_VSOCK;
    link->sides[1].is_inexact = engine->targets[0].family == AF_VSOCK;
    hv_link_try(loop, link);
}

/* Whoever is accepted has a descriptor for the target: without one, the client stays in the backlog. */
static void
hv_loop_accept(hv_loop *loop, hv_handle listener)
{
    hv_engine *engine = loop->engine;
    int i;
    for (i = 0; i < HV_ACCEPTS && hv_word_get(&engine->state) == HV_ENGINE_RUNS; i++) {
        struct sockaddr_storage address;
        socklen_t length = sizeof address;
        hv_origin origin;
        hv_handle client;
        if (loop->spare < 0) {
            loop->spare = hv_target_socket(engine, &engine->targets[0]);
        }
        client = loop->spare < 0
                     ? -1
                     : accept4(listener, (struct sockaddr *)&address, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return;
        }
        if (client < 0 && !hv_error_is_of_client(errno)) {
            hv_loop_pause(loop, errno);
            return;
        }
        if (client >= 0) {
            loop->pause = HV_PAUSE_FIRST;
            hv_origin_set(&origin, &address, length);
            hv_loop_admit(loop, client, &origin);
        }
    }
}

/* ---- one thread ---- */

static void
hv_loop_take_adopted(hv_loop *loop)
{
    hv_adopted *adopted;
    hv_lock_acquire(&loop->engine->lock);
    adopted = loop->adopted;
    loop->adopted = NULL;
    hv_lock_release(&loop->engine->lock);
    while (adopted != NULL) {
        hv_adopted *next = adopted->next;
        hv_link *link = hv_loop_new_link(loop, adopted->client, adopted->target);
        if (link != NULL) {
            link->origin = adopted->origin;
            link->sides[0].is_inexact = link->sides[1].is_inexact = 1; /* of what family is not known */
            hv_link_begin(loop, link, 0);
        } else {
            hv_counter_add(&loop->engine->aborted, 1);
            hv_handle_abort(adopted->client);
            hv_handle_abort(adopted->target);
            hv_engine_count_end(loop->engine);
        }
        free(adopted);
        adopted = next;
    }
}

static void
hv_loop_stop_listening(hv_loop *loop)
{
    hv_engine *engine = loop->engine;
    if (!loop->accepts) {
        return;
    }
    hv_loop_listen(loop, 0);
    loop->accepts = 0;
    if (loop->spare >= 0) {
        close(loop->spare);
        loop->spare = -1;
    }
    hv_lock_acquire(&engine->lock);
    engine->listening--;
    hv_cond_wake_all(&engine->changed);
    hv_lock_release(&engine->lock);
}

static void
hv_loop_abort_all(hv_loop *loop)
{
    while (!hv_list_is_empty(&loop->all)) {
        hv_link *link = HV_OF(loop->all.next, all);
        if (link->state == HV_LINK_MOVING) {
            hv_link_abort(loop, link, HV_LOG_STOPPED);
        } else {
            hv_link_fail(loop, link, HV_LOG_STOPPED);
        }
    }
}

static void
hv_loop_on_wake(hv_loop *loop)
{
    long state = hv_word_get(&loop->engine->state);
    uint64_t count;
    ssize_t n = read(loop->wake, &count, sizeof count);
    (void)n;
    hv_loop_take_adopted(loop);
    if (state >= HV_ENGINE_CLOSED) {
        hv_loop_stop_listening(loop);
    }
    if (state >= HV_ENGINE_ABORTS) {
        hv_loop_abort_all(loop);
    }
}

static void
hv_loop_on_link(hv_loop *loop, hv_link *link, int side, uint32_t events)
{
    hv_side *it = &link->sides[side];
    int error;
    it->readable |= (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    it->closing |= (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    it->writable |= (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
    if (link->state == HV_LINK_CONNECTING && it->writable) {
        hv_link_settle(loop, link);
    } else if (link->state == HV_LINK_MOVING) {
        error = events & (EPOLLHUP | EPOLLERR) ? hv_link_lost(link, side) : 0;
        if (error != 0) {
            hv_link_abort(loop, link, error);
        } else {
            hv_link_move(loop, link);
        }
    }
}

static void
hv_loop_on_event(hv_loop *loop, const struct epoll_event *event)
{
    uint64_t what = event->data.u64;
    hv_link *link = (hv_link *)(uintptr_t)(what & ~(uint64_t)1);
    if (what == 0) {
        hv_loop_on_wake(loop);
    } else if (what <= HV_MOST_LISTENERS) {
        hv_loop_accept(loop, loop->engine->listeners[what - 1]);
    } else if (link->state != HV_LINK_OVER) {
        hv_loop_on_link(loop, link, (int)(what & 1), event->events);
    }
}

/* The first of a list whose deadline has passed, or NULL. */
static hv_link *
hv_loop_due(const hv_loop *loop, const hv_node *list)
{
    hv_link *link = hv_list_is_empty(list) ? NULL : HV_OF(list->next, timed);
    return link != NULL && link->deadline <= loop->now ? link : NULL;
}

static void
hv_loop_retry_connects(hv_loop *loop)
{
    hv_link *link;
    while ((link = hv_loop_due(loop, &loop->retrying)) != NULL) {
        if (link->limit <= loop->now) {
            hv_link_try_next(loop, link, ETIMEDOUT);
        } else {
            hv_link_connect(loop, link);
        }
    }
}

/* If a peer is gone while there is something left to read, virtio's AF_VSOCK never says that it is writable. */
static void
hv_loop_retry_sends(hv_loop *loop)
{
    hv_node again;
    hv_node_init(&again);
    loop->retry_at = loop->now + HV_SEND_RETRY;
    hv_list_move(&loop->blocked, &again);
    while (!hv_list_is_empty(&again)) {
        hv_link *link = HV_OF(again.next, blocked);
        link->sides[0].writable = link->sides[1].writable = 1;
        hv_link_move(loop, link);
    }
}

static void
hv_loop_on_time(hv_loop *loop)
{
    hv_link *link;
    if (loop->accepts && loop->accept_at <= loop->now) {
        hv_loop_listen(loop, 1);
    }
    while ((link = hv_loop_due(loop, &loop->connecting)) != NULL) {
        hv_link_try_next(loop, link, ETIMEDOUT);
    }
    hv_loop_retry_connects(loop);
    while ((link = hv_loop_due(loop, &loop->idle)) != NULL) {
        hv_link_abort(loop, link, HV_LOG_IDLE);
    }
    if (!hv_list_is_empty(&loop->blocked) && loop->retry_at <= loop->now) {
        hv_loop_retry_sends(loop);
    }
}

/* ms that epoll_wait() may sleep; -1: for ever. */
static int
hv_loop_timeout(const hv_loop *loop)
{
    const hv_node *lists[] = {&loop->connecting, &loop->retrying, &loop->idle};
    int64_t until = HV_NEVER;
    size_t i;
    if (!hv_list_is_empty(&loop->more)) {
        return 0;
    }
    for (i = 0; i < sizeof lists / sizeof *lists; i++) {
        if (!hv_list_is_empty(lists[i]) && HV_OF(lists[i]->next, timed)->deadline < until) {
            until = HV_OF(lists[i]->next, timed)->deadline;
        }
    }
    if (!hv_list_is_empty(&loop->blocked) && loop->retry_at < until) {
        until = loop->retry_at;
    }
    if (loop->accepts && !loop->listens && loop->accept_at < until) {
        until = loop->accept_at;
    }
    return until == HV_NEVER ? -1 : until <= loop->now ? 0 : hv_poll_timeout(until - loop->now);
}

static void
hv_loop_turn(hv_loop *loop)
{
    struct epoll_event events[HV_BATCH];
    int n = epoll_wait(loop->epoll, events, HV_BATCH, hv_loop_timeout(loop));
    hv_node more;
    int i;
    loop->now = hv_now();
    hv_node_init(&more);
    hv_list_move(&loop->more, &more);
    for (i = 0; i < n; i++) {
        hv_loop_on_event(loop, &events[i]);
    }
    while (!hv_list_is_empty(&more)) {
        hv_link_move(loop, HV_OF(more.next, more));
    }
    hv_loop_on_time(loop);
    hv_loop_free_over(loop);
}

/* 0, or the error. */
static int
hv_loop_open(hv_loop *loop, hv_engine *engine)
{
    struct epoll_event event = {EPOLLIN, {.u64 = 0}};
    hv_node *lists[] = {&loop->all,     &loop->connecting, &loop->retrying, &loop->idle,
                        &loop->blocked, &loop->more,       &loop->over};
    size_t i;
    memset(loop, 0, sizeof *loop);
    for (i = 0; i < sizeof lists / sizeof *lists; i++) {
        hv_node_init(lists[i]);
    }
    loop->engine = engine;
    loop->spare = -1;
    loop->pause = HV_PAUSE_FIRST;
    loop->now = hv_now();
    loop->epoll = epoll_create1(EPOLL_CLOEXEC);
    loop->wake = loop->epoll < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return loop->wake >= 0 && epoll_ctl(loop->epoll, EPOLL_CTL_ADD, loop->wake, &event) == 0 ? 0 : errno;
}

static void
hv_loop_close(hv_loop *loop)
{
    while (loop->room_count > 0) {
        free(loop->rooms[--loop->room_count]);
    }
    if (loop->wake >= 0) {
        close(loop->wake);
    }
    if (loop->epoll >= 0) {
        close(loop->epoll);
    }
}

static void
hv_engine_enter(hv_engine *engine, hv_loop *loop)
{
    hv_lock_acquire(&engine->lock);
    loop->accepts = engine->listener_count > 0 && hv_word_get(&engine->state) == HV_ENGINE_RUNS;
    engine->listening += loop->accepts;
    engine->running++;
    loop->next = engine->loops;
    engine->loops = loop;
    hv_cond_wake_all(&engine->changed);
    hv_lock_release(&engine->lock);
}

static void
hv_engine_leave(hv_engine *engine, hv_loop *loop)
{
    hv_loop **at;
    hv_lock_acquire(&engine->lock);
    for (at = &engine->loops; *at != loop; at = &(*at)->next) {
    }
    *at = loop->next;
    engine->running--;
    hv_cond_wake_all(&engine->changed);
    hv_lock_release(&engine->lock);
}

/* Serves until the engine is over: 0, or the error that the thread could not begin for. */
static int
hv_engine_run(hv_engine *engine)
{
    hv_loop loop;
    int error = hv_loop_open(&loop, engine);
    if (error == 0) {
        hv_engine_enter(engine, &loop);
        while (hv_word_get(&engine->state) != HV_ENGINE_OVER) {
            hv_loop_turn(&loop);
        }
        hv_engine_leave(engine, &loop); /* no more is adopted */
        hv_loop_on_wake(&loop);
        hv_loop_free_over(&loop);
    }
    hv_loop_close(&loop);
    return error;
}

/* ---- for other threads ---- */

static void
hv_engine_wake(hv_engine *engine)
{
    uint64_t one = 1;
    hv_loop *loop;
    for (loop = engine->loops; loop != NULL; loop = loop->next) {
        ssize_t n = write(loop->wake, &one, sizeof one);
        (void)n;
    }
    hv_cond_wake_all(&engine->changed);
}

/* States follow each other, none comes back. */
static void
hv_engine_set_state(hv_engine *engine, hv_engine_state state)
{
    long seen = hv_word_get(&engine->state);
    while (seen < (long)state && !hv_word_swap_if(&engine->state, &seen, (long)state)) {
    }
    hv_lock_acquire(&engine->lock);
    hv_engine_wake(engine);
    hv_lock_release(&engine->lock);
}

/* Returns when no thread uses the listeners any more. */
static void
hv_engine_stop_listening(hv_engine *engine)
{
    hv_engine_set_state(engine, HV_ENGINE_CLOSED);
    hv_lock_acquire(&engine->lock);
    while (engine->listening > 0) {
        hv_cond_wait(&engine->changed, &engine->lock, HV_PAUSE_LONGEST);
    }
    hv_lock_release(&engine->lock);
}

/* Waits until so many threads run, or, for 0, until no connection is left; for so many ns at most. */
static int
hv_engine_wait(hv_engine *engine, int running, int64_t ns)
{
    int64_t deadline = hv_now() + ns, left = ns;
    int is_so;
    hv_lock_acquire(&engine->lock);
    for (;;) {
        is_so = running > 0 ? engine->running >= running : hv_word_get(&engine->open) == 0;
        if (is_so || left <= 0) {
            break;
        }
        hv_cond_wait(&engine->changed, &engine->lock, left);
        left = deadline - hv_now();
    }
    hv_lock_release(&engine->lock);
    return is_so;
}

/* Takes two connected handles, which it owns if the result is 0; else the error. */
static int
hv_engine_adopt(hv_engine *engine, hv_handle client, hv_handle target, const hv_origin *origin)
{
    hv_adopted *adopted = malloc(sizeof *adopted);
    hv_loop *loop;
    if (adopted == NULL) {
        return ENOMEM;
    }
    hv_lock_acquire(&engine->lock);
    loop = engine->loops;
    if (loop != NULL) {
        uint64_t one = 1;
        ssize_t n;
        hv_word_add(&engine->open, 1);
        *adopted = (hv_adopted){loop->adopted, client, target, *origin};
        loop->adopted = adopted;
        n = write(loop->wake, &one, sizeof one);
        (void)n;
        if (loop->next != NULL) { /* another one's turn next time */
            hv_loop **at;
            for (at = &engine->loops; *at != NULL; at = &(*at)->next) {
            }
            engine->loops = loop->next;
            loop->next = NULL;
            *at = loop;
        }
    }
    hv_lock_release(&engine->lock);
    if (loop == NULL) {
        free(adopted);
    }
    return loop == NULL ? ECANCELED : 0;
}

/* Waits for an entry of the log, which becomes the caller's; NULL: the engine is over, or the time. */
static hv_log *
hv_engine_next_log(hv_engine *engine, int64_t ns)
{
    hv_log *entry;
    hv_lock_acquire(&engine->lock);
    if (engine->first == NULL && hv_word_get(&engine->state) != HV_ENGINE_OVER) {
        hv_cond_wait(&engine->changed, &engine->lock, ns);
    }
    entry = engine->first;
    if (entry != NULL) {
        engine->first = entry->next;
        engine->unread--;
    }
    hv_lock_release(&engine->lock);
    return entry;
}

static void
hv_engine_init(hv_engine *engine)
{
    pthread_mutex_init(&engine->lock, NULL);
    hv_cond_init(&engine->changed);
}

static void
hv_engine_destroy(hv_engine *engine)
{
    while (engine->first != NULL) {
        hv_log *entry = engine->first;
        engine->first = entry->next;
        free(entry);
    }
    free(engine->targets);
    hv_cond_destroy(&engine->changed);
    pthread_mutex_destroy(&engine->lock);
}

#if defined(__GNUC__) && __GNUC__ >= 10 && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif
