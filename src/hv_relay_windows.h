/* The engine where a system says what has ended. A receive is pending on every side that has nothing to be sent on, and
 * is given little memory: a connection that says nothing has no room. When it has ended, what else is there is received
 * into a room and sent on without waiting; what is not taken is given to one overlapped send. Nothing is cancelled but
 * by closing, when nothing of the connection is to be kept.
 *
 * A named pipe knows no attempts: what it is sent is always pending. It has no end of one direction either, but that an
 * empty message is taken for one where the pipe is made of messages, as by go-winio, Docker's. */
#ifndef HV_RELAY_WINDOWS_H
#define HV_RELAY_WINDOWS_H

#define HV_MOST_LISTENING 1 /* a listener belongs to one thread's port, which hands the clients round */

/* Windows cancels what is pending on a socket that is closed; Wine leaves its sends pending. */
static void
hv_handle_abort(hv_handle handle)
{
    struct linger linger = {1, 0};
    CancelIoEx((HANDLE)handle, NULL);
    setsockopt(handle, SOL_SOCKET, SO_LINGER, (const char *)&linger, sizeof linger);
    hv_close(handle);
}

/* ---- operations ---- */

static OVERLAPPED *
hv_transfer_new(hv_transfer *transfer)
{
    memset(&transfer->overlapped, 0, sizeof transfer->overlapped);
    return &transfer->overlapped;
}

/* What the call has come to that begins one: 0, and the port says when it has ended, even if it has already; or the
 * error. */
static int
hv_transfer_begun(hv_transfer *transfer, int *pending, int ok)
{
    int error = ok ? 0 : hv_last_error();
    if (error != 0 && error != WSA_IO_PENDING) {
        return error;
    }
    transfer->is_pending = 1;
    ++*pending;
    return 0;
}

static void
hv_transfer_ended(hv_transfer *transfer, int *pending)
{
    transfer->is_pending = 0;
    --*pending;
}

/* 0, or the error, which the port says in other words than Winsock. */
static int
hv_transfer_result(hv_transfer *transfer, hv_handle handle, DWORD *n)
{
    DWORD flags = 0;
    return WSAGetOverlappedResult(handle, &transfer->overlapped, n, FALSE, &flags) ? 0 : hv_last_error();
}

/* The same of an operation on the handle of a side. */
static int
hv_side_result(const hv_side *side, hv_transfer *transfer, DWORD *n)
{
    if (!side->is_pipe) {
        return hv_transfer_result(transfer, side->handle, n);
    }
    return GetOverlappedResult((HANDLE)side->handle, &transfer->overlapped, n, FALSE) ? 0 : hv_last_error();
}

/* ---- the end of a direction ---- */

enum { HV_FLUSH_WAITS, HV_FLUSH_OVER, HV_FLUSH_FORGOTTEN };

static DWORD WINAPI
hv_flush_run(void *argument)
{
    hv_flush *flush = argument;
    long seen = HV_FLUSH_WAITS;
    FlushFileBuffers(flush->pipe);
    CloseHandle(flush->pipe);
    if (hv_word_swap_if(&flush->state, &seen, HV_FLUSH_OVER)) {
        PostQueuedCompletionStatus(flush->port, 0, flush->token, flush->overlapped); /* the link frees it */
    } else {
        free(flush);
    }
    return 0;
}

static void
hv_link_forget_flush(hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    long seen = HV_FLUSH_WAITS;
    if (from->flush != NULL && hv_word_swap_if(&from->flush->state, &seen, HV_FLUSH_FORGOTTEN)) {
        from->flush = NULL;
        hv_transfer_ended(&from->sending, &link->pending);
    }
}

static void
hv_link_send_empty(hv_link *link, int side)
{
    hv_transfer *transfer = &link->sides[side].sending;
    int ok = WriteFile((HANDLE)link->sides[1 - side].handle, "", 0, NULL, hv_transfer_new(transfer));
    hv_transfer_begun(transfer, &link->pending, ok); /* an error is the other direction's too */
}

