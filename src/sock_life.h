/* The life of a socket object: __init__, its timeout and mode, detach, close, its end. */
#ifndef SOCK_LIFE_H
#define SOCK_LIFE_H

#include "sock_driver.h"
#include "sock_messages.h"

#define BUSY_POLL_MAX 1000000 /* microseconds: while it lasts, Ctrl-C and close() wait */

/* The base's timeout; < 0: None, or an exception is set. */
static double
get_timeout(PyObject *self)
{
    PyObject *timeout = get_attribute(module_of(self)->timeout, self);
    double seconds = timeout == NULL || timeout == Py_None ? -1.0 : PyFloat_AsDouble(timeout);
    Py_XDECREF(timeout);
    return users_timeout(seconds);
}

/* Takes over the base's timeout. */
static int
adopt_timeout(PyObject *self)
{
    double seconds = get_timeout(self);
    if (seconds < 0.0 && PyErr_Occurred()) {
        return 0;
    }
    /* A century at most, so that a deadline cannot overflow; a nanosecond at least. */
    seconds = seconds > 3e9 ? 3e9 : seconds;
    hv_cell_set(&state_of(self)->timeout, seconds < 0.0 ? -1 : seconds == 0.0 ? 0 : (int64_t)(seconds * 1e9) + 1);
    return 1;
}

/* `value` is None or a number of CPython's own: no code of Python runs here. */
static PyObject *
set_timeout(PyObject *self, PyObject *value)
{
    PyObject *told = base_timeout(value), *result = NULL;
    if (told != NULL) {
        result = PyObject_CallFunctionObjArgs(module_of(self)->settimeout, self, told, NULL);
    }
    Py_XDECREF(told);
    if (result == NULL) {
        return NULL;
    }
    hv_cell_set(&state_of(self)->nonblocking, 1); /* before another thread sees the timeout; of no meaning on POSIX */
    if (!adopt_timeout(self)) {
        Py_CLEAR(result);
    }
    return result;
}

/* A handle that cannot be used here stays its owner's. */
static int
check_handle(PyObject *self)
{
    PyObject *handle;
    if (hv_handle_is_usable(state_of(self)->handle)) {
        return 1;
    }
    handle = PyObject_CallFunctionObjArgs(module_of(self)->detach, self, NULL);
    if (handle != NULL) {
        PyErr_SetString(PyExc_ValueError, "the handle was made without WSA_FLAG_OVERLAPPED");
    }
    Py_XDECREF(handle);
    return 0;
}

/* Sets what is called after the handle is closed; returns what was to be called until now, or NULL. */
static PyObject *
swap_after_close(PyObject *self, PyObject *call)
{
    sock_state *state = whole_state_of(self);
    PyObject *was;
    hv_lock_acquire(&state->socket.lock);
    was = state->after_close;
    state->after_close = call;
    hv_lock_release(&state->socket.lock);
    return was;
}

/* Takes over what the base has just set up: handle, family and timeout. */
static int
adopt(PyObject *self, module_state *module)
{
    hv_socket *s = state_of(self);
    PyObject *handle = PyObject_CallFunctionObjArgs(module->fileno, self, NULL);
    PyObject *family = get_attribute(module->family, self);
    if (handle != NULL && family != NULL) {
        s->handle = (hv_handle)PyLong_AsLongLong(handle);
        s->family = (int)PyLong_AsLong(family);
    }
    Py_XDECREF(handle);
    Py_XDECREF(family);
    if (PyErr_Occurred() || !adopt_timeout(self) || !check_handle(self)) {
        return 0;
    }
    if (whole_state_of(self)->module == NULL) { /* later, other threads may be using what this sets up */
        hv_socket_init(s);
        whole_state_of(self)->module = module;
    }
    Py_XDECREF(swap_after_close(self, NULL));
    hv_cell_set(&whole_state_of(self)->options, 0);
    inbox_clear(&s->in);
    outbox_clear(&s->out);
    hv_cell_set(&s->send_lost, 0);
    hv_cell_set(&s->nonblocking, hv_cell_get(&s->timeout) >= 0);
    hv_gate_open(&s->gate);
    return 1;
}

/* Whether the arguments name a handle to take over: __init__(family, type, proto, fileno). */
static int
is_adopting(PyObject *args, PyObject *kwargs)
{
    PyObject *given = PyTuple_Size(args) > 3 ? PyTuple_GetItem(args, 3)
                      : kwargs != NULL       ? PyDict_GetItemString(kwargs, "fileno")
                                             : NULL;
    return given != NULL && given != Py_None;
}

