/* The driver: runs an operation to its end, with the waits that it takes.
 *
 * A method fills in an hv_op and calls drive() with the GIL held and no lock. `status` says what is known already:
 * HV_READY if nothing was tried, else what an attempt has come to. The driver owns the GIL, the gate, the deadline and
 * the signals:
 *
 *   - the gate is entered before the handle is read, and left before the GIL is taken again;
 *   - the GIL is released around everything that may wait, and kept where the operation says `brief`;
 *   - signal handlers run between two attempts, outside the gate: they may close the socket, or fork.
 *
 * It returns HV_DONE, HV_TIMED_OUT, HV_FAILED with op->error, or HV_RAISED with the exception of a signal handler set.
 * For the first three no exception is set; fail() and fail_explained() set it. */
#ifndef SOCK_DRIVER_H
#define SOCK_DRIVER_H

#include "sock_state.h"

#define LOOK_AT_SIGNALS 50000000 /* ns that an operation of many transfers runs before it looks at the signals */

/* busy_poll, or 0 for a while after a spin has lost its core. */
static inline int64_t
busy_poll_of(hv_socket *s)
{
    int64_t busy_poll = hv_cell_get(&s->busy_poll);
    return busy_poll > 0 && hv_now() >= hv_cell_get(&s->no_spin_before) ? busy_poll : 0;
}

/* Transfers that are short and do not wait, with the GIL kept. If the first one would, transfer() is due, and after
 * others HV_AGAIN. */
static hv_status
transfer_briefly(hv_op *op)
{
    hv_status status = hv_try(op);
    if (status == HV_BLOCKED && op->timeout < 0 && !hv_forbids_waiting(op->flags)) {
        return HV_READY;
    }
    while (status == HV_DONE && op->advance != NULL) {
        status = op->advance(op);
        if (status == HV_READY) {
            status = op->brief ? hv_continue(op) : HV_AGAIN;
        } else {
            break;
        }
    }
    return status;
}

/* Before another transfer of many: the timeout covers all of them, and a signal handler must not wait for the last. */
static hv_status
between_transfers(const hv_op *op, int64_t *began)
{
    int64_t now = hv_now();
    if (*began == 0) {
        *began = now;
    }
    if (op->deadline != 0 && now >= op->deadline) {
        return HV_TIMED_OUT;
    }
    return now - *began > LOOK_AT_SIGNALS ? HV_AGAIN : HV_READY;
}

/* All transfers, without the GIL. */
static hv_status
transfer(hv_socket *s, hv_op *op, hv_status status)
{
    int64_t busy_poll = busy_poll_of(s), began = 0; /* read once: what is pending must not be started again */
    int moved = 0;
    do {
        int64_t spin = hv_op_may_spin(op) ? busy_poll : 0;
        if (spin > 0) {
            status = hv_spin(op, spin);
        } else if (status == HV_BLOCKED) {
            status = hv_wait(s, op);
        } else {
            status = moved > 0 ? hv_continue(op) : op->start(op);
        }
        if (status == HV_DONE && op->advance != NULL) {
            status = op->advance(op);
            if (status == HV_READY && ++moved > 1) {
                status = between_transfers(op, &began);
            }
        }
    } while (hv_op_continues(op, status));
    return status;
}

/* One passage through the gate. */
static hv_status
pass(hv_socket *s, hv_op *op, hv_status status)
{
    hv_socket_sync(s);
    if (!hv_gate_enter(&s->gate)) {
        return hv_op_fail(op, HV_ERROR_CLOSED);
    }
    op->handle = s->handle;
    if (op->brief && status == HV_READY) {
        status = transfer_briefly(op);
        if (!hv_op_continues(op, status)) {
            hv_leave(s);
            return status;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    status = transfer(s, op, status);
    hv_leave(s);
    Py_END_ALLOW_THREADS
    return status;
}

static hv_status
drive(hv_socket *s, hv_op *op, hv_status status)
{
    if (hv_op_continues(op, status)) {
        status = pass(s, op, status);
    }
    while (status == HV_INTERRUPTED || status == HV_AGAIN) {
        if (PyErr_CheckSignals() != 0) {
            return HV_RAISED;
        }
        status = pass(s, op, op->late ? hv_expect(op) : HV_READY);
    }
    if (hv_gate_is_closed(&s->gate) && !hv_op_has_result(op, status)) {
        return hv_op_fail(op, HV_ERROR_CLOSED); /* how close() woke it does not matter */
    }
    assert(status != HV_READY && (status != HV_FAILED || op->error != 0));
    return status == HV_BLOCKED ? HV_FAILED : status;
}

/* ---- exceptions ---- */

/* Lets the Python class add notes to the exception that is set. What is raised meanwhile, as by a signal
 * handler, comes instead of it, and has it as its context. */
static void
explain(PyObject *self, const char *operation)
{
    PyObject *type, *value, *traceback, *result, *newer_type, *newer, *newer_traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    result = PyObject_CallMethod(self, "_explain", "Os", value, operation);
    if (result != NULL) {
        Py_DECREF(result);
        PyErr_Restore(type, value, traceback);
        return;
    }
    PyErr_Fetch(&newer_type, &newer, &newer_traceback);
    PyErr_NormalizeException(&newer_type, &newer, &newer_traceback);
    PyException_SetContext(newer, value); /* which takes the reference */
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    PyErr_Restore(newer_type, newer, newer_traceback);
}

/* Sets the exception for an operation that did not end in HV_DONE. */
static PyObject *
fail(const hv_op *op, hv_status status)
{
    if (status == HV_TIMED_OUT) {
        PyErr_SetString(PyExc_TimeoutError, "timed out");
    } else if (status == HV_FAILED) {
        raise_os_error(op->error);
    }
    return NULL;
}

/* The same for the data path; "not yet" is part of normal work and stays as cheap as it is. */
static PyObject *
fail_explained(PyObject *self, const hv_op *op, hv_status status, const char *operation)
{
    fail(op, status);
    if (status != HV_RAISED && !(status == HV_FAILED && hv_error_is_not_yet(op->error))) {
        explain(self, operation);
    }
    return NULL;
}

#endif
