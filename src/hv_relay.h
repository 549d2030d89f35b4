/* The relay's engine, without Python. Each of its threads waits for all of its connections at once, accepts and connects by
 * itself, and moves bytes. Here is what every system has in common; how it waits and moves is in hv_relay_posix.h and
 * hv_relay_windows.h.
 *
 *   hv_engine   what the threads share: the listeners, the targets, the numbers, and what is to be logged
 *   hv_loop     one thread; nothing of it is touched by others but what says so
 *   hv_link     one connection, of two sides: the client is 0, the target 1
 */
#ifndef HV_RELAY_H
#define HV_RELAY_H

#include <stdlib.h>

/* GCC's analyzer takes what a list has by its node for a leak. */
#if defined(__GNUC__) && __GNUC__ >= 10 && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif

#define HV_ROOMS 16             /* that a thread keeps for later */
#define HV_ROUNDS 16            /* receives in a row of one connection */
#define HV_PAUSE_FIRST 50000000 /* ns without accepting after an error, doubled each time */
#define HV_PAUSE_LONGEST 1000000000
#define HV_MOST_LISTENERS 16
#define HV_MOST_UNREAD 1000 /* entries of the log that Python has not taken; further ones are dropped */
#define HV_NEVER INT64_MAX
#define HV_DAY 86400000000000 /* ns: the longest wait for what is to be logged */

/* ---- the system's part ---- */

#ifdef _WIN32
#include "hv_port.h"
#else
#include "hv_poller.h"
#endif

typedef struct hv_loop hv_loop;
typedef struct hv_link hv_link;

static void hv_handle_abort(hv_handle handle); /* with a reset, where the family has one: not the end of the stream */
static void hv_link_close_side(hv_link *link, int side, int is_clean);
static void hv_loop_listen(hv_loop *loop, int on);
static void hv_loop_on_event(hv_loop *loop, const hv_event *event);
static void hv_link_begin(hv_loop *loop, hv_link *link);   /* both sides are connected */
static void hv_link_try(hv_loop *loop, hv_link *link);     /* connects to its target, for as long as that may take */
static void hv_link_connect(hv_loop *loop, hv_link *link); /* to its target, until the limit */
static void hv_link_leave_target(hv_loop *loop, hv_link *link);     /* for the one that is next, which is tried */
static int hv_link_send(hv_loop *loop, hv_link *link, int side);    /* false: its peer takes nothing more now */
static int hv_link_receive(hv_loop *loop, hv_link *link, int side); /* 0, also if there is nothing, or the error */
static int hv_link_await(hv_loop *loop, hv_link *link, int side);   /* for something to be received; 0, or the error */

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
    struct sockaddr head = {0};
    if (origin->length >= offsetof(struct sockaddr, sa_data)) {
        memcpy(&head, origin->bytes, offsetof(struct sockaddr, sa_data));
    }
    return head.sa_family;
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
    hv_socklen length;
    struct sockaddr_storage address;
} hv_target;

typedef struct {
    hv_handle handle;
    uint8_t readable, writable;
    uint8_t is_inexact;  /* a receive that gets less than it asks for may not have taken all there is: all but TCP's, */
    uint8_t closing;     /* ... and TCP's where data is urgent, or since the peer has ended its stream */
    uint8_t ended;       /* nothing more is passed on from here */
    uint32_t start, end; /* what was received from here and is not sent yet, in: */
    char *room;          /* NULL: nothing */
#ifdef _WIN32
    hv_transfer receiving, sending; /* from here; and on to the other side, out of the room */
    hv_flush *flush;                /* of the other side, before the end is passed on to it */
    uint8_t is_pipe, is_message;    /* a named pipe; one that an empty message ends */
    char first[HV_FIRST];           /* what is being received from here */
#endif
} hv_side;

typedef enum {
    HV_LINK_NEW,
    HV_LINK_CONNECTED,
    HV_LINK_CONNECTING,
    HV_LINK_RETRYING,
    HV_LINK_MOVING,
    HV_LINK_OVER
} hv_link_state;

struct hv_link {
    hv_side sides[2];
    hv_node all, timed, blocked, more, held; /* the lists of its thread that it is in */
    int64_t deadline;                        /* of the list `timed`, */
    int64_t held_until;                      /* ... and of the list `held` */
    int64_t limit;                           /* for connecting to this target */
    hv_link_state state;
    uint8_t has_moved; /* something, in this turn */
    int target;        /* index of the one that is tried */
    int pending;       /* operations that the system has not let go of; on Windows only */
    int error;         /* of a send */
    hv_origin origin;
};

typedef enum { HV_ENGINE_RUNS, HV_ENGINE_CLOSED, HV_ENGINE_ABORTS, HV_ENGINE_OVER } hv_engine_state;

