/* The engine where a system says what is ready: it says once that a socket is, and `readable` and `writable` remember it
 * until a call says EAGAIN. */
#ifndef HV_RELAY_POSIX_H
#define HV_RELAY_POSIX_H

#include <netinet/in.h>
#include <netinet/tcp.h>

#define HV_ACCEPTS 4 /* clients in a row: the rest is for the other threads, which are woken meanwhile */
#define HV_MOST_LISTENING INT_MAX
#define HV_UNIX_RETRY 10000000 /* ns; connect() to a Unix socket does not wait for room in its backlog */

static void
hv_handle_abort(hv_handle handle)
{
    struct linger linger = {1, 0};
    setsockopt(handle, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(handle);
}

static void
hv_link_close_side(hv_link *link, int side, int is_clean)
{
    if (is_clean) {
        hv_close(link->sides[side].handle);
    } else {
        hv_handle_abort(link->sides[side].handle);
    }
}

/* ---- moving ---- */

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
            hv_link_is_refused(link, side, errno);
        }
    }
    if (from->start < from->end) {
        hv_link_is_blocked(loop, link);
        return 0;
    }
    hv_side_drop_room(loop, from);
    return 1;
}

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

/* It is watched all the time. */
static int
hv_link_await(hv_loop *loop, hv_link *link, int side)
{
    (void)loop, (void)link, (void)side;
    return 0;
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
hv_handle_new(int family, int proto)
{
#ifdef HV_LIKE_BSD
    hv_handle handle = socket(family, SOCK_STREAM, proto);
    if (handle >= 0) {
        fcntl(handle, F_SETFD, FD_CLOEXEC);
        hv_set_nonblocking(handle, 1);
    }
    return handle;
#else
    return socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, proto);
#endif
}

static void
hv_target_limit(const hv_engine *engine, const hv_target *target, hv_handle handle)
{
#ifdef SO_VM_SOCKETS_CONNECT_TIMEOUT
    if (target->family == AF_VSOCK && engine->connect_limit >= 0) {
        /* It gives up after 2 s by itself. */
        int64_t us = engine->connect_limit / 1000 + 1;
        struct timeval limit = {us / 1000000, us % 1000000};
        setsockopt(handle, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit, sizeof limit);
    }
#endif
    (void)engine;
    (void)target;
    (void)handle;
}

static hv_handle
hv_target_socket(const hv_engine *engine, const hv_target *target)
{
    hv_handle handle = hv_handle_new(target->family, target->proto);
    if (handle >= 0) {
        hv_socket_tune(handle, target->family);
        hv_target_limit(engine, target, handle);
    }
    return handle;
}

/* What MSG_DONTWAIT and MSG_NOSIGNAL do elsewhere; macOS looks at the one in a receive only, and lacks the other. */
static void
hv_handle_claim(hv_handle handle)
{
#ifdef HV_LIKE_BSD
    hv_set_nonblocking(handle, 1);
#endif
#ifdef SO_NOSIGPIPE
    int on = 1;
    setsockopt(handle, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    (void)handle;
}

static void
hv_link_begin(hv_loop *loop, hv_link *link)
{
    int error = hv_loop_watch(loop, link, 0);
    hv_handle_claim(link->sides[0].handle);
    hv_handle_claim(link->sides[1].handle);
    if (error == 0 && link->state != HV_LINK_CONNECTING) { /* where the target is watched already */
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
        hv_link_begin(loop, link);
    } else if (error == EAGAIN) { /* a Unix socket's backlog is full */
        link->state = HV_LINK_RETRYING;
        link->deadline = loop->now + HV_UNIX_RETRY;
        hv_list_add(&loop->retrying, &link->timed);
    } else if (error == EINPROGRESS && (error = hv_loop_watch(loop, link, 1)) == 0) {
        hv_link_is_connecting(loop, link);
    } else {
        hv_link_try_next(loop, link, error);
    }
}

static void
hv_link_leave_target(hv_loop *loop, hv_link *link)
{
    hv_side *side = &link->sides[1];
    close(side->handle);
    side->handle = hv_target_socket(loop->engine, &loop->engine->targets[link->target]);
    if (side->handle < 0) {
        hv_link_fail(loop, link, errno);
    } else {
        hv_link_try(loop, link);
    }
}

static void
hv_link_settle(hv_loop *loop, hv_link *link)
{
    int error = hv_side_error(link->sides[1].handle);
    if (error != 0) {
        hv_link_try_next(loop, link, error);
    } else {
        hv_link_begin(loop, link);
    }
}

/* ---- accepting ---- */

static void
hv_loop_listen(hv_loop *loop, int on)
{
    hv_engine *engine = loop->engine;
    int i;
    if (loop->listens != on) {
        for (i = 0; i < engine->listener_count; i++) {
            hv_poller_listen(&loop->poller, engine->listeners[i], (uint64_t)i + 1, on);
        }
    }
    loop->listens = on;
}

static int
hv_error_is_of_client(int error)
{
    return error == ECONNABORTED || error == ECONNRESET || error == EPROTO || error == EINTR;
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
        client = loop->spare < 0 ? -1 : hv_handle_accept(listener, (struct sockaddr *)&address, &length, 1);
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

/* ---- events ---- */

static void
hv_loop_on_link(hv_loop *loop, hv_link *link, int side, const hv_event *event)
{
    hv_side *it = &link->sides[side];
    int error;
    it->readable |= hv_event_is(event, HV_EVENT_IN);
    it->is_inexact |= hv_event_is(event, HV_EVENT_URGENT);
    it->closing |= hv_event_is(event, HV_EVENT_CLOSING);
    it->writable |= hv_event_is(event, HV_EVENT_OUT);
    if (link->state == HV_LINK_CONNECTING) {
        if (hv_event_is(event, HV_EVENT_OUT)) { /* not of the target that was tried before */
            hv_link_settle(loop, link);
        }
    } else if (link->state == HV_LINK_MOVING) {
        error = hv_event_is(event, HV_EVENT_BROKEN) ? hv_link_lost(link, side) : 0;
        if (error != 0) {
            hv_link_abort(loop, link, error);
        } else {
            hv_link_move(loop, link);
        }
    }
}

static void
hv_loop_on_event(hv_loop *loop, const hv_event *event)
{
    uint64_t token = hv_event_token(event);
    hv_link *link = (hv_link *)(uintptr_t)(token & ~(uint64_t)1);
    if (token == HV_EVENT_WAKE) {
        hv_poller_clear(&loop->poller);
        hv_loop_on_wake(loop);
    } else if (token <= HV_MOST_LISTENERS) {
        hv_loop_accept(loop, loop->engine->listeners[token - 1]);
    } else if (link->state != HV_LINK_OVER) {
        hv_loop_on_link(loop, link, (int)(token & 1), event);
    }
}

#endif
