/* The pump's loop on POSIX: one poll for both sockets and the order to stop, then what is ready. */
#ifndef HV_PUMP_POSIX_H
#define HV_PUMP_POSIX_H

typedef struct {
    int wake[2];
} hv_stop;

static int
hv_stop_open(hv_stop *stop)
{
    int i;
    if (pipe(stop->wake) != 0) {
        return errno;
    }
    for (i = 0; i < 2; i++) {
        fcntl(stop->wake[i], F_SETFD, FD_CLOEXEC);
        hv_set_nonblocking(stop->wake[i], 1); /* a full one is readable for ever, and more need not be written */
    }
    return 0;
}

static inline void
hv_stop_clear(hv_stop *stop)
{
    stop->wake[0] = stop->wake[1] = -1;
}

static inline void
hv_stop_close(hv_stop *stop)
{
    if (stop->wake[0] >= 0) {
        close(stop->wake[0]);
        close(stop->wake[1]);
    }
}

/* What is written is never read, so it stays readable. */
static inline void
hv_stop_set(hv_stop *stop)
{
    uint64_t one = 1;
    ssize_t n = write(stop->wake[1], &one, sizeof one);
    (void)n;
}

/* An error is not looked at: the next receive from that side has it too. */
static void
hv_end_stream(hv_handle handle)
{
    shutdown(handle, SHUT_WR);
}

/* EPROTOTYPE: macOS, at the moment at which the peer goes. */
static int
hv_error_is_pipe(int error)
{
    return error == EPIPE || error == EPROTOTYPE;
}

static inline int
hv_flow_must_wait(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/* One receive, if all is sent, and one send. 0, or the error of the receive. */
static int
hv_flow_step(hv_pair *pair, hv_flow *flow)
{
    ssize_t n;
    if (!hv_flow_is_sending(flow)) {
        n = recv(flow->from, flow->room, HV_PUMP_ROOM, 0);
        /* On AF_VSOCK a socket that the peer has closed is no longer connected after shutdown(). */
        if (n < 0 && errno == ENOTCONN) {
            n = 0;
        }
        if (n < 0) {
            return hv_flow_must_wait(errno) ? 0 : errno;
        }
        hv_flow_received(pair, flow, (size_t)n);
    }
    if (hv_flow_is_sending(flow)) {
        n = send(flow->to, flow->room + flow->start, flow->end - flow->start, MSG_NOSIGNAL);
        if (n >= 0) {
            hv_flow_sent(pair, flow, (size_t)n);
        } else if (!hv_flow_must_wait(errno)) {
            hv_flow_is_refused(pair, flow, errno);
        }
    }
    return 0;
}

/* What the pair waits for on the side that flows[side] receives from and the other flow sends to. */
static short
hv_pair_events(const hv_pair *pair, int side)
{
    const hv_flow *from = &pair->flows[side], *to = &pair->flows[1 - side];
    short events = from->ended || hv_flow_is_sending(from) ? 0 : POLLIN;
    return (short)(hv_flow_is_sending(to) ? events | POLLOUT : events);
}

/* The error of a side that nothing is to be had from or given to now: poll reports those unasked. */
static int
hv_side_error(hv_handle handle)
{
    int error = 0;
    socklen_t length = sizeof error;
    return getsockopt(handle, SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : errno;
}

static hv_pump_status
hv_pump_run(hv_pair *pair, const hv_stop *stop)
{
    struct pollfd fds[3] = {{-1, 0, POLLIN}, {-1, 0, POLLIN}, {stop->wake[0], POLLIN, 0}}; /* first try, then wait */
    int hung_up[2] = {0, 0};
    int n, side;
    if (hv_set_nonblocking(pair->flows[0].from, 1) != 0 || hv_set_nonblocking(pair->flows[1].from, 1) != 0) {
        pair->error = errno;
        return HV_PUMP_FAILED;
    }
    for (;;) {
        int64_t left;
        int ready[2];
        for (side = 0; side < 2; side++) {
            int sending = hv_flow_is_sending(&pair->flows[side]);
            ready[side] = sending ? fds[1 - side].revents & ~POLLIN : fds[side].revents & ~POLLOUT;
        }
        for (side = 0; side < 2; side++) {
            int error = 0;
            if (ready[side] && !pair->flows[side].ended) {
                error = hv_flow_step(pair, &pair->flows[side]);
            } else if (fds[side].events == 0 && fds[side].revents != 0) {
                hung_up[side] = 1;
                error = hv_side_error(pair->flows[side].from);
            }
            if (error != 0) {
                pair->error = error;
                return HV_PUMP_FAILED;
            }
        }
        if (hv_pair_has_ended(pair)) {
            return HV_PUMP_ENDED;
        }
        if (hung_up[0]) {
            hv_pair_release(pair); /* an answer has no reader */
        }
        left = hv_pair_left(pair);
        if (left == 0) {
            return HV_PUMP_IDLE;
        }
        for (side = 0; side < 2; side++) {
            fds[side].events = hv_pair_events(pair, side);
            /* Once hung up, it would be reported again and again. */
            fds[side].fd = fds[side].events == 0 && hung_up[side] ? -1 : pair->flows[side].from;
        }
        if ((fds[0].events | fds[1].events) & POLLOUT && (left < 0 || HV_SEND_RETRY < left)) {
            left = HV_SEND_RETRY;
        }
        n = poll(fds, 3, hv_poll_timeout(left));
        if (n < 0) {
            if (errno != EINTR) {
                pair->error = errno;
                return HV_PUMP_FAILED;
            }
            fds[0].revents = fds[1].revents = fds[2].revents = 0;
        } else if (n == 0) {
            for (side = 0; side < 2; side++) {
                fds[side].revents = (short)(fds[side].events & POLLOUT);
            }
        }
        if (fds[2].revents != 0) {
            return HV_PUMP_STOPPED;
        }
    }
}

#endif