/* A reader that does not read by messages takes an empty one for nothing, if it reads it together with one before. */
static void
hv_link_send_empty_alone(hv_loop *loop, hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    HANDLE self = GetCurrentProcess(), pipe = (HANDLE)link->sides[1 - side].handle;
    hv_flush *flush = calloc(1, sizeof *flush);
    int ok = flush != NULL && DuplicateHandle(self, pipe, self, &flush->pipe, 0, FALSE, DUPLICATE_SAME_ACCESS);
    if (ok) {
        flush->port = loop->poller.port;
        flush->token = (uintptr_t)link | (uintptr_t)(1 - side);
        flush->overlapped = hv_transfer_new(&from->sending);
        ok = QueueUserWorkItem(hv_flush_run, flush, WT_EXECUTELONGFUNCTION);
        if (!ok) {
            CloseHandle(flush->pipe);
        }
    }
    if (!ok) {
        free(flush);
        hv_link_send_empty(link, side);
        return;
    }
    from->flush = flush;
    hv_transfer_begun(&from->sending, &link->pending, 1);
}

static void
hv_link_pass_end(hv_loop *loop, hv_link *link, int side)
{
    const hv_side *to = &link->sides[1 - side];
    if (!to->is_pipe) {
        shutdown(to->handle, SD_SEND);
    } else if (!to->ended && to->is_message) {
        hv_link_send_empty_alone(loop, link, side);
    } else if (!to->ended) {
        hv_link_hold(loop, link);
    }
}

static void
hv_link_close_side(hv_link *link, int side, int is_clean)
{
    const hv_side *it = &link->sides[side];
    hv_link_forget_flush(link, 1 - side);
    if (it->is_pipe) {
        CancelIoEx((HANDLE)it->handle, NULL);
        CloseHandle((HANDLE)it->handle);
    } else if (is_clean) {
        hv_close(it->handle);
    } else {
        hv_handle_abort(it->handle);
    }
}

/* ---- moving ---- */

static void
hv_link_has_sent(hv_loop *loop, hv_link *link, int side, size_t n)
{
    link->sides[side].start += (uint32_t)n;
    link->has_moved = 1;
    hv_counter_add(&loop->engine->moved[side], n);
}

/* Sends what the peer takes. 0, or the error. */
static int
hv_link_send_now(hv_loop *loop, hv_link *link, int side)
{
    const hv_side *from = &link->sides[side];
    size_t size = from->end - from->start;
    int n;
    while ((n = send(link->sides[1 - side].handle, from->room + from->start, (int)size, 0)) < 0 &&
           WSAGetLastError() == WSAENOBUFS && size > HV_SEND_LEAST) {
        size = hv_smaller(size);
    }
    if (n < 0) {
        return hv_last_error();
    }
    hv_link_has_sent(loop, link, side, (size_t)n);
    return 0;
}

/* Has the system send it, which then has the room. 0, or the error. */
static int
hv_link_send_pending(hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    const hv_side *to = &link->sides[1 - side];
    WSABUF data = {from->end - from->start, from->room + from->start};
    for (;;) {
        OVERLAPPED *overlapped = hv_transfer_new(&from->sending);
        int ok = to->is_pipe ? WriteFile((HANDLE)to->handle, data.buf, data.len, NULL, overlapped)
                             : WSASend(to->handle, &data, 1, NULL, 0, overlapped, NULL) == 0;
        int error = hv_transfer_begun(&from->sending, &link->pending, ok);
        if (error != WSAENOBUFS || data.len <= HV_SEND_LEAST) {
            return error;
        }
        data.len = (ULONG)hv_smaller(data.len);
    }
}

