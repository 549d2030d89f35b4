/* The pump's loop on Windows: attempts on both non-blocking sockets, and one event that says when another is worth it.
 * As for every send here, nothing is ever cancelled. */
#ifndef HV_PUMP_WINDOWS_H
#define HV_PUMP_WINDOWS_H

typedef struct {
    HANDLE event;
} hv_stop;

static inline int
hv_stop_open(hv_stop *stop)
{
    stop->event = CreateEventW(NULL, TRUE, FALSE, NULL);
    return stop->event != NULL ? 0 : (int)GetLastError();
}

static inline void
hv_stop_clear(hv_stop *stop)
{
    stop->event = NULL;
}

static inline void
hv_stop_close(hv_stop *stop)
{
    hv_event_free(stop->event);
}

static inline void
hv_stop_set(hv_stop *stop)
{
    SetEvent(stop->event);
}

/* An error is not looked at: the next receive from that side has it too. */
static void
hv_end_stream(hv_handle handle)
{
    shutdown(handle, SD_SEND);
}

static int
hv_error_is_pipe(int error)
{
    (void)error; /* a peer that has gone is always a reset here */
    return 0;
}

/* One send. 0, or WSAEWOULDBLOCK. */
static int
hv_flow_send(hv_pair *pair, hv_flow *flow)
{
    size_t size = flow->end - flow->start;
    int n, error = 0;
    while ((n = send(flow->to, flow->room + flow->start, (int)size, 0)) < 0) {
        error = hv_last_error();
        if (error != WSAENOBUFS || size <= HV_SEND_LEAST) {
            break;
        }
        size = hv_smaller(size);
    }
    if (n >= 0) {
        hv_flow_sent(pair, flow, (size_t)n);
        return 0;
    }
    if (error != WSAEWOULDBLOCK) {
        hv_flow_is_refused(pair, flow, error);
        return 0;
    }
    return error;
}

/* One receive, if all is sent, and one send. 0, WSAEWOULDBLOCK, or the error of the receive. */
static int
hv_flow_step(hv_pair *pair, hv_flow *flow)
{
    if (!hv_flow_is_sending(flow)) {
        int n = recv(flow->from, flow->room, HV_PUMP_ROOM, 0);
        if (n < 0) {
            return hv_last_error();
        }
        hv_flow_received(pair, flow, (size_t)n);
    }
    return hv_flow_is_sending(flow) ? hv_flow_send(pair, flow) : 0;
}

/* A step of both flows; *moved: at least one of them may take another at once. */
static hv_pump_status
hv_pair_step(hv_pair *pair, int *moved)
{
    int i;
    *moved = 0;
    for (i = 0; i < 2; i++) {
        int error = pair->flows[i].ended ? WSAEWOULDBLOCK : hv_flow_step(pair, &pair->flows[i]);
        if (error != 0 && error != WSAEWOULDBLOCK) {
            pair->error = error;
            return HV_PUMP_FAILED;
        }
        *moved |= error == 0;
    }
    return hv_pair_has_ended(pair) ? HV_PUMP_ENDED : HV_PUMP_RUNS;
}

/* What has happened until now is going to be seen by the next attempts: the event is for what comes after. */
static void
hv_pair_clear(const hv_pair *pair, HANDLE event)
{
    WSANETWORKEVENTS ignored;
    int i;
    for (i = 0; i < 2; i++) {
        WSAEnumNetworkEvents(pair->flows[i].from, event, &ignored);
    }
}

/* ms after which a send is tried again, whatever the event says. */
#define HV_PUMP_RETRY 1000

static DWORD
hv_pair_timeout(hv_pair *pair)
{
    int sends = hv_flow_is_sending(&pair->flows[0]) || hv_flow_is_sending(&pair->flows[1]);
    int64_t left = hv_pair_left(pair);
    return left < 0 && !sends ? INFINITE : hv_milliseconds(left, sends ? HV_PUMP_RETRY : INT_MAX);
}

/* Waits until another attempt is worth it. If one is at once, only looks at the order to stop. */
static hv_pump_status
hv_pair_wait(hv_pair *pair, const hv_stop *stop, HANDLE event, int at_once)
{
    HANDLE events[2] = {stop->event, event};
    DWORD woken;
    if (hv_pair_idle_left(pair) == 0) {
        return HV_PUMP_IDLE;
    }
    woken = WaitForMultipleObjects(at_once ? 1 : 2, events, FALSE, at_once ? 0 : hv_pair_timeout(pair));
    if (woken == WAIT_FAILED) {
        pair->error = (int)GetLastError();
        return HV_PUMP_FAILED;
    }
    if (woken == WAIT_OBJECT_0 + 1) {
        hv_pair_clear(pair, event);
    }
    return woken == WAIT_OBJECT_0 ? HV_PUMP_STOPPED : HV_PUMP_RUNS;
}

/* Makes the handles non-blocking, and has the event set by what they wait for. */
static int
hv_pair_select(const hv_pair *pair, HANDLE event, long what)
{
    int i, failed = 0;
    for (i = 0; i < 2; i++) {
        hv_set_mode(pair->flows[i].from, 1);
        failed |= WSAEventSelect(pair->flows[i].from, event, what) != 0;
    }
    return !failed;
}

static hv_pump_status
hv_pump_run(hv_pair *pair, const hv_stop *stop)
{
    HANDLE event = CreateEventW(NULL, TRUE, FALSE, NULL);
    hv_pump_status status = HV_PUMP_RUNS;
    int moved;
    if (event == NULL || !hv_pair_select(pair, event, FD_READ | FD_WRITE | FD_CLOSE)) {
        pair->error = hv_last_error();
        status = HV_PUMP_FAILED;
    }
    while (status == HV_PUMP_RUNS) {
        status = hv_pair_step(pair, &moved);
        if (status == HV_PUMP_RUNS) {
            status = hv_pair_wait(pair, stop, event, moved);
        }
    }
    hv_pair_select(pair, NULL, 0);
    hv_event_free(event);
    return status;
}

#endif
