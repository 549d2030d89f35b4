/* The methods that take or return addresses, as the family's own: 36 bytes of SOCKADDR_HV, (cid, port), or a path. */
#ifndef SOCK_ADDRESSES_H
#define SOCK_ADDRESSES_H

#include "sock_arguments.h"
#include "sock_life.h"

static int
parse_hyperv(PyObject *object, hv_sockaddr *address)
{
    Py_buffer view;
    const char *wrong;
    if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) != 0) {
        return 0;
    }
    wrong = hv_sockaddr_set_hyperv(address, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    if (wrong != NULL) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return 0;
    }
    return 1;
}

static int
as_uint32(PyObject *object, uint32_t *value)
{
    unsigned long long wide = PyLong_AsUnsignedLongLong(object);
    if (PyErr_Occurred()) {
        return 0;
    }
    if (wide > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a CID and a port have 32 bits");
        return 0;
    }
    *value = (uint32_t)wide;
    return 1;
}

static int
parse_vsock(PyObject *object, hv_sockaddr *address)
{
    uint32_t cid, port;
    if (!PyTuple_Check(object) || PyTuple_Size(object) != 2) {
        PyErr_SetString(PyExc_TypeError, "an AF_VSOCK address is a tuple (cid, port)");
        return 0;
    }
    if (!as_uint32(PyTuple_GetItem(object, 0), &cid) || !as_uint32(PyTuple_GetItem(object, 1), &port)) {
        return 0;
    }
    hv_sockaddr_set_vsock(address, cid, port);
    return 1;
}

static int
parse_unix(PyObject *object, hv_sockaddr *address)
{
    Py_buffer view;
    PyObject *path = PyUnicode_Check(object) ? PyUnicode_EncodeFSDefault(object) : Py_NewRef(object);
    int fits;
    if (path == NULL || PyObject_GetBuffer(path, &view, PyBUF_SIMPLE) != 0) {
        Py_XDECREF(path);
        return 0;
    }
    fits = hv_sockaddr_set_unix(address, view.buf, (size_t)view.len) == 0;
    PyBuffer_Release(&view);
    Py_DECREF(path);
    if (!fits) {
        PyErr_SetString(PyExc_OSError, "AF_UNIX path too long");
    }
    return fits;
}

/* A Python address of the socket's family; false with an exception set. */
static int
parse_address(const hv_socket *s, PyObject *object, hv_sockaddr *address)
{
    switch (hv_address_kind_of(s->family)) {
    case HV_ADDRESS_HYPERV:
        return parse_hyperv(object, address);
    case HV_ADDRESS_VSOCK:
        return parse_vsock(object, address);
    case HV_ADDRESS_UNIX:
        return parse_unix(object, address);
    default:
        PyErr_SetString(PyExc_SystemError, "no address of ours");
        return 0;
    }
}

static PyObject *
format_hyperv(const hv_sockaddr *address)
{
    if (!hv_sockaddr_is_hyperv(address)) {
        PyErr_Format(PyExc_OSError, "the system returned %d bytes of family %d for an AF_HYPERV address",
                     (int)address->length, (int)address->u.any.sa_family);
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)&address->u.hyperv, sizeof address->u.hyperv);
}

static PyObject *
format_vsock(const hv_sockaddr *address)
{
    uint32_t cid, port;
    hv_sockaddr_get_vsock(address, &cid, &port);
    return Py_BuildValue("II", cid, port);
}

/* Abstract names are bytes, others text, as in CPython. */
static PyObject *
format_unix(const hv_sockaddr *address)
{
    size_t length;
    const char *path = hv_sockaddr_get_unix(address, &length);
    return length > 0 && path[0] == 0 ? PyBytes_FromStringAndSize(path, (Py_ssize_t)length)
                                      : PyUnicode_DecodeFSDefaultAndSize(path, (Py_ssize_t)length);
}

/* What the system said, as a Python object. */
static PyObject *
format_address(const hv_socket *s, const hv_sockaddr *address)
{
    switch (hv_address_kind_of(s->family)) {
    case HV_ADDRESS_HYPERV:
        return format_hyperv(address);
    case HV_ADDRESS_VSOCK:
        return format_vsock(address);
    case HV_ADDRESS_UNIX:
        return format_unix(address);
    default:
        PyErr_SetString(PyExc_SystemError, "no address of ours");
        return NULL;
    }
}

/* Addresses of other families stay socket.socket's business. */
static inline int
is_foreign(const hv_socket *s)
{
    return hv_address_kind_of(s->family) == HV_ADDRESS_OTHER;
}

static hv_status
bind_start(hv_op *op)
{
    return bind(op->handle, &op->address->u.any, op->address->length) == 0 ? HV_DONE : hv_failed_now(op);
}

static hv_status
sockname_start(hv_op *op)
{
    hv_sockaddr_clear(op->address);
    return getsockname(op->handle, &op->address->u.any, &op->address->length) == 0 ? HV_DONE : hv_failed_now(op);
}

static hv_status
peername_start(hv_op *op)
{
    hv_sockaddr_clear(op->address);
    return getpeername(op->handle, &op->address->u.any, &op->address->length) == 0 ? HV_DONE : hv_failed_now(op);
}

static hv_status
drive_address(hv_socket *s, hv_op *op, hv_status (*start)(hv_op *op), hv_sockaddr *address)
{
    hv_op_init(op, s, start);
    op->address = address;
    return drive(s, op, HV_READY);
}

static PyObject *
sock_bind(PyObject *self, PyObject *address)
{
    hv_socket *s = state_of(self);
    hv_sockaddr to;
    hv_op op;
    hv_status status;
    if (is_foreign(s)) {
        return PyObject_CallMethod(base_of(self), "bind", "OO", self, address);
    }
    if (!parse_address(s, address, &to)) {
        return NULL;
    }
    status = drive_address(s, &op, bind_start, &to);
    return status == HV_DONE ? Py_NewRef(Py_None) : fail(&op, status);
}

static hv_status
connect_to(hv_socket *s, hv_op *op, hv_sockaddr *to)
{
    hv_op_init(op, s, hv_connect_start);
    op->writes = 1;
    op->waits = op->timeout != 0;
    op->address = to;
    return drive(s, op, HV_READY);
}

static PyObject *
sock_connect(PyObject *self, PyObject *address)
{
    hv_socket *s = state_of(self);
    hv_sockaddr to;
    hv_op op;
    hv_status status;
    if (is_foreign(s)) {
        return PyObject_CallMethod(base_of(self), "connect", "OO", self, address);
    }
    if (!parse_address(s, address, &to)) {
        return NULL;
    }
    status = connect_to(s, &op, &to);
    return status == HV_DONE ? Py_NewRef(Py_None) : fail(&op, status);
}

static PyObject *
sock_connect_ex(PyObject *self, PyObject *address)
{
    hv_socket *s = state_of(self);
    hv_sockaddr to;
    hv_op op;
    hv_status status;
    if (is_foreign(s)) {
        return PyObject_CallMethod(base_of(self), "connect_ex", "OO", self, address);
    }
    if (!parse_address(s, address, &to)) {
        return NULL;
    }
    status = connect_to(s, &op, &to);
    if (status == HV_RAISED) {
        return NULL;
    }
    return PyLong_FromLong(status == HV_DONE ? 0 : status == HV_TIMED_OUT ? HV_ERROR_WOULD_BLOCK : op.error);
}

static PyObject *
name_of(PyObject *self, const char *method, hv_status (*start)(hv_op *op))
{
    hv_socket *s = state_of(self);
    hv_sockaddr address;
    hv_op op;
    hv_status status;
    if (is_foreign(s)) {
        return PyObject_CallMethod(base_of(self), method, "O", self);
    }
    status = drive_address(s, &op, start, &address);
    return status == HV_DONE ? format_address(s, &address) : fail(&op, status);
}

static PyObject *
sock_getsockname(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return name_of(self, "getsockname", sockname_start);
}

static PyObject *
sock_getpeername(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return name_of(self, "getpeername", peername_start);
}

/* Whether the object has, or has had, the handle. */
static int
has_taken(PyObject *made, hv_handle handle)
{
    return whole_state_of(made)->module != NULL && state_of(made)->handle == handle;
}

/* Ends an object that does not become the accepted socket; one that was whole for a while may have given its handle up
 * since, and knows. True if the handle is still the caller's. */
static int
abandon(PyObject *made, hv_handle handle)
{
    int was_taken = has_taken(made, handle);
    PyObject *error_type, *error, *traceback, *result;
    PyErr_Fetch(&error_type, &error, &traceback);
    if (whole_state_of(made)->module != NULL) {
        result = PyObject_CallMethod(made, "close", NULL);
    } else {
        result = PyObject_CallFunctionObjArgs(module_of(made)->detach, made, NULL);
    }
    Py_XDECREF(result);
    Py_DECREF(made);
    PyErr_Restore(error_type, error, traceback);
    return !was_taken;
}

/* An object of a class that needs no other __init__ than Socket's. */
static PyObject *
make_plain(PyTypeObject *type, PyObject *arguments, hv_handle handle)
{
    PyObject *none = PyTuple_New(0);
    PyObject *made = none == NULL ? NULL : ((newfunc)PyType_GetSlot(type, Py_tp_new))(type, none, NULL);
    Py_XDECREF(none);
    if (made != NULL && !init_plain(made, arguments)) {
        abandon(made, handle);
        return NULL;
    }
    return made;
}

/* False: the class has made no object that has the handle. */
static int
construct(PyTypeObject *type, PyObject *kind, PyObject *named, hv_handle handle, PyObject **made)
{
    PyObject *object = ((newfunc)PyType_GetSlot(type, Py_tp_new))(type, kind, named);
    if (object != NULL && !PyObject_TypeCheck(object, type)) {
        Py_CLEAR(object);
    }
    *made = object;
    return object != NULL && ((initproc)PyType_GetSlot(type, Py_tp_init))(object, kind, named) == 0 &&
           has_taken(object, handle);
}

/* An object by the constructor of its class, called as dup() calls it. NULL without an exception: it does not take
 * these arguments, or not the handle. With one, *handle is HV_NO_HANDLE if the object has had it. */
static PyObject *
make_by_class(PyTypeObject *type, PyObject *arguments, hv_handle *handle)
{
    PyObject *kind = PyTuple_GetSlice(arguments, 0, 3), *made = NULL;
    PyObject *named = Py_BuildValue("{sO}", "fileno", PyTuple_GetItem(arguments, 3));
    int is_made = kind != NULL && named != NULL && construct(type, kind, named, *handle, &made);
    int is_other = PyErr_ExceptionMatches(PyExc_TypeError);
    Py_XDECREF(kind);
    Py_XDECREF(named);
    if (is_made) {
        return made;
    }
    if (made != NULL && !abandon(made, *handle)) {
        *handle = HV_NO_HANDLE;
    } else if (is_other) {
        PyErr_Clear();
    }
    return NULL;
}

/* A new socket around `handle`, which it owns from then on; on failure the handle is closed. It is of self's class, or,
 * if that has another constructor, of the class `plain`. */
static PyObject *
wrap_accepted(PyObject *self, PyTypeObject *plain, hv_handle handle)
{
    module_state *module = module_of(self);
    PyObject *kind = get_attribute(module->kind, self), *proto = get_attribute(module->proto, self);
    PyObject *arguments = NULL, *made = NULL;
    if (kind != NULL && proto != NULL) {
        arguments = Py_BuildValue("iOOL", state_of(self)->family, kind, proto, (long long)handle);
    }
    if (arguments != NULL && Py_TYPE(self) != plain) {
        made = make_by_class(Py_TYPE(self), arguments, &handle);
    }
    if (made == NULL && !PyErr_Occurred()) {
        made = make_plain(plain, arguments, handle);
    }
    Py_XDECREF(kind);
    Py_XDECREF(proto);
    Py_XDECREF(arguments);
    if (made != NULL && !own_mode(made)) {
        abandon(made, handle); /* with the handle */
        return NULL;
    }
    if (made != NULL) {
        hv_cell_set(&state_of(made)->busy_poll, hv_cell_get(&state_of(self)->busy_poll));
        hv_cell_set(&whole_state_of(made)->options, hv_cell_get(&whole_state_of(self)->options));
    } else if (handle != HV_NO_HANDLE) {
        hv_close(handle);
    }
    return made;
}

/* socket.socket's accept makes a socket.socket: its handle moves into one of our class. */
static PyObject *
accept_foreign(PyObject *self, PyTypeObject *plain)
{
    PyObject *pair = PyObject_CallMethod(base_of(self), "accept", "O", self);
    PyObject *handle, *made = NULL, *result = NULL;
    if (pair == NULL) {
        return NULL;
    }
    handle = PyObject_CallMethod(PyTuple_GetItem(pair, 0), "detach", NULL);
    if (handle != NULL) {
        made = wrap_accepted(self, plain, (hv_handle)PyLong_AsLongLong(handle));
        Py_DECREF(handle);
    }
    if (made != NULL) {
        result = PyTuple_Pack(2, made, PyTuple_GetItem(pair, 1));
        Py_DECREF(made);
    }
    Py_DECREF(pair);
    return result;
}

static PyObject *
accept_as(PyObject *self, PyTypeObject *plain)
{
    hv_socket *s = state_of(self);
    hv_sockaddr from;
    PyObject *address, *made, *result = NULL;
    hv_op op;
    hv_status status;
    if (is_foreign(s)) {
        return accept_foreign(self, plain);
    }
    hv_op_init(&op, s, hv_accept_start);
    op.waits = op.timeout != 0;
    op.address = &from;
    status = drive(s, &op, HV_READY);
    if (status != HV_DONE) {
        return fail(&op, status);
    }
    made = wrap_accepted(self, plain, op.accepted);
    if (made == NULL) {
        return NULL;
    }
    address = format_address(s, &from);
    if (address != NULL) {
        result = PyTuple_Pack(2, made, address);
        Py_DECREF(address);
    }
    Py_DECREF(made);
    return result;
}

static PyObject *
sock_accept(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return accept_as(self, our_base_of(Py_TYPE(self)));
}

static PyObject *
sock_accept_plain(PyObject *self, PyObject *plain)
{
    if (!PyType_Check(plain) || !PyType_IsSubtype((PyTypeObject *)plain, our_base_of(Py_TYPE(self)))) {
        PyErr_SetString(PyExc_TypeError, "a subclass of Socket is needed");
        return NULL;
    }
    return accept_as(self, (PyTypeObject *)plain);
}

#endif