static int
hv_link_send(hv_loop *loop, hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    while (!from->sending.is_pending && from->start < from->end) {
        int error = link->sides[1 - side].is_pipe ? WSAEWOULDBLOCK : hv_link_send_now(loop, link, side);
        if (error == WSAEWOULDBLOCK) {
            error = hv_link_send_pending(link, side);
        }
        if (error == WSAEWOULDBLOCK) { /* too much is pending in this system */
            hv_link_is_blocked(loop, link);
            return 0;
        }
        if (error != 0) {
            hv_link_is_refused(link, side, error);
        }
    }
    if (from->sending.is_pending) {
        return 0;
    }
    if (!from->receiving.is_pending) { /* into the room, where a pipe has more */
        hv_side_drop_room(loop, from);
    }
    return 1;
}

/* Receives without waiting what there is room for: 0, also if there is nothing, or the error. */
static int
hv_link_fill(hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    int size = HV_PUMP_ROOM - (int)from->end, n = recv(from->handle, from->room + from->end, size, 0);
    int error = n < 0 ? hv_last_error() : 0;
    from->closing = (uint8_t)(n == 0);
    from->readable = (uint8_t)(n == 0 || n == size);
    if (n > 0) {
        from->end += (uint32_t)n;
        link->has_moved = 1;
    }
    return error == WSAEWOULDBLOCK ? 0 : error;
}

static int
hv_link_receive(hv_loop *loop, hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    if (from->closing) {
        from->ended = 1;
        link->has_moved = 1;
        hv_link_pass_end(loop, link, side);
        return 0;
    }
    from->room = hv_loop_take_room(loop);
    return from->room == NULL ? HV_ERROR_NO_MEMORY : hv_link_fill(link, side);
}

/* Begins a receive of a pipe: into the room if there is much already. 0, or the error. */
static int
hv_link_await_pipe(hv_loop *loop, hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    HANDLE pipe = (HANDLE)from->handle;
    DWORD there = 0, size = HV_FIRST;
    char *room = from->first;
    if (PeekNamedPipe(pipe, NULL, 0, NULL, &there, NULL) && there > HV_FIRST) {
        from->room = room = hv_loop_take_room(loop);
        size = HV_PUMP_ROOM;
    }
    return room == NULL ? HV_ERROR_NO_MEMORY
                        : hv_transfer_begun(&from->receiving, &link->pending,
                                            ReadFile(pipe, room, size, NULL, hv_transfer_new(&from->receiving)));
}

static int
hv_link_await_socket(hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    WSABUF room = {HV_FIRST, from->first};
    DWORD flags = 0;
    int ok = WSARecv(from->handle, &room, 1, NULL, &flags, hv_transfer_new(&from->receiving), NULL) == 0;
    return hv_transfer_begun(&from->receiving, &link->pending, ok);
}

static int
hv_link_await(hv_loop *loop, hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    int error;
    if (from->receiving.is_pending) {
        return 0;
    }
    error = from->is_pipe ? hv_link_await_pipe(loop, link, side) : hv_link_await_socket(link, side);
    if (error == WSAEWOULDBLOCK) { /* too much is pending in this system */
        hv_link_is_blocked(loop, link);
        return 0;
    }
    if (hv_error_is_pipe(error)) {
        from->closing = from->readable = 1;
        hv_list_add(&loop->more, &link->more);
        return 0;
    }
    return error;
}

/* The first bytes have come, or the end. 0, or the error of the side. */
static int
hv_link_has_received(hv_loop *loop, hv_link *link, int side, DWORD n)
{
    hv_side *from = &link->sides[side];
    if (n == 0) {
        from->closing = from->readable = 1;
        return 0;
    }
    from->end = n;
    if (from->room != NULL) {
        return 0;
    }
    from->room = hv_loop_take_room(loop);
    if (from->room == NULL) {
        return HV_ERROR_NO_MEMORY;
    }
    memcpy(from->room, from->first, n);
    return n == HV_FIRST && !from->is_pipe ? hv_link_fill(link, side) : 0;
}

/* ---- connecting ---- */