typedef struct hv_engine hv_engine;

struct hv_loop {
    struct hv_loop *next;
    hv_engine *engine;
    hv_poller poller;
    hv_node all;
    hv_node connecting, retrying, idle; /* in the order of their deadlines */
    hv_node blocked;                    /* a side takes nothing more */
    hv_node more;                       /* there is more to be received at once */
    hv_node held;                       /* an end is kept from a target that would take it for the end of both */
    hv_node over;                       /* freed after the events, when nothing may name them any more */
    char *rooms[HV_ROOMS];
    int room_count;
    hv_handle spare;      /* the next target's: whoever is accepted has one */
    int accepts, listens; /* until the relay stops; and now */
    int is_listening;     /* counted as such: it may still use the listeners */
    int pending;          /* as a link's: accepts */
    int64_t accept_at;    /* when to listen again if it accepts */
    int64_t pause;
    int64_t retry_at; /* of what is blocked */
    int64_t now;      /* when the last wait was over */
    hv_node arrived;  /* links that others have placed here, under the engine's lock */
    hv_word load;     /* its links, those too, for all threads */
};

struct hv_engine {
    hv_lock lock;
    hv_cond changed; /* which threads there are, what they listen on, whether a connection is left */
    hv_cond logged;  /* something, or the engine is over */
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
        hv_cond_wake_all(&engine->logged);
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
        if (side->handle != HV_NO_HANDLE) {
            hv_link_close_side(link, i, is_clean);
        }
        side->handle = HV_NO_HANDLE;
    }
    hv_node_remove(&link->timed);
    hv_node_remove(&link->blocked);
    hv_node_remove(&link->more);
    hv_node_remove(&link->held);
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
    hv_node *node = loop->over.next;
    while (node != &loop->over) {
        hv_link *link = HV_OF(node, all);
        node = node->next;
        if (link->pending == 0) {
            hv_node_remove(&link->all);
            hv_side_drop_room(loop, &link->sides[0]);
            hv_side_drop_room(loop, &link->sides[1]);
            free(link);
            hv_word_add(&loop->load, -1);
            hv_engine_count_end(loop->engine);
        }
    }
}

/* ns without an answer, after which a target is closed that cannot be told the end of the stream. */
#define HV_HOLD 5000000000

static void
hv_link_hold(hv_loop *loop, hv_link *link)
{
    link->held_until = loop->now + HV_HOLD;
    hv_list_add(&loop->held, &link->held);
}

static void
hv_link_is_active(hv_loop *loop, hv_link *link)
{
    if (!hv_list_is_empty(&link->held)) {
        hv_link_hold(loop, link);
    }
    if (loop->engine->idle_limit >= 0) {
        link->deadline = loop->now + loop->engine->idle_limit;
        hv_list_add(&loop->idle, &link->timed);
    }
}

/* ---- accepting ---- */

static hv_link *
hv_link_new(hv_handle client, hv_handle target, const hv_origin *origin)
{
    hv_link *link = calloc(1, sizeof *link);
    if (link != NULL) {
        link->sides[0].handle = client;
        link->sides[1].handle = target;
        link->origin = *origin;
        hv_node_init(&link->all);
        hv_node_init(&link->timed);
        hv_node_init(&link->blocked);
        hv_node_init(&link->more);
        hv_node_init(&link->held);
    }
    return link;
}

/* What a thread does first with a link that is its own from now on. */
static void
hv_loop_start(hv_loop *loop, hv_link *link)
{
    hv_list_add(&loop->all, &link->all);
    if (link->state == HV_LINK_CONNECTED) {
        hv_link_begin(loop, link);
    } else {
        hv_link_try(loop, link);
    }
}

/* Chooses a thread for one link more, under the lock: `own`, if there is one, unless another thread has clearly less to do.
 * The system wakes whichever it likes for a client, which may be the same one each time. NULL: none runs. */
static hv_loop *
hv_engine_choose(const hv_engine *engine, hv_loop *own)
{
    hv_loop *least = own != NULL ? own : engine->loops, *loop;
    for (loop = engine->loops; loop != NULL; loop = loop->next) {
        if (hv_word_get(&loop->load) < hv_word_get(&least->load)) {
            least = loop;
        }
    }
    return own != NULL && 4 * hv_word_get(&own->load) <= 5 * hv_word_get(&least->load) ? own : least;
}

