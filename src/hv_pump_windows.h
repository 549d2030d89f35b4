/* The pump's loop on Windows: one overlapped call for each direction, waited for together with the
 * order to stop. */
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
    if (stop->event != NULL) {
        CloseHandle(stop->event);
    }
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

/* A flow's one call. */
typedef struct {
    OVERLAPPED overlapped;
    HANDLE event;
    int pending;
    int sends;
    hv_handle handle;
} hv_pump_call;

/* What came of a call, n bytes or an error. 0, or the error of a receive. */
static int
hv_flow_finish(hv_pair *pair, hv_flow *flow, hv_pump_call *call, int error, DWORD n)
{
    call->pending = 0;
    if (error == 0 && call->sends) {
        hv_flow_sent(pair, flow, n);
    } else if (error == 0) {
        hv_flow_received(pair, flow, n);
    } else if (call->sends) {
        hv_flow_is_refused(pair, flow, error);
    } else {
        return error;
    }
    return 0;
}

/* Starts the next call of a flow. One that is done at once sets its event all the same. The low bit keeps
 * the completion out of a completion port, as in hv_overlap(). */
static int
hv_flow_start(hv_pair *pair, hv_flow *flow, hv_pump_call *call)
{
    WSABUF buffer;
    DWORD n = 0, flags = 0;
    int result, error;
    memset(&call->overlapped, 0, sizeof call->overlapped);
    call->overlapped.hEvent = (HANDLE)((ULONG_PTR)call->event | 1);
    call->sends = hv_flow_is_sending(flow);
    call->handle = call->sends ? flow->to : flow->from;
    if (call->sends) {
        hv_iovec_set(&buffer, flow->room + flow->start, flow->end - flow->start);
        result = WSASend(call->handle, &buffer, 1, &n, 0, &call->overlapped, NULL);
    } else {
        hv_iovec_set(&buffer, flow->room, HV_PUMP_ROOM);
        result = WSARecv(call->handle, &buffer, 1, &n, &flags, &call->overlapped, NULL);
    }
    error = result == 0 ? 0 : hv_last_error();
    if (error == 0 || error == WSA_IO_PENDING) {
        call->pending = 1;
        return 0;
    }
    return hv_flow_finish(pair, flow, call, error, 0);
}

static int
hv_flow_collect(hv_pair *pair, hv_flow *flow, hv_pump_call *call)
{
    DWORD n = 0, flags = 0;
    int error = 0;
    if (!WSAGetOverlappedResult(call->handle, &call->overlapped, &n, FALSE, &flags)) {
        error = hv_last_error();
        if (error == WSA_IO_INCOMPLETE) {
            return 0;
        }
    }
    return hv_flow_finish(pair, flow, call, error, n);
}

/* The kernel writes into the room and the OVERLAPPED until it has let go of them. */
static void
hv_pump_cancel(hv_pump_call calls[2])
{
    int i;
    for (i = 0; i < 2; i++) {
        if (calls[i].pending) {
            DWORD n, flags;
            CancelIoEx((HANDLE)calls[i].handle, &calls[i].overlapped);
            WSAGetOverlappedResult(calls[i].handle, &calls[i].overlapped, &n, TRUE, &flags);
        }
    }
}

static hv_pump_status
hv_pump_wait(hv_pair *pair, const hv_stop *stop, hv_pump_call calls[2])
{
    HANDLE events[3] = {stop->event, NULL, NULL};
    DWORD count = 1, woken, timeout = INFINITE;
    int64_t left = hv_pair_idle_left(pair);
    int i;
    if (left == 0) {
        return HV_PUMP_IDLE;
    }
    if (left > 0) {
        left = left / 1000000 + 1;
        timeout = left < INT_MAX ? (DWORD)left : INT_MAX;
    }
    for (i = 0; i < 2; i++) {
        if (calls[i].pending) {
            events[count++] = calls[i].event;
        }
    }
    woken = WaitForMultipleObjects(count, events, FALSE, timeout);
    if (woken == WAIT_FAILED) {
        pair->error = (int)GetLastError();
        return HV_PUMP_FAILED;
    }
    return woken == WAIT_OBJECT_0 ? HV_PUMP_STOPPED : HV_PUMP_RUNS;
}

static hv_pump_status
hv_pump_step(hv_pair *pair, const hv_stop *stop, hv_pump_call calls[2])
{
    hv_pump_status status;
    int i;
    for (i = 0; i < 2; i++) {
        hv_flow *flow = &pair->flows[i];
        int error = 0;
        while (!flow->ended && !calls[i].pending && error == 0) {
            error = hv_flow_start(pair, flow, &calls[i]);
        }
        if (error != 0) {
            pair->error = error;
            return HV_PUMP_FAILED;
        }
    }
    if (hv_pair_has_ended(pair)) {
        return HV_PUMP_ENDED;
    }
    status = hv_pump_wait(pair, stop, calls);
    for (i = 0; i < 2 && status == HV_PUMP_RUNS; i++) {
        int error = calls[i].pending ? hv_flow_collect(pair, &pair->flows[i], &calls[i]) : 0;
        if (error != 0) {
            pair->error = error;
            status = HV_PUMP_FAILED;
        }
    }
    return status;
}

static hv_pump_status
hv_pump_run(hv_pair *pair, const hv_stop *stop)
{
    hv_pump_call calls[2];
    hv_pump_status status = HV_PUMP_RUNS;
    memset(calls, 0, sizeof calls);
    calls[0].event = CreateEventW(NULL, TRUE, FALSE, NULL);
    calls[1].event = CreateEventW(NULL, TRUE, FALSE, NULL);
    if (calls[0].event == NULL || calls[1].event == NULL) {
        pair->error = (int)GetLastError();
        status = HV_PUMP_FAILED;
    }
    while (status == HV_PUMP_RUNS) {
        status = hv_pump_step(pair, stop, calls);
    }
    hv_pump_cancel(calls);
    hv_event_free(calls[0].event);
    hv_event_free(calls[1].event);
    return status;
}

#endif