static hv_handle
hv_socket_new(int family, int proto)
{
    hv_handle handle =
        WSASocketW(family, SOCK_STREAM, proto, NULL, 0, WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT);
    BOOL on = TRUE;
    if (handle != INVALID_SOCKET && family != HV_AF_HYPERV) {
        setsockopt(handle, IPPROTO_TCP, TCP_NODELAY, (const char *)&on, sizeof on);
        setsockopt(handle, SOL_SOCKET, SO_KEEPALIVE, (const char *)&on, sizeof on);
    }
    return handle;
}

static void
hv_side_set_up(hv_side *side)
{
    DWORD flags = 0;
    side->is_pipe = (uint8_t)GetNamedPipeInfo((HANDLE)side->handle, &flags, NULL, NULL, NULL);
    side->is_message = (uint8_t)(side->is_pipe && (flags & PIPE_TYPE_MESSAGE) != 0);
}

static void
hv_link_begin(hv_loop *loop, hv_link *link)
{
    int error, i;
    for (i = 0; i < 2 && link->state == HV_LINK_CONNECTED; i++) { /* by others */
        hv_side_set_up(&link->sides[i]);
    }
    error = hv_loop_watch(loop, link, 0);
    if (error == 0 && link->state != HV_LINK_CONNECTING) { /* where the target is watched already */
        error = hv_loop_watch(loop, link, 1);
    }
    if (error != 0) {
        hv_link_fail(loop, link, error);
        return;
    }
    for (i = 0; i < 2; i++) {
        if (!link->sides[i].is_pipe) {
            hv_set_mode(link->sides[i].handle, 1);
        }
    }
    link->state = HV_LINK_MOVING;
    hv_node_remove(&link->timed);
    hv_link_is_active(loop, link);
    hv_engine_log(loop->engine, HV_LOG_CONNECTED, 0, &link->origin);
    hv_link_move(loop, link);
}

/* A function of the family's provider. */
static LPFN_CONNECTEX
hv_connect_function(hv_handle handle, int family)
{
    static hv_cell known[2];
    return (LPFN_CONNECTEX)hv_extension(handle, &known[family == HV_AF_HYPERV], (GUID)WSAID_CONNECTEX);
}

/* Makes the target's socket and begins its connect: 0, or the error. */
static int
hv_link_begin_connect(hv_loop *loop, hv_link *link)
{
    const hv_target *target = &loop->engine->targets[link->target];
    hv_sockaddr any;
    hv_handle handle = hv_socket_new(target->family, target->proto);
    hv_transfer *transfer = &link->sides[1].receiving;
    LPFN_CONNECTEX connect_ex;
    DWORD n;
    int error;
    if (handle == INVALID_SOCKET) {
        return hv_last_error();
    }
    link->sides[1].handle = handle;
    hv_sockaddr_clear(&any);
    any.u.any.sa_family = (ADDRESS_FAMILY)target->family;
    if ((target->family == HV_AF_HYPERV && hv_set_connect_timeout(handle, loop->engine->connect_limit) != 0) ||
        bind(handle, &any.u.any, target->length) != 0) { /* ConnectEx wants a bound socket */
        return hv_last_error();
    }
    error = hv_loop_watch(loop, link, 1);
    if (error != 0) {
        return error;
    }
    connect_ex = hv_connect_function(handle, target->family);
    return hv_transfer_begun(transfer, &link->pending,
                             connect_ex != NULL && connect_ex(handle, (const struct sockaddr *)&target->address,
                                                              target->length, NULL, 0, &n, hv_transfer_new(transfer)));
}

static void
hv_link_connect(hv_loop *loop, hv_link *link)
{
    int error = hv_link_begin_connect(loop, link);
    if (error != 0) {
        hv_link_try_next(loop, link, error);
        return;
    }
    hv_link_is_connecting(loop, link);
}

/* When the system has let go of the connect. */
static void
hv_link_leave_target(hv_loop *loop, hv_link *link)
{
    hv_side *side = &link->sides[1];
    if (side->handle != HV_NO_HANDLE) {
        hv_handle_abort(side->handle);
        side->handle = HV_NO_HANDLE;
    }
    if (!side->receiving.is_pending) {
        hv_link_try(loop, link);
    }
}

static void
hv_link_settle(hv_loop *loop, hv_link *link)
{
    hv_side *side = &link->sides[1];
    DWORD n;
    int error;
    if (side->handle == HV_NO_HANDLE) {
        hv_link_try(loop, link);
        return;
    }
    error = hv_transfer_result(&side->receiving, side->handle, &n);
    if (error == 0) {
        error = hv_connect_settle(side->handle);
    }
    if (error != 0) {
        hv_link_try_next(loop, link, error);
    } else {
        hv_link_begin(loop, link);
    }
}

/* ---- accepting ---- */

/* Which family it is of, once the port knows it; 0, or the error. */
static int
hv_accepting_open(hv_accepting *accepting, hv_poller *poller, hv_handle listener, int index)
{
    hv_sockaddr own;
    int error;
    if (accepting->family != 0) {
        return 0;
    }
    hv_sockaddr_clear(&own);
    if (getsockname(listener, &own.u.any, &own.length) != 0) {
        return hv_last_error();
    }
    error = hv_poller_watch(poller, listener, (uint64_t)index + 1);
    accepting->family = error == 0 ? own.u.any.sa_family : 0;
    return error;
}

static LPFN_ACCEPTEX
hv_accept_function(hv_handle listener, int family)
{
    static hv_cell known[2];
    return (LPFN_ACCEPTEX)hv_extension(listener, &known[family == HV_AF_HYPERV], (GUID)WSAID_ACCEPTEX);
}

/* Begins to accept on a listener, unless that is pending: 0, or the error. */
static int
hv_loop_begin_accept(hv_loop *loop, int index)
{
    hv_accepting *it = &loop->poller.accepting[index];
    hv_handle listener = loop->engine->listeners[index];
    LPFN_ACCEPTEX accept_ex;
    DWORD n;
    int error = hv_accepting_open(it, &loop->poller, listener, index);
    if (error != 0 || it->transfer.is_pending) {
        return error;
    }
    it->client = it->family == HV_AF_HYPERV ? hv_accept_socket(listener) : hv_socket_new(it->family, IPPROTO_TCP);
    if (it->client == INVALID_SOCKET) {
        return hv_last_error();
    }
    accept_ex = hv_accept_function(listener, it->family);
    error = hv_transfer_begun(&it->transfer, &loop->pending,
                              accept_ex != NULL && accept_ex(listener, it->client, it->addresses, 0, HV_ACCEPT_SLOT,
                                                             HV_ACCEPT_SLOT, &n, hv_transfer_new(&it->transfer)));
    if (error != 0) {
        hv_close(it->client);
    }
    return error;
}

static void
hv_loop_accept(hv_loop *loop, int index)
{
    int error;
    do {
        error = hv_loop_begin_accept(loop, index);
    } while (hv_error_is_of_client(error));
    if (error != 0) {
        hv_loop_pause(loop, error);
    }
}

/* What is pending goes on during a pause, and is cancelled at the end. */
static void
hv_loop_listen(hv_loop *loop, int on)
{
    const hv_engine *engine = loop->engine;
    int i, was = loop->listens;
    loop->listens = on;
    for (i = 0; i < engine->listener_count; i++) {
        hv_transfer *transfer = &loop->poller.accepting[i].transfer;
        if (!loop->accepts && transfer->is_pending) {
            CancelIoEx((HANDLE)engine->listeners[i], &transfer->overlapped);
        } else if (loop->listens && !was) {
            hv_loop_accept(loop, i);
        }
    }
}

/* One that has gone already is not counted. */
static void
hv_loop_meet(hv_loop *loop, hv_handle listener, hv_handle client)
{
    hv_sockaddr address;
    hv_origin origin;
    hv_sockaddr_clear(&address);
    if (!hv_accept_settle(listener, client, &address)) {
        hv_close(client);
        return;
    }
    hv_origin_set(&origin, &address.u, (size_t)address.length);
    hv_loop_admit(loop, client, &origin);
}

static void
hv_loop_on_accept(hv_loop *loop, int index)
{
    hv_accepting *it = &loop->poller.accepting[index];
    hv_handle listener = loop->engine->listeners[index], client = it->client;
    DWORD n;
    int error = hv_transfer_result(&it->transfer, listener, &n);
    hv_transfer_ended(&it->transfer, &loop->pending);
    if (!loop->accepts) {
        hv_handle_abort(client);
        hv_loop_leave_listeners(loop);
        return;
    }
    if (error != 0 && !hv_error_is_of_client(error)) {
        hv_loop_pause(loop, error);
    } else if (loop->listens) {
        hv_loop_accept(loop, index); /* the next one */
    }
    if (error != 0) {
        hv_close(client);
        return;
    }
    loop->pause = HV_PAUSE_FIRST;
    hv_loop_meet(loop, listener, client);
}

/* ---- events ---- */

static void
hv_link_on_received(hv_loop *loop, hv_link *link, int side)
{
    hv_side *it = &link->sides[side];
    DWORD n;
    int error = hv_side_result(it, &it->receiving, &n);
    if (hv_error_is_pipe(error)) {
        error = hv_link_has_received(loop, link, side, 0);
    } else if (error == 0 && (n > 0 || !it->is_pipe || it->is_message)) { /* a pipe of bytes is not ended by none */
        error = hv_link_has_received(loop, link, side, n);
    }
    if (error != 0) {
        hv_link_abort(loop, link, error);
        return;
    }
    hv_link_is_active(loop, link);
    hv_link_move(loop, link);
}

static void
hv_link_on_sent(hv_loop *loop, hv_link *link, int side)
{
    hv_side *from = &link->sides[side];
    DWORD n;
    int error = hv_side_result(&link->sides[1 - side], &from->sending, &n);
    if (from->ended) { /* it was the end: an error of it is the other direction's too */
        return;
    }
    if (error != 0) {
        hv_link_is_refused(link, side, error);
    } else {
        hv_link_has_sent(loop, link, side, n);
        hv_link_is_active(loop, link);
    }
    hv_link_move(loop, link);
}

/* A flush or a send of this direction is over. */
static void
hv_loop_on_sending(hv_loop *loop, hv_link *link, int side)
{
    hv_flush *flush = link->sides[side].flush;
    link->sides[side].flush = NULL;
    free(flush);
    if (link->state == HV_LINK_OVER) {
        return;
    }
    if (flush != NULL) {
        hv_link_send_empty(link, side);
    } else {
        hv_link_on_sent(loop, link, side);
    }
}

/* An operation on the handle of a side has ended. */
static void
hv_loop_on_link(hv_loop *loop, hv_link *link, int side, const OVERLAPPED *overlapped)
{
    int is_received = overlapped == &link->sides[side].receiving.overlapped;
    hv_transfer_ended(is_received ? &link->sides[side].receiving : &link->sides[1 - side].sending, &link->pending);
    if (!is_received) {
        hv_loop_on_sending(loop, link, 1 - side);
    } else if (link->state == HV_LINK_CONNECTING) {
        hv_link_settle(loop, link);
    } else if (link->state == HV_LINK_MOVING) {
        hv_link_on_received(loop, link, side);
    }
}

static void
hv_loop_on_event(hv_loop *loop, const hv_event *event)
{
    uint64_t token = hv_event_token(event);
    if (token == HV_EVENT_WAKE) {
        hv_loop_on_wake(loop);
    } else if (token <= HV_MOST_LISTENERS) {
        hv_loop_on_accept(loop, (int)token - 1);
    } else {
        hv_loop_on_link(loop, (hv_link *)(uintptr_t)(token & ~(uint64_t)1), (int)(token & 1), event->lpOverlapped);
    }
}

#endif