/* Gives a link to a thread. False: none runs, and the link stays the caller's. */
static int
hv_engine_place(hv_engine *engine, hv_link *link, hv_loop *own)
{
    hv_loop *loop;
    hv_lock_acquire(&engine->lock);
    loop = hv_engine_choose(engine, own);
    if (loop != NULL) {
        hv_word_add(&loop->load, 1);
    }
    if (loop != NULL && loop != own) {
        hv_list_add(&loop->arrived, &link->all);
        hv_poller_wake(&loop->poller);
    }
    hv_lock_release(&engine->lock);
    if (loop != NULL && loop == own) {
        hv_loop_start(loop, link);
    }
    return loop != NULL;
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
    hv_link *link = is_reserved ? hv_link_new(client, loop->spare, origin) : NULL;
    hv_counter_add(&engine->total, 1);
    if (link == NULL) {
        hv_loop_refuse(loop, client, origin);
        if (is_reserved) {
            hv_engine_count_end(engine);
        }
        return;
    }
    loop->spare = HV_NO_HANDLE;
    link->sides[0].is_inexact = hv_address_kind_of(hv_origin_family(origin)) != HV_ADDRESS_OTHER;
    link->sides[1].is_inexact = hv_address_kind_of(engine->targets[0].family) != HV_ADDRESS_OTHER;
    hv_engine_place(engine, link, loop);
}

/* ---- moving ---- */