/* A new handle of the socket's own gets its mode, where the system's is not the one that is wanted. */
static int
own_mode(PyObject *self)
{
    PyObject *done;
    if (!makes_mode() || hv_cell_get(&state_of(self)->timeout) >= 0) {
        return 1;
    }
    done = set_timeout(self, Py_None);
    Py_XDECREF(done);
    return done != NULL;
}

static int
sock_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    hv_socket *s = state_of(self);
    module_state *module = module_of(self);
    PyObject *selfs, *all, *result = NULL;
    if (whole_state_of(self)->module != NULL) {
        hv_socket_sync(s);
    }
    if (hv_gate_is_open(&s->gate) || !hv_gate_is_empty(&s->gate) || hv_message_is_on(s)) {
        PyErr_SetString(PyExc_RuntimeError, "the socket is open already");
        return -1;
    }
    selfs = PyTuple_Pack(1, self);
    all = selfs == NULL ? NULL : PySequence_Concat(selfs, args);
    if (all != NULL) {
        result = PyObject_Call(module->init, all, kwargs);
    }
    Py_XDECREF(selfs);
    Py_XDECREF(all);
    if (result == NULL) {
        return -1;
    }
    Py_DECREF(result);
    return adopt(self, module) && (is_adopting(args, kwargs) || own_mode(self)) ? 0 : -1;
}

static PyObject *
sock_gettimeout(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *timeout = get_attribute(module_of(self)->timeout, self);
    if (timeout != NULL && timeout != Py_None && users_timeout(PyFloat_AsDouble(timeout)) < 0.0) {
        Py_DECREF(timeout);
        return Py_NewRef(Py_None);
    }
    return timeout;
}

static PyObject *
sock_get_timeout(PyObject *self, void *Py_UNUSED(closure))
{
    return sock_gettimeout(self, NULL);
}

/* Socket's own __init__ where all arguments are given. What socket.socket.__init__ does then is done here: its frame in
 * Python would be a tenth of what accepting costs. */
static int
init_plain(PyObject *made, PyObject *arguments)
{
    module_state *module = module_of(made);
    PyObject *zero, *no;
    int is_done;
    if (module->io_refs == NULL) {
        return sock_init(made, arguments, NULL) == 0;
    }
    zero = PyLong_FromLong(0);
    no = PyBool_FromLong(0);
    is_done = zero != NULL && module->root_init(made, arguments, NULL) == 0 &&
              set_attribute(module->io_refs, made, zero) == 0 && set_attribute(module->closed, made, no) == 0 &&
              adopt(made, module);
    Py_XDECREF(zero);
    Py_XDECREF(no);
    return is_done;
}

static PyObject *
sock_settimeout(PyObject *self, PyObject *value)
{
    PyObject *number, *result;
    if (value == Py_None || PyFloat_CheckExact(value)) {
        return set_timeout(self, value);
    }
    number = PyFloat_Check(value) ? PyFloat_FromDouble(PyFloat_AsDouble(value)) : PyNumber_Index(value);
    if (number == NULL) {
        return NULL;
    }
    result = set_timeout(self, number);
    Py_DECREF(number);
    return result;
}

static PyObject *
sock_setblocking(PyObject *self, PyObject *flag)
{
    PyObject *zero, *result;
    int on;
    if (Py_Version >= 0x030c0000) {
        on = PyObject_IsTrue(flag);
    } else { /* an integer is asked for there */
        long number = PyLong_AsLong(flag);
        on = number == -1 && PyErr_Occurred() ? -1 : number != 0;
    }
    if (on != 0) {
        return on < 0 ? NULL : set_timeout(self, Py_None);
    }
    zero = PyLong_FromLong(0);
    result = zero == NULL ? NULL : set_timeout(self, zero);
    Py_XDECREF(zero);
    return result;
}

static PyObject *
sock_detach(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    hv_socket *s = state_of(self);
    hv_socket_sync(s);
    if (hv_gate_shut(&s->gate, HV_GATE_DETACHED)) {
        PyObject *handle;
        hv_hand_over(s);
        forget_messages(s);
        Py_XDECREF(swap_after_close(self, NULL));
        handle = PyObject_CallMethod(base_of(self), "detach", "O", self);
        hv_gate_leave(&s->gate); /* until here, close() leaves the handle alone */
        return handle;
    }
    if (hv_gate_is_ending(&s->gate)) {
        return PyLong_FromLong(-1); /* what the base says of a closed socket */
    }
    return PyObject_CallMethod(base_of(self), "detach", "O", self);
}

static PyObject *
sock_after_close(PyObject *self, PyObject *call)
{
    hv_socket *s = state_of(self);
    if (!hv_gate_is_open(&s->gate)) {
        return raise_os_error(HV_ERROR_CLOSED);
    }
    hv_socket_sync(s);
    Py_XDECREF(swap_after_close(self, call == Py_None ? NULL : Py_NewRef(call)));
    return Py_NewRef(Py_None); /* not Py_RETURN_NONE */
}

/* False with an exception set. */
static int
call_after_close(PyObject *self)
{
    PyObject *call = swap_after_close(self, NULL);
    PyObject *result = call == NULL ? Py_NewRef(Py_None) : PyObject_CallNoArgs(call);
    Py_XDECREF(call);
    Py_XDECREF(result);
    return result != NULL;
}

/* The one place where the handle of an open socket goes away: socket.socket.close() calls it when the
 * last file object is closed too. The base gives its handle up first; then every call inside is woken,
 * and the last one to leave releases the handle. */
static PyObject *
sock_real_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    hv_socket *s = state_of(self);
    PyObject *given_up;
    hv_handle handle;
    int error = 0;
    hv_socket_sync(s);
    if (!hv_gate_shut(&s->gate, 0)) {
        return hv_gate_is_ending(&s->gate) ? Py_NewRef(Py_None)
                                           : PyObject_CallMethod(base_of(self), "_real_close", "O", self);
    }
    handle = s->handle;
    given_up = PyObject_CallFunctionObjArgs(module_of(self)->detach, self, NULL);
    if (given_up == NULL) { /* no memory, or too deep a recursion: the base would close it once more */
        hv_gate_reopen(&s->gate);
        return NULL;
    }
    Py_DECREF(given_up);
    forget_messages(s);
    Py_BEGIN_ALLOW_THREADS
    hv_end_calls(s);
    if (hv_gate_leave(&s->gate) == 0) {
        error = hv_close(handle);
    }
    Py_END_ALLOW_THREADS
    if (!call_after_close(self)) {
        return NULL;
    }
    if (error != 0 && !hv_error_is_reset(error)) {
        return raise_os_error(error);
    }
    return Py_NewRef(Py_None); /* not Py_RETURN_NONE */
}

/* The base's finalizer warns of a socket that is still open, and closes it. A warning filter may resurrect the object:
 * the gate is shut, so that it cannot use a handle whose number means another file by then. */
static void
sock_finalize(PyObject *self)
{
    hv_socket *s = state_of(self);
    destructor finalize = (destructor)PyType_GetSlot((PyTypeObject *)base_of(self), Py_tp_finalize);
    finalize(self);
    if (hv_gate_shut(&s->gate, HV_GATE_DETACHED)) {
        hv_gate_leave(&s->gate);
    }
    inbox_clear(&s->in);
    outbox_clear(&s->out);
    Py_CLEAR(whole_state_of(self)->after_close);
}

/* The collector finds only this type's own reference to another object here: what socket.socket keeps in its slots are
 * plain numbers. */
static int
sock_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(whole_state_of(self)->after_close);
    return 0;
}

static int
sock_clear(PyObject *self)
{
    Py_CLEAR(whole_state_of(self)->after_close);
    return 0;
}

static PyObject *
sock_get_family(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(state_of(self)->family);
}

static PyObject *
sock_get_options(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(hv_cell_get(&whole_state_of(self)->options));
}

static int
sock_set_options(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    long options;
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_options cannot be deleted");
        return -1;
    }
    options = PyLong_AsLong(value);
    if (options == -1 && PyErr_Occurred()) {
        return -1;
    }
    hv_cell_set(&whole_state_of(self)->options, options);
    return 0;
}

static PyObject *
sock_get_busy_poll(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(hv_cell_get(&state_of(self)->busy_poll) / 1000);
}

static int
sock_set_busy_poll(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    Py_ssize_t microseconds;
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "busy_poll cannot be deleted");
        return -1;
    }
    microseconds = PyNumber_AsSsize_t(value, PyExc_OverflowError);
    if (microseconds == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (microseconds < 0 || microseconds > BUSY_POLL_MAX) {
        PyErr_Format(PyExc_ValueError, "busy_poll is 0 to %d microseconds, not %zd", BUSY_POLL_MAX, microseconds);
        return -1;
    }
    hv_cell_set(&state_of(self)->busy_poll, (int64_t)microseconds * 1000);
    return 0;
}

#endif
