/* hvsock._hvsock: a socket type whose data path, waiting, closing and Hyper-V addresses are its own,
 * and whose everything else is socket.socket's. Layers of a call: arguments and objects (sock_*),
 * the driver that owns the GIL, the gate and signals (drive), one attempt on the system (hv_*). */
#include "hv_abi.h"

#include "hv_message.h"
#include "hv_pump.h"

#define BUSY_POLL_MAX 1000000 /* microseconds: while it lasts, Ctrl-C and close() wait */
#define RECV_ON_STACK 8192    /* recv() up to this size allocates once, for what arrived */

/* What is used of socket.socket (`base`) and of its own base in C, looked up once for an interpreter. */
typedef struct {
    PyObject *base;
    PyObject *init;
    PyObject *fileno, *gettimeout, *detach;
    PyObject *family, *kind, *proto; /* plain numbers, where the attributes of `base` are enums */
} module_state;

typedef struct {
    hv_socket socket;
    module_state *module; /* NULL before __init__ */
} sock_state;

/* The state lies behind the instance data of socket.socket, whose size only the interpreter knows. */
static Py_ssize_t state_offset;

static int sock_init(PyObject *self, PyObject *args, PyObject *kwargs);

static inline sock_state *
whole_state_of(PyObject *self)
{
    return (sock_state *)((char *)self + state_offset);
}

static inline hv_socket *
state_of(PyObject *self)
{
    return &whole_state_of(self)->socket;
}

/* The C type of this module, found as the last one that is initialised by sock_init; NULL if none is. */
static PyTypeObject *
our_base_of(PyTypeObject *type)
{
    PyTypeObject *found = NULL;
    for (; type != NULL; type = (PyTypeObject *)PyType_GetSlot(type, Py_tp_base)) {
        if (PyType_GetSlot(type, Py_tp_init) == (void *)sock_init) {
            found = type;
        }
    }
    return found;
}

static inline module_state *
module_of(PyObject *self)
{
    module_state *module = whole_state_of(self)->module;
    return module != NULL ? module : PyType_GetModuleState(our_base_of(Py_TYPE(self)));
}

static inline PyObject *
base_of(PyObject *self)
{
    return module_of(self)->base;
}

/* An attribute of an object by its descriptor. */
static PyObject *
get_attribute(PyObject *descriptor, PyObject *self)
{
    descrgetfunc get = (descrgetfunc)PyType_GetSlot(Py_TYPE(descriptor), Py_tp_descr_get);
    return get(descriptor, self, (PyObject *)Py_TYPE(self));
}

/* ---- the driver ---- */

/* Transfers that are over at once, with the GIL kept. HV_INTERRUPTED: some are done, the next one would
 * sleep, and a signal that came meanwhile would not wake it. */
static inline hv_status
transfer_briefly(hv_op *op)
{
    hv_status status = hv_brief_start(op);
    while (status == HV_DONE && op->advance != NULL) {
        status = op->advance(op);
        if (status == HV_DONE) {
            break;
        }
        status = op->brief ? hv_brief_start(op) : status;
        if (hv_op_goes_on(op, status)) {
            return HV_INTERRUPTED;
        }
    }
    return status;
}

/* The rest of it, without the GIL. */
static hv_status
transfer(hv_socket *s, hv_op *op, hv_status status)
{
    int64_t busy_poll = hv_busy_poll(s); /* once: on Windows what is pending must not be started again */
    int moved = 0;
    do {
        int64_t spin = hv_op_may_spin(op) ? busy_poll : 0;
        if (spin > 0) {
            status = hv_spin(op, spin);
        } else if (status == HV_BLOCKED) {
            status = hv_wait(s, op);
        } else {
            status = moved ? hv_go_on(op) : op->start(op);
        }
        if (status == HV_DONE && op->advance != NULL) {
            status = op->advance(op);
            moved = 1;
        }
    } while (hv_op_goes_on(op, status));
    return status;
}

/* Runs an operation to its end: HV_DONE, HV_TIMED_OUT, HV_FAILED (op->error), or HV_INTERRUPTED with
 * the exception of a signal handler set. The gate is not held while handlers run: they may close the
 * socket, or fork. */
static hv_status
drive(hv_socket *s, hv_op *op)
{
    hv_status status;
    do {
        hv_socket_sync(s);
        if (!hv_gate_enter(&s->gate)) {
            op->error = HV_ERROR_CLOSED;
            return HV_FAILED;
        }
        op->handle = s->handle;
        status = op->brief ? transfer_briefly(op) : op->late ? hv_expect(op) : HV_READY;
        if (hv_op_goes_on(op, status)) {
            Py_BEGIN_ALLOW_THREADS
            status = transfer(s, op, status);
            Py_END_ALLOW_THREADS
        }
        if (hv_gate_leave(&s->gate)) {
            Py_BEGIN_ALLOW_THREADS
            hv_close(op->handle); /* __init__ may have given `s` another one */
            Py_END_ALLOW_THREADS
        }
    } while (status == HV_INTERRUPTED && PyErr_CheckSignals() == 0);
    if (hv_gate_is_closed(&s->gate) && status != HV_INTERRUPTED && !hv_op_has_result(op, status)) {
        op->error = HV_ERROR_CLOSED; /* how close() woke it does not matter */
        return HV_FAILED;
    }
    assert(status != HV_READY && (status != HV_FAILED || op->error != 0));
    return status == HV_BLOCKED ? HV_FAILED : status;
}

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
        hv_raise_error(op->error);
    }
    return NULL;
}

/* The same for the data path; "not yet" is part of normal work and stays as cheap as it is. */
static PyObject *
fail_explained(PyObject *self, const hv_op *op, hv_status status, const char *operation)
{
    fail(op, status);
    if (status != HV_INTERRUPTED && !(status == HV_FAILED && hv_error_is_not_yet(op->error))) {
        explain(self, operation);
    }
    return NULL;
}

/* ---- arguments ---- */

static int
check_count(const char *name, Py_ssize_t given, Py_ssize_t least, Py_ssize_t most)
{
    if (given >= least && given <= most) {
        return 1;
    }
    PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd positional arguments (%zd given)", name, least, most, given);
    return 0;
}

static int
as_int(PyObject *object, int *value)
{
    long wide = PyLong_AsLong(object);
    if (wide == -1 && PyErr_Occurred()) {
        return 0;
    }
    if (wide != (int)wide) {
        PyErr_SetString(PyExc_OverflowError, "the flags do not fit a C int");
        return 0;
    }
    *value = (int)wide;
    return 1;
}

/* A length: an integer; `negative` is what to say of one below zero. */
static int
as_length(PyObject *object, const char *negative, Py_ssize_t *value)
{
    *value = PyNumber_AsSsize_t(object, PyExc_OverflowError);
    if (*value == -1 && PyErr_Occurred()) {
        return 0;
    }
    if (*value < 0) {
        PyErr_SetString(PyExc_ValueError, negative);
        return 0;
    }
    return 1;
}

/* A buffer to receive into; PyBuffer_Release() is due if it is true. */
static int
get_writable(PyObject *object, const char *operation, Py_buffer *view)
{
    PyObject *name;
    if (PyObject_GetBuffer(object, view, PyBUF_WRITABLE) == 0) {
        return 1;
    }
    name = PyType_GetName(Py_TYPE(object));
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError, "%s() argument 1 must be read-write bytes-like object, not %V", operation, name, "?");
    Py_XDECREF(name);
    return 0;
}

/* ---- the data path ---- */

/* Bytes between those of a message would end up in it. */
static inline int
may_send(hv_socket *s)
{
    if (hv_cell_get(&s->out.size) != 0) {
        hv_socket_sync(s);
    }
    if (hv_cell_get(&s->out.size) == 0) {
        return 1;
    }
    PyErr_SetString(PyExc_RuntimeError, "a message is partly sent: send_message() with the same buffers goes on");
    return 0;
}

static void
refuse_receive(int64_t state)
{
    PyErr_SetString(PyExc_RuntimeError, state == HV_INBOX_LOST
                                            ? "received bytes are lost (no memory, or a fork): close the socket"
                                        : state == HV_INBOX_MESSAGE
                                            ? "a message is partly received, or a reply is due: recv_message() goes on"
                                            : "recv_exactly() is not finished: the same length goes on");
}

static inline int
may_receive(hv_socket *s)
{
    int64_t state = hv_cell_get(&s->in.state);
    if (state != HV_INBOX_EMPTY) {
        hv_socket_sync(s);
        state = hv_cell_get(&s->in.state);
    }
    if (state == HV_INBOX_EMPTY) {
        return 1;
    }
    refuse_receive(state);
    return 0;
}

static PyObject *
sock_send(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    hv_socket *s = state_of(self);
    hv_op op;
    hv_iovec iov;
    hv_status status;
    Py_buffer view;
    hv_op_init(&op, s, hv_send_start);
    op.writes = 1;
    op.buffers = &iov;
    op.count = 1;
    if (!check_count("send", nargs, 1, 2) || (nargs > 1 && !as_int(args[1], &op.flags)) ||
        PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) != 0) {
        return NULL;
    }
    hv_iovec_set(&iov, view.buf, (size_t)view.len);
    op.brief = hv_is_brief((size_t)view.len);
    status = may_send(s) ? drive(s, &op) : HV_INTERRUPTED;
    PyBuffer_Release(&view);
    if (status != HV_DONE) {
        return fail_explained(self, &op, status, "send");
    }
    return PyLong_FromSize_t(op.result);
}

static PyObject *
sock_sendall(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    hv_socket *s = state_of(self);
    hv_op op;
    hv_iovec iov;
    hv_status status;
    Py_buffer view;
    const char *from;
    size_t left;
    hv_op_init(&op, s, hv_send_start); /* one deadline for the whole of it */
    op.writes = 1;
    op.buffers = &iov;
    op.count = 1;
    if (!check_count("sendall", nargs, 1, 2) || (nargs > 1 && !as_int(args[1], &op.flags)) ||
        PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) != 0) {
        return NULL;
    }
    from = view.buf;
    left = (size_t)view.len;
    do {
        hv_iovec_set(&iov, (void *)from, left);
        op.brief = hv_is_brief(left);
        status = may_send(s) ? drive(s, &op) : HV_INTERRUPTED;
        if (status != HV_DONE) {
            break;
        }
        from += op.result;
        left -= op.result;
        /* A signal that cut a blocking send short has to be seen before the next one blocks. */
        if (left > 0 && PyErr_CheckSignals() != 0) {
            status = HV_INTERRUPTED;
            break;
        }
    } while (left > 0);
    PyBuffer_Release(&view);
    if (status != HV_DONE) {
        return fail_explained(self, &op, status, "sendall");
    }
    return Py_NewRef(Py_None); /* not Py_RETURN_NONE */
}

/* Receives into memory of the caller. A length of zero asks nothing of the system, as in CPython. */
static hv_status
receive(hv_socket *s, hv_op *op, void *buffer, size_t length, int flags)
{
    hv_iovec iov;
    hv_op_init(op, s, hv_recv_start);
    if (!may_receive(s)) {
        return HV_INTERRUPTED;
    }
    if (length == 0) {
        return HV_DONE;
    }
    hv_iovec_set(&iov, buffer, length);
    op->buffers = &iov;
    op->count = 1;
    op->flags = flags;
    op->brief = flags == 0 && hv_is_brief(length); /* MSG_WAITALL does not go with it */
    return drive(s, op);
}

/* No memory for what a receive has taken from the stream: nobody shall go on behind the gap. */
static PyObject *
lose_received(hv_socket *s, const hv_op *op)
{
    long me = (long)PyThread_get_thread_ident();
    if (!(op->flags & MSG_PEEK) && hv_turn_seize(&s->receiving, me)) {
        hv_cell_set(&s->in.state, HV_INBOX_LOST);
        hv_turn_end(s, &s->receiving, me);
    }
    return NULL;
}

static PyObject *
sock_recv(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    char room[RECV_ON_STACK];
    PyObject *bytes = NULL, *received;
    hv_op op;
    hv_status status;
    Py_ssize_t length;
    int flags = 0;
    if (!check_count("recv", nargs, 1, 2) || !as_length(args[0], "negative buffersize in recv", &length) ||
        (nargs > 1 && !as_int(args[1], &flags))) {
        return NULL;
    }
    if (length > RECV_ON_STACK && (bytes = PyBytes_FromStringAndSize(NULL, length)) == NULL) {
        return NULL;
    }
    status = receive(state_of(self), &op, bytes == NULL ? room : PyBytes_AsString(bytes), (size_t)length, flags);
    if (status != HV_DONE) {
        Py_XDECREF(bytes);
        return fail_explained(self, &op, status, "recv");
    }
    if (op.result > (size_t)length) { /* MSG_TRUNC: what the datagram had, and there was no room for */
        op.result = (size_t)length;
    }
    if (bytes != NULL && (Py_ssize_t)op.result == length) {
        return bytes;
    }
    /* The stable ABI cannot shrink it in place. */
    received = PyBytes_FromStringAndSize(bytes == NULL ? room : PyBytes_AsString(bytes), (Py_ssize_t)op.result);
    Py_XDECREF(bytes);
    return received != NULL ? received : lose_received(state_of(self), &op);
}

/* recv_into(buffer, nbytes=0, flags=0), each also by keyword: fills `given`. */
static int
recv_into_arguments(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, PyObject *given[3])
{
    static const char *const names[] = {"buffer", "nbytes", "flags"};
    Py_ssize_t i, count = kwnames == NULL ? 0 : PyTuple_Size(kwnames);
    int n;
    if (nargs > 3) {
        return check_count("recv_into", nargs, 1, 3);
    }
    for (i = 0; i < nargs; i++) {
        given[i] = args[i];
    }
    for (i = 0; i < count; i++) {
        PyObject *name = PyTuple_GetItem(kwnames, i);
        for (n = 0; n < 3 && PyUnicode_CompareWithASCIIString(name, names[n]) != 0; n++) {
        }
        if (n == 3 || given[n] != NULL) {
            PyErr_Format(PyExc_TypeError, "recv_into() got an unexpected or repeated argument %R", name);
            return 0;
        }
        given[n] = args[nargs + i];
    }
    if (given[0] == NULL) {
        PyErr_SetString(PyExc_TypeError, "recv_into() is missing its argument 'buffer'");
        return 0;
    }
    return 1;
}

static PyObject *
sock_recv_into(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *given[3] = {NULL, NULL, NULL}, *received;
    Py_buffer view;
    hv_op op;
    hv_status status;
    Py_ssize_t length = 0;
    int flags = 0;
    if (!recv_into_arguments(args, nargs, kwnames, given) ||
        (given[1] != NULL && !as_length(given[1], "negative buffersize in recv_into", &length)) ||
        (given[2] != NULL && !as_int(given[2], &flags))) {
        return NULL;
    }
    if (!get_writable(given[0], "recv_into", &view)) {
        return NULL;
    }
    if (length > view.len) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "buffer too small for requested bytes");
        return NULL;
    }
    status = receive(state_of(self), &op, view.buf, (size_t)(length > 0 ? length : view.len), flags);
    PyBuffer_Release(&view);
    if (status != HV_DONE) {
        return fail_explained(self, &op, status, "recv_into");
    }
    received = PyLong_FromSize_t(op.result);
    return received != NULL ? received : lose_received(state_of(self), &op);
}

#define FEW 8

/* The buffers of a gather call, with the header of a message before them. */
typedef struct {
    size_t count; /* without the header */
    uint64_t total;
    Py_buffer *views;
    hv_span *spans; /* the header's first */
    hv_iovec *iov;  /* room for them */
    void *many;     /* memory of these three, if there are more than a few */
    unsigned char header[4];
    Py_buffer few_views[FEW];
    hv_span few_spans[FEW + 1];
    hv_iovec few_iov[FEW + 1];
} gather;

/* Makes room for `count` buffers. False with an exception set; gather_release() is due if it is true. */
static int
gather_init(gather *g, size_t count)
{
    g->count = 0;
    g->total = 0;
    g->many = NULL;
    g->views = g->few_views;
    g->spans = g->few_spans;
    g->iov = g->few_iov;
    if (count > FEW) {
        g->many = PyMem_Calloc(count + 1, sizeof *g->views + sizeof *g->spans + sizeof *g->iov);
        if (g->many == NULL) {
            PyErr_NoMemory();
            return 0;
        }
        g->views = g->many;
        g->spans = (hv_span *)(g->views + count);
        g->iov = (hv_iovec *)(g->spans + count + 1);
    }
    g->spans[0].base = (const char *)g->header;
    g->spans[0].length = sizeof g->header;
    return 1;
}

static int
gather_add(gather *g, PyObject *item)
{
    Py_buffer *view = &g->views[g->count];
    hv_span *span = &g->spans[g->count + 1];
    if (PyObject_GetBuffer(item, view, PyBUF_SIMPLE) != 0) {
        return 0;
    }
    g->count++;
    g->total += (uint64_t)view->len;
    span->base = view->buf;
    span->length = (size_t)view->len;
    return 1;
}

static void
gather_release(gather *g)
{
    while (g->count > 0) {
        PyBuffer_Release(&g->views[--g->count]);
    }
    PyMem_Free(g->many);
}

/* sendmsg with ancillary data or an address is not ours: socket.socket has it, where the system does. */
static PyObject *
sendmsg_of_base(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *base = base_of(self);
    if (!PyObject_HasAttrString(base, "sendmsg")) {
        PyErr_SetString(PyExc_NotImplementedError, "this platform sends no ancillary data");
        return NULL;
    }
    return PyObject_CallMethod(base, "sendmsg", "OOOOO", self, args[0], args[1], nargs > 2 ? args[2] : Py_False,
                               nargs > 3 ? args[3] : Py_None);
}

static inline int
is_empty_sequence(PyObject *object)
{
    return (PyTuple_Check(object) || PyList_Check(object)) && PySequence_Size(object) == 0;
}

static PyObject *
sock_sendmsg(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    hv_socket *s = state_of(self);
    PyObject *items;
    gather g;
    hv_op op;
    hv_status status = HV_INTERRUPTED;
    Py_ssize_t i, size;
    hv_op_init(&op, s, hv_sendmsg_start);
    op.writes = 1;
    if (!check_count("sendmsg", nargs, 1, 4)) {
        return NULL;
    }
    if ((nargs > 1 && !is_empty_sequence(args[1])) || (nargs > 3 && args[3] != Py_None)) {
        return may_send(s) ? sendmsg_of_base(self, args, nargs) : NULL;
    }
    if (nargs > 2 && !as_int(args[2], &op.flags)) {
        return NULL;
    }
    items = PySequence_Tuple(args[0]);
    size = items == NULL ? 0 : PyTuple_Size(items);
    if (items == NULL || !gather_init(&g, (size_t)size)) {
        Py_XDECREF(items);
        return NULL;
    }
    for (i = 0; i < size && gather_add(&g, PyTuple_GetItem(items, i)); i++) {
    }
    if (i == size) {
        op.buffers = g.iov;
        op.count = hv_spans_from(g.spans + 1, g.count, 0, g.iov, g.count);
        op.brief = hv_is_brief((size_t)g.total);
        status = may_send(s) ? drive(s, &op) : HV_INTERRUPTED;
    }
    gather_release(&g);
    Py_DECREF(items);
    if (status != HV_DONE) {
        return fail_explained(self, &op, status, "sendmsg");
    }
    return PyLong_FromSize_t(op.result);
}

#include "sock_messages.h"

/* ---- addresses ---- */

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
    return drive(s, op);
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
    return drive(s, op);
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
    if (status == HV_INTERRUPTED) {
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

/* Closes an accepted handle after __init__ of its object has failed. An object that was whole for a while may
 * have given the handle up since, and knows. */
static void
close_accepted(PyObject *made, hv_handle handle)
{
    PyObject *error_type, *error, *traceback, *result;
    PyErr_Fetch(&error_type, &error, &traceback);
    if (whole_state_of(made)->module != NULL) {
        result = PyObject_CallMethod(made, "close", NULL);
    } else {
        result = PyObject_CallFunctionObjArgs(module_of(made)->detach, made, NULL);
        hv_close(handle);
    }
    Py_XDECREF(result);
    PyErr_Restore(error_type, error, traceback);
}

/* A new socket of self's class, with its busy_poll, around `handle`, which it owns from then on; on failure
 * the handle is closed. */
static PyObject *
wrap_accepted(PyObject *self, hv_handle handle)
{
    PyTypeObject *type = Py_TYPE(self);
    module_state *module = module_of(self);
    PyObject *kind = get_attribute(module->kind, self), *proto = get_attribute(module->proto, self);
    PyObject *none = PyTuple_New(0), *all = NULL, *made = NULL;
    if (kind != NULL && proto != NULL) {
        all = Py_BuildValue("iOOL", state_of(self)->family, kind, proto, (long long)handle);
    }
    if (all != NULL && none != NULL) {
        made = ((newfunc)PyType_GetSlot(type, Py_tp_new))(type, none, NULL);
    }
    if (made == NULL) {
        hv_close(handle);
    } else if (((initproc)PyType_GetSlot(type, Py_tp_init))(made, all, NULL) != 0) {
        close_accepted(made, handle);
        Py_CLEAR(made);
    } else {
        hv_cell_set(&state_of(made)->busy_poll, hv_cell_get(&state_of(self)->busy_poll));
    }
    Py_XDECREF(kind);
    Py_XDECREF(proto);
    Py_XDECREF(none);
    Py_XDECREF(all);
    return made;
}

/* socket.socket's accept makes a socket.socket: its handle moves into one of our class. */
static PyObject *
accept_foreign(PyObject *self)
{
    PyObject *pair = PyObject_CallMethod(base_of(self), "accept", "O", self);
    PyObject *handle, *made = NULL, *result = NULL;
    if (pair == NULL) {
        return NULL;
    }
    handle = PyObject_CallMethod(PyTuple_GetItem(pair, 0), "detach", NULL);
    if (handle != NULL) {
        made = wrap_accepted(self, (hv_handle)PyLong_AsLongLong(handle));
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
sock_accept(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    hv_socket *s = state_of(self);
    hv_sockaddr from;
    PyObject *address, *made, *result = NULL;
    hv_op op;
    hv_status status;
    if (is_foreign(s)) {
        return accept_foreign(self);
    }
    hv_op_init(&op, s, hv_accept_start);
    op.waits = op.timeout != 0;
    op.address = &from;
    status = drive(s, &op);
    if (status != HV_DONE) {
        return fail(&op, status);
    }
    made = wrap_accepted(self, op.accepted);
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

/* ---- life: init, modes, close ---- */

/* Takes over what the base has just set up: handle, family and timeout. */
static int
adopt_timeout(PyObject *self)
{
    PyObject *timeout = PyObject_CallFunctionObjArgs(module_of(self)->gettimeout, self, NULL);
    double seconds;
    if (timeout == NULL) {
        return 0;
    }
    seconds = timeout == Py_None ? -1.0 : PyFloat_AsDouble(timeout);
    Py_DECREF(timeout);
    if (seconds < 0.0 && PyErr_Occurred()) {
        return 0;
    }
    /* A century at most, so that a deadline cannot overflow; a nanosecond at least. */
    seconds = seconds > 3e9 ? 3e9 : seconds;
    hv_cell_set(&state_of(self)->timeout, seconds < 0.0 ? -1 : seconds == 0.0 ? 0 : (int64_t)(seconds * 1e9) + 1);
    return 1;
}

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
    if (PyErr_Occurred() || !adopt_timeout(self)) {
        return 0;
    }
    hv_socket_init(s);
    inbox_clear(&s->in);
    outbox_clear(&s->out);
    s->gate = HV_GATE_OPEN;
    whole_state_of(self)->module = module;
    return 1;
}

static int
sock_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    hv_socket *s = state_of(self);
    module_state *module = module_of(self);
    PyObject *selfs, *all, *result = NULL;
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
    return adopt(self, module) ? 0 : -1;
}

/* `value` is None or a number of CPython's own: no code of Python runs here. */
static PyObject *
set_timeout(PyObject *self, PyObject *value)
{
    hv_socket *s = state_of(self);
    PyObject *result;
    hv_socket_sync(s);
    Py_BEGIN_ALLOW_THREADS
    hv_lock_acquire(&s->mode);
    Py_END_ALLOW_THREADS
    result = PyObject_CallMethod(base_of(self), "settimeout", "OO", self, value);
    if (result != NULL && !adopt_timeout(self)) {
        Py_CLEAR(result);
    }
    hv_lock_release(&s->mode);
    return result;
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
        hv_release_mode(s);
        forget_messages(s);
        handle = PyObject_CallMethod(base_of(self), "detach", "O", self);
        hv_gate_leave(&s->gate); /* until then, close() keeps off */
        return handle;
    }
    if (hv_gate_is_ending(&s->gate)) {
        return PyLong_FromLong(-1); /* what the base says of a closed socket */
    }
    return PyObject_CallMethod(base_of(self), "detach", "O", self);
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
    if (hv_gate_has_others(&s->gate)) {
        hv_wake_all(s);
        hv_turn_wake_all(s);
    }
    if (hv_gate_leave(&s->gate)) {
        error = hv_close(handle);
    }
    Py_END_ALLOW_THREADS
    if (error != 0 && !hv_error_is_reset(error)) {
        return hv_raise_error(error);
    }
    return Py_NewRef(Py_None); /* not Py_RETURN_NONE */
}

/* The base's finalizer warns of a socket that is still open, and closes it. Who hears the warning may keep
 * the object, whose handle soon is somebody else's: the gate is shut behind it. */
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

static PyObject *
sock_explain(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    return Py_NewRef(Py_None); /* not Py_RETURN_NONE */
}

/* ---- the type and the module ---- */

PyDoc_STRVAR(send_doc, "send($self, data, flags=0, /)\n--\n\n"
                       "Send bytes; return how many were taken, which may be fewer than given.\n"
                       "\n"
                       "With a timeout set, waits only if nothing can be sent at once.");
PyDoc_STRVAR(sendall_doc, "sendall($self, data, flags=0, /)\n--\n\n"
                          "Send all bytes within one timeout. After an error it is unknown how many were sent.");
PyDoc_STRVAR(sendmsg_doc, "sendmsg($self, buffers, ancdata=(), flags=0, address=None, /)\n--\n\n"
                          "Send the concatenation of buffers in one gather call; return how many bytes were taken.");
PyDoc_STRVAR(recv_doc, "recv($self, bufsize, flags=0, /)\n--\n\n"
                       "Receive up to bufsize bytes; b'' at the end of the stream.");
PyDoc_STRVAR(
    recv_into_doc,
    "recv_into($self, buffer, nbytes=0, flags=0)\n--\n\n"
    "Receive into a writable buffer, up to nbytes (0: all of it); return the length, 0 at the end of the stream.");
PyDoc_STRVAR(
    send_message_doc,
    "send_message($self, /, *buffers)\n--\n\n"
    "Send one message, the concatenation of buffers, in one gather call and within one timeout.\n"
    "\n"
    "After BlockingIOError, TimeoutError or an interrupt it may be partly sent: the same call goes on with it,\n"
    "and any other send is a RuntimeError until then. Messages of several threads never mix.\n"
    "A message has 4294967295 bytes at most; on the wire a big-endian length of 4 bytes comes first.");
PyDoc_STRVAR(recv_message_doc,
             "recv_message($self, /, max_size=16777216)\n--\n\n"
             "Receive one message.\n"
             "\n"
             "OSError (EMSGSIZE), before any of it is received, if it is longer than max_size bytes: a larger limit\n"
             "still gets it. EOFError at the end of the stream, IncompleteReadError if that is inside a message.\n"
             "After BlockingIOError, TimeoutError or an interrupt nothing is lost: the same call goes on.");
PyDoc_STRVAR(recv_message_into_doc,
             "recv_message_into($self, buffer, /)\n--\n\n"
             "Receive one message into a writable buffer, and return its length; otherwise like recv_message().");
PyDoc_STRVAR(recv_exactly_doc,
             "recv_exactly($self, size, /)\n--\n\n"
             "Receive size bytes within one timeout.\n"
             "\n"
             "EOFError at the end of the stream, IncompleteReadError if that comes after fewer bytes.\n"
             "After BlockingIOError, TimeoutError or an interrupt nothing is lost: the same call goes on.");
PyDoc_STRVAR(recv_exactly_into_doc, "recv_exactly_into($self, buffer, /)\n--\n\n"
                                    "Fill a writable buffer; otherwise like recv_exactly().");
PyDoc_STRVAR(exchange_doc,
             "exchange($self, /, *buffers, max_size=16777216)\n--\n\n"
             "Send one message and receive the next one, in one release of the GIL and within one timeout.\n"
             "\n"
             "Exchanges of several threads follow each other. After TimeoutError or an interrupt the same call goes\n"
             "on, and does not send twice; recv_message() takes the reply without it. Otherwise like both calls.\n"
             "The request is sent whole before the reply is received, so the peer has to take it before it answers.");
PyDoc_STRVAR(
    busy_poll_doc,
    "Microseconds, 0 to 1000000, that a receive or accept that has to wait tries before it sleeps; 0 at first.\n"
    "\n"
    "The GIL is released while it does, a core is busy, and Ctrl-C waits. Accepted sockets inherit it.");
PyDoc_STRVAR(bind_doc, "bind($self, address, /)\n--\n\n"
                       "Bind to the family's own address: 36 bytes of SOCKADDR_HV, (cid, port), or a path.");
PyDoc_STRVAR(connect_doc, "connect($self, address, /)\n--\n\n"
                          "Connect to the family's own address within the timeout. After an error, close the socket.");
PyDoc_STRVAR(connect_ex_doc, "connect_ex($self, address, /)\n--\n\n"
                             "Like connect, but return the system's error code instead of raising it; 0 is success.");
PyDoc_STRVAR(accept_doc, "accept($self)\n--\n\n"
                         "Wait for a connection; return (socket of this class, address of the peer).");
PyDoc_STRVAR(getsockname_doc, "getsockname($self)\n--\n\n"
                              "Return this socket's address.");
PyDoc_STRVAR(getpeername_doc, "getpeername($self)\n--\n\n"
                              "Return the peer's address.");
PyDoc_STRVAR(settimeout_doc, "settimeout($self, value, /)\n--\n\n"
                             "Set the timeout in seconds; None blocks without limit, 0 never blocks.");
PyDoc_STRVAR(setblocking_doc, "setblocking($self, flag, /)\n--\n\n"
                              "settimeout(None) if flag is true, settimeout(0) otherwise.");
PyDoc_STRVAR(detach_doc, "detach($self)\n--\n\n"
                         "Give the handle up without closing it, and return it.");
PyDoc_STRVAR(real_close_doc, "_real_close($self)\n--\n\n"
                             "Close the handle once no call uses it; wake those that do.");
PyDoc_STRVAR(explain_doc, "_explain($self, exception, operation, /)\n--\n\n"
                          "Called with a failed data call's exception before it is raised.");

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

#define DATA_METHODS 11 /* the first ones of the table */

static PyMethodDef sock_methods[] = {
    {"send", FAST(sock_send), METH_FASTCALL, send_doc},
    {"sendall", FAST(sock_sendall), METH_FASTCALL, sendall_doc},
    {"sendmsg", FAST(sock_sendmsg), METH_FASTCALL, sendmsg_doc},
    {"recv", FAST(sock_recv), METH_FASTCALL, recv_doc},
    {"recv_into", FAST(sock_recv_into), METH_FASTCALL | METH_KEYWORDS, recv_into_doc},
    {"send_message", FAST(sock_send_message), METH_FASTCALL, send_message_doc},
    {"recv_message", FAST(sock_recv_message), METH_FASTCALL | METH_KEYWORDS, recv_message_doc},
    {"recv_message_into", sock_recv_message_into, METH_O, recv_message_into_doc},
    {"recv_exactly", sock_recv_exactly, METH_O, recv_exactly_doc},
    {"recv_exactly_into", sock_recv_exactly_into, METH_O, recv_exactly_into_doc},
    {"exchange", FAST(sock_exchange), METH_FASTCALL | METH_KEYWORDS, exchange_doc},
    {"bind", sock_bind, METH_O, bind_doc},
    {"connect", sock_connect, METH_O, connect_doc},
    {"connect_ex", sock_connect_ex, METH_O, connect_ex_doc},
    {"accept", sock_accept, METH_NOARGS, accept_doc},
    {"getsockname", sock_getsockname, METH_NOARGS, getsockname_doc},
    {"getpeername", sock_getpeername, METH_NOARGS, getpeername_doc},
    {"settimeout", sock_settimeout, METH_O, settimeout_doc},
    {"setblocking", sock_setblocking, METH_O, setblocking_doc},
    {"detach", sock_detach, METH_NOARGS, detach_doc},
    {"_real_close", sock_real_close, METH_NOARGS, real_close_doc},
    {"_explain", sock_explain, METH_VARARGS, explain_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef sock_properties[] = {
    {"busy_poll", sock_get_busy_poll, sock_set_busy_poll, busy_poll_doc, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot sock_slots[] = {
    {Py_tp_init, (void *)sock_init},
    {Py_tp_finalize, (void *)sock_finalize},
    {Py_tp_methods, sock_methods},
    {Py_tp_getset, sock_properties},
    {0, NULL},
};

/* Fills the module's state. The base must be CPython's own class: a replacement (gevent's) has no handle
 * that C could use. */
static int
find_base(module_state *module)
{
    PyObject *python = PyImport_ImportModule("socket"), *c = PyImport_ImportModule("_socket");
    PyObject *base = python == NULL ? NULL : PyObject_GetAttrString(python, "socket");
    PyObject *root = c == NULL ? NULL : PyObject_GetAttrString(c, "socket");
    int is_one = base == NULL || root == NULL ? -1 : PyObject_IsSubclass(base, root);
    if (is_one == 0) {
        PyErr_SetString(PyExc_ImportError, "socket.socket has been replaced; import hvsock before patching it");
    } else if (is_one == 1) {
        struct {
            PyObject **to;
            PyObject *from;
            const char *name;
        } wanted[] = {
            {&module->init, base, "__init__"},         {&module->fileno, root, "fileno"},
            {&module->gettimeout, root, "gettimeout"}, {&module->detach, root, "detach"},
            {&module->family, root, "family"},         {&module->kind, root, "type"},
            {&module->proto, root, "proto"},
        };
        size_t i;
        module->base = Py_NewRef(base);
        for (i = 0; i < sizeof wanted / sizeof *wanted && is_one == 1; i++) {
            *wanted[i].to = PyObject_GetAttrString(wanted[i].from, wanted[i].name);
            is_one = *wanted[i].to != NULL;
        }
    }
    Py_XDECREF(python);
    Py_XDECREF(c);
    Py_XDECREF(base);
    Py_XDECREF(root);
    return is_one == 1;
}

/* Creates the type on top of `base`, the state behind the base's instance data. */
static PyObject *
make_type(PyObject *module, PyObject *base)
{
    PyObject *size = PyObject_GetAttrString(base, "__basicsize__");
    Py_ssize_t offset = size == NULL ? -1 : PyLong_AsSsize_t(size);
    PyType_Spec spec = {
        .name = "hvsock._hvsock.Socket",
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
        .slots = sock_slots,
    };
    PyObject *bases, *type;
    int is_other;
    Py_XDECREF(size);
    if (offset < 0) {
        return NULL;
    }
    offset = (offset + 15) / 16 * 16;
    hv_lock_acquire(&hv_once);
    if (state_offset == 0) {
        state_offset = offset;
    }
    is_other = state_offset != offset;
    hv_lock_release(&hv_once);
    if (is_other) {
        PyErr_SetString(PyExc_ImportError, "socket.socket has another layout than in the first interpreter");
        return NULL;
    }
    spec.basicsize = (int)(offset + (Py_ssize_t)sizeof(sock_state));
    bases = PyTuple_Pack(1, base);
    type = bases == NULL ? NULL : PyType_FromModuleAndSpec(module, &spec, bases);
    Py_XDECREF(bases);
    return type;
}

/* Gives a subclass the data methods as its own. Since 3.11 the interpreter calls a method of C directly
 * only if the object is of the very type that the method was made for: 330 instructions for two calls. */
static PyObject *
module_own_data_path(PyObject *Py_UNUSED(module), PyObject *type)
{
    int i;
    if (!PyType_Check(type) || our_base_of((PyTypeObject *)type) == NULL) {
        PyErr_SetString(PyExc_TypeError, "a subclass of Socket is needed");
        return NULL;
    }
    for (i = 0; i < DATA_METHODS; i++) {
        PyObject *method = PyDescr_NewMethod((PyTypeObject *)type, &sock_methods[i]);
        int failed = method == NULL || PyObject_SetAttrString(type, sock_methods[i].ml_name, method) != 0;
        Py_XDECREF(method);
        if (failed) {
            return NULL;
        }
    }
    return Py_NewRef(type);
}

PyDoc_STRVAR(own_data_path_doc, "own_data_path($module, cls, /)\n--\n\n"
                                "Class decorator for a subclass of Socket: makes its data methods faster to call.");

static PyMethodDef module_methods[] = {
    {"own_data_path", module_own_data_path, METH_O, own_data_path_doc},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    PyObject *type;
    int result = -1;
    if (hv_platform_init() != 0 || !find_base(state)) {
        return -1;
    }
    type = make_type(module, state->base);
    if (type != NULL && PyModule_AddObjectRef(module, "Socket", type) == 0 &&
        PyModule_AddIntConstant(module, "SUN_PATH_SIZE", HV_SUN_PATH_SIZE) == 0 && pump_add_type(module) == 0) {
        result = 0;
    }
    Py_XDECREF(type);
    return result;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->base);
    Py_VISIT(state->init);
    Py_VISIT(state->fileno);
    Py_VISIT(state->gettimeout);
    Py_VISIT(state->detach);
    Py_VISIT(state->family);
    Py_VISIT(state->kind);
    Py_VISIT(state->proto);
    return 0;
}

static void
module_free(void *module)
{
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->base);
    Py_CLEAR(state->init);
    Py_CLEAR(state->fileno);
    Py_CLEAR(state->gettimeout);
    Py_CLEAR(state->detach);
    Py_CLEAR(state->family);
    Py_CLEAR(state->kind);
    Py_CLEAR(state->proto);
}

/* State is per socket or per module, and the statics are the same in every interpreter. */
static PyModuleDef_Slot module_slots[] = {
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},                                    /* 3.13 */
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED}, /* 3.12 */
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

#define MODULE_WITHOUT(slots)                                                                                          \
    {                                                                                                                  \
        PyModuleDef_HEAD_INIT,                                                                                         \
        .m_name = "hvsock._hvsock",                                                                                    \
        .m_doc = "The data path of hvsock; see hvsock.HyperVSocket.",                                                  \
        .m_size = sizeof(module_state),                                                                                \
        .m_methods = module_methods,                                                                                   \
        .m_slots = module_slots + (slots),                                                                             \
        .m_traverse = module_traverse,                                                                                 \
        .m_free = module_free,                                                                                         \
    }

/* By how many of the slots, the first ones, the interpreter does not know and would refuse. */
static struct PyModuleDef modules[] = {MODULE_WITHOUT(0), MODULE_WITHOUT(1), MODULE_WITHOUT(2)};

PyMODINIT_FUNC PyInit__hvsock(void);

PyMODINIT_FUNC
PyInit__hvsock(void)
{
    return PyModuleDef_Init(&modules[(Py_Version < 0x030d0000) + (Py_Version < 0x030c0000)]);
}