/* 0, or the error of the side. */
static int
hv_link_flow(hv_loop *loop, hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    int round;
    for (round = 0; hv_link_send(loop, link, side) && !from->ended; round++) {
        int error;
        if (!from->readable) {
            return hv_link_await(loop, link, side);
        }
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

/* Moves what there is to be moved. */
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

/* The peer takes no more. The other direction continues: what it sent before can still be received. */
static void
hv_link_is_refused(hv_link *link, int side, int error)
{
    hv_side *from = &link->sides[side];
    link->error = hv_error_is_pipe(error) ? link->error : error;
    from->start = from->end;
    from->ended = 1;
}

/* A send is to be tried again after a while, whatever the system says. */
static void
hv_link_is_blocked(hv_loop *loop, hv_link *link)
{
    if (hv_list_is_empty(&loop->blocked)) {
        loop->retry_at = loop->now + HV_SEND_RETRY;
    }
    hv_list_add(&loop->blocked, &link->blocked);
}

/* ---- connecting ---- */

/* The connect is under way, until the limit. */
static void
hv_link_is_connecting(hv_loop *loop, hv_link *link)
{
    link->state = HV_LINK_CONNECTING;
    if (link->limit != HV_NEVER) {
        link->deadline = link->limit;
        hv_list_add(&loop->connecting, &link->timed);
    }
}

/* Connects to the target that is next. They share the time. */
static void
hv_link_try(hv_loop *loop, hv_link *link)
{
    int64_t limit = loop->engine->connect_limit;
    link->state = HV_LINK_NEW;
    link->limit = limit < 0 ? HV_NEVER : loop->now + limit / loop->engine->target_count;
    hv_link_connect(loop, link);
}

static int
hv_loop_watch(hv_loop *loop, hv_link *link, int side)
{
    return hv_poller_watch(&loop->poller, link->sides[side].handle, (uintptr_t)link | (uint64_t)side);
}

/* The target was not reached: it is the next one's turn. */
static void
hv_link_try_next(hv_loop *loop, hv_link *link, int error)
{
    if (link->target + 1 == loop->engine->target_count) {
        hv_link_fail(loop, link, error);
        return;
    }
    hv_node_remove(&link->timed);
    link->target++;
    hv_link_leave_target(loop, link);
}

/* ---- one thread ---- */

static void
hv_loop_take_arrived(hv_loop *loop)
{
    hv_node arrived;
    hv_node_init(&arrived);
    hv_lock_acquire(&loop->engine->lock);
    hv_list_move(&loop->arrived, &arrived);
    hv_lock_release(&loop->engine->lock);
    while (!hv_list_is_empty(&arrived)) {
        hv_loop_start(loop, HV_OF(arrived.next, all));
    }
}

/* Once nothing of this thread uses the listeners. */
static void
hv_loop_leave_listeners(hv_loop *loop)
{
    hv_engine *engine = loop->engine;
    if (loop->accepts || !loop->is_listening || loop->pending > 0) {
        return;
    }
    loop->is_listening = 0;
    hv_lock_acquire(&engine->lock);
    engine->listening--;
    hv_cond_wake_all(&engine->changed);
    hv_lock_release(&engine->lock);
}

static void
hv_loop_stop_listening(hv_loop *loop)
{
    if (!loop->accepts) {
        return;
    }
    loop->accepts = 0;
    hv_loop_listen(loop, 0);
    if (loop->spare != HV_NO_HANDLE) {
        hv_close(loop->spare);
        loop->spare = HV_NO_HANDLE;
    }
    hv_loop_leave_listeners(loop);
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
    hv_loop_take_arrived(loop);
    if (state >= HV_ENGINE_CLOSED) {
        hv_loop_stop_listening(loop);
    }
    if (state >= HV_ENGINE_ABORTS) {
        hv_loop_abort_all(loop);
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
            hv_link_try_next(loop, link, HV_ERROR_TIMED_OUT);
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

/* Ends those whose target has been silent; one that a slow reader holds up is not. */
static void
hv_loop_release_held(hv_loop *loop)
{
    while (!hv_list_is_empty(&loop->held) && HV_OF(loop->held.next, held)->held_until <= loop->now) {
        hv_link *link = HV_OF(loop->held.next, held);
        if (link->sides[0].start < link->sides[0].end || link->sides[1].start < link->sides[1].end) {
            hv_link_hold(loop, link);
        } else {
            hv_link_end(loop, link);
        }
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
        hv_link_try_next(loop, link, HV_ERROR_TIMED_OUT);
    }
    hv_loop_retry_connects(loop);
    while ((link = hv_loop_due(loop, &loop->idle)) != NULL) {
        hv_link_abort(loop, link, HV_LOG_IDLE);
    }
    hv_loop_release_held(loop);
    if (!hv_list_is_empty(&loop->blocked) && loop->retry_at <= loop->now) {
        hv_loop_retry_sends(loop);
    }
}

#ifdef _WIN32
#include "hv_relay_windows.h"
#else
#include "hv_relay_posix.h"
#endif

/* ms that the thread may sleep; -1: for ever. */
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
    if (!hv_list_is_empty(&loop->held) && HV_OF(loop->held.next, held)->held_until < until) {
        until = HV_OF(loop->held.next, held)->held_until;
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
    hv_event events[HV_POLLER_MOST];
    int n = hv_poller_wait(&loop->poller, events, hv_loop_timeout(loop));
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
    hv_node *lists[] = {&loop->held,    &loop->all,  &loop->connecting, &loop->retrying, &loop->idle,
                        &loop->blocked, &loop->more, &loop->over,       &loop->arrived};
    size_t i;
    memset(loop, 0, sizeof *loop);
    for (i = 0; i < sizeof lists / sizeof *lists; i++) {
        hv_node_init(lists[i]);
    }
    loop->engine = engine;
    loop->spare = HV_NO_HANDLE;
    loop->pause = HV_PAUSE_FIRST;
    loop->now = hv_now();
    return hv_poller_open(&loop->poller);
}

static void
hv_loop_close(hv_loop *loop)
{
    while (loop->room_count > 0) {
        free(loop->rooms[--loop->room_count]);
    }
    hv_poller_close(&loop->poller);
}

static void
hv_engine_enter(hv_engine *engine, hv_loop *loop)
{
    hv_lock_acquire(&engine->lock);
    loop->accepts = engine->listener_count > 0 && engine->listening < HV_MOST_LISTENING &&
                    hv_word_get(&engine->state) == HV_ENGINE_RUNS;
    loop->is_listening = loop->accepts;
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
        hv_engine_leave(engine, &loop); /* nothing more arrives */
        hv_loop_on_wake(&loop);
        hv_loop_free_over(&loop);
        while (!hv_list_is_empty(&loop.over) || loop.pending > 0) {
            hv_loop_turn(&loop);
        }
    }
    hv_loop_close(&loop);
    return error;
}

/* ---- for other threads ---- */

static void
hv_engine_wake(hv_engine *engine)
{
    hv_loop *loop;
    for (loop = engine->loops; loop != NULL; loop = loop->next) {
        hv_poller_wake(&loop->poller);
    }
    hv_cond_wake_all(&engine->changed);
    hv_cond_wake_all(&engine->logged);
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
    hv_link *link = hv_link_new(client, target, origin);
    if (link == NULL) {
        return HV_ERROR_NO_MEMORY;
    }
    link->state = HV_LINK_CONNECTED;
    link->sides[0].is_inexact = link->sides[1].is_inexact = 1; /* of what family is not known */
    hv_word_add(&engine->open, 1);
    if (!hv_engine_place(engine, link, NULL)) {
        free(link);
        hv_engine_count_end(engine);
        return HV_ERROR_CANCELED;
    }
    return 0;
}

/* Waits for an entry of the log, which becomes the caller's; NULL: the engine is over. */
static hv_log *
hv_engine_next_log(hv_engine *engine)
{
    hv_log *entry;
    hv_lock_acquire(&engine->lock);
    while (engine->first == NULL && hv_word_get(&engine->state) != HV_ENGINE_OVER) {
        hv_cond_wait(&engine->logged, &engine->lock, HV_DAY);
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
    hv_lock_init(&engine->lock);
    hv_cond_init(&engine->changed);
    hv_cond_init(&engine->logged);
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
    hv_cond_destroy(&engine->logged);
    hv_cond_destroy(&engine->changed);
    hv_lock_destroy(&engine->lock);
}

#if defined(__GNUC__) && __GNUC__ >= 10 && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif
