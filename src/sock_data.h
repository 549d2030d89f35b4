/* The methods that move bytes: send, sendall, sendmsg, recv, recv_into. */
#ifndef SOCK_DATA_H
#define SOCK_DATA_H

#include "hv_stream.h"
#include "sock_arguments.h"
#include "sock_driver.h"

#define RECV_ON_STACK 8192 /* recv() up to this size allocates once, for what arrived */

/* ---- what may follow ---- */

static int
refuse_send(hv_socket *s)
{
    PyErr_SetString(PyExc_RuntimeError,
                    hv_cell_get(&s->send_lost) != 0
                        ? "how much was sent is not known after a cancelled send: close the socket"
                        : "a message is partly sent; call send_message() again with the same buffers");
    return 0;
}

/* Bytes between those of a message would end up in it. */
static inline int
is_free_to_send(const hv_socket *s)
{
    return (hv_cell_get(&s->out.size) | hv_cell_get(&s->send_lost)) == 0;
}

static int
may_send(hv_socket *s)
{
    hv_socket_sync(s);
    return is_free_to_send(s) || refuse_send(s);
}

static int
refuse_receive(int64_t state)
{
    PyErr_SetString(PyExc_RuntimeError,
                    state == HV_INBOX_LOST ? "received bytes are lost (no memory, or a fork): close the socket"
                    : state == HV_INBOX_MESSAGE
                        ? "a message is partly received, or a reply is due; call recv_message() again"
                        : "recv_exactly() is in progress; call it again with the same length");
    return 0;
}

static inline int
is_free_to_receive(const hv_socket *s)
{
    return hv_cell_get(&s->in.state) == HV_INBOX_EMPTY;
}

static int
may_receive(hv_socket *s)
{
    hv_socket_sync(s);
    return is_free_to_receive(s) || refuse_receive(hv_cell_get(&s->in.state));
}

/* ---- one call of the system, as most transfers are ---- */

/* Bytes, minus an error, or HV_UNTRIED: drive() finds out why. */
static inline int64_t
send_once(hv_socket *s, const void *data, size_t size)
{
    int64_t n;
    hv_socket_sync(s);
    if (!hv_gate_enter(&s->gate)) {
        return HV_UNTRIED;
    }
    Py_BEGIN_ALLOW_THREADS
    n = hv_send_once(s->handle, data, size, hv_cell_get(&s->timeout));
    hv_leave(s);
    Py_END_ALLOW_THREADS
    return n;
}

static inline int64_t
recv_once(hv_socket *s, void *to, size_t size)
{
    int64_t n;
    hv_socket_sync(s);
    if (hv_cell_get(&s->busy_poll) != 0 || !hv_gate_enter(&s->gate)) {
        return HV_UNTRIED;
    }
    Py_BEGIN_ALLOW_THREADS
    n = hv_recv_once(s->handle, to, size, hv_cell_get(&s->timeout));
    hv_leave(s);
    Py_END_ALLOW_THREADS
    return n;
}

/* What one call that has moved nothing has come to, for drive(). */
static hv_status
as_status(hv_op *op, int64_t n)
{
    return n == 0 ? HV_DONE : n == HV_UNTRIED ? HV_READY : hv_failed(op, (int)-n);
}

/* ---- sending ---- */

/* The bytes of an object, without a copy: `bytes`, which cannot change, need no lock on them. */
typedef struct {
    const char *base;
    size_t size;
    Py_buffer view;
    int is_view;
} source;

static inline int
source_init(source *from, PyObject *object)
{
    from->is_view = !PyBytes_CheckExact(object);
    if (!from->is_view) {
        from->base = PyBytes_AsString(object);
        from->size = (size_t)Py_SIZE(object);
        return 1;
    }
    if (PyObject_GetBuffer(object, &from->view, PyBUF_SIMPLE) != 0) {
        return 0;
    }
    from->base = from->view.buf;
    from->size = (size_t)from->view.len;
    return 1;
}

static inline void
source_release(source *from)
{
    if (from->is_view) {
        PyBuffer_Release(&from->view);
    }
}

/* data and flags, the arguments of send() and sendall(); source_release() is due if it is true. */
static int
send_arguments(const char *name, PyObject *const *args, Py_ssize_t nargs, source *from, int *flags)
{
    *flags = 0;
    return check_count(name, nargs, 1, 2) && (nargs == 1 || as_int(args[1], flags)) && source_init(from, args[0]);
}

/* send() with the driver; a first call may have come to `n`. */
static PyObject *
send_driven(PyObject *self, const source *from, int flags, int64_t n)
{
    hv_op op;
    hv_iovec iov;
    hv_status status;
    hv_op_init(&op, state_of(self), hv_send_start);
    op.writes = 1;
    op.buffers = &iov;
    op.count = 1;
    op.flags = flags;
    hv_iovec_set(&iov, (void *)from->base, from->size);
    status = drive(op.socket, &op, as_status(&op, n));
    if (status != HV_DONE) {
        return fail_explained(self, &op, status, "send");
    }
    return PyLong_FromSize_t(op.result);
}

HV_COLD static PyObject *
send_bytes(PyObject *self, PyObject *bytes, int64_t n)
{
    source from;
    source_init(&from, bytes);
    return send_driven(self, &from, 0, n);
}

HV_COLD static PyObject *
send_anything(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *sent;
    source from;
    int flags;
    if (!send_arguments("send", args, nargs, &from, &flags)) {
        return NULL;
    }
    sent = may_send(state_of(self)) ? send_driven(self, &from, flags, HV_UNTRIED) : NULL;
    source_release(&from);
    return sent;
}

static PyObject *
sock_send(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    hv_socket *s = state_of(self);
    int64_t n;
    if (nargs != 1 || !PyBytes_CheckExact(args[0]) || !is_free_to_send(s)) {
        return send_anything(self, args, nargs);
    }
    n = send_once(s, PyBytes_AsString(args[0]), (size_t)Py_SIZE(args[0]));
    return n > 0 ? PyLong_FromSize_t((size_t)n) : send_bytes(self, args[0], n);
}

static PyObject *
sock_sendall(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    hv_socket *s = state_of(self);
    hv_status status = HV_RAISED;
    hv_whole all;
    source from;
    int flags;
    if (!send_arguments("sendall", args, nargs, &from, &flags)) {
        return NULL;
    }
    hv_whole_init(&all, s, hv_send_start, (char *)from.base, from.size);
    all.op.writes = 1;
    all.op.flags = flags;
    if (may_send(s)) {
        status = drive(s, &all.op, HV_READY);
    }
    source_release(&from);
    if (status != HV_DONE) {
        return fail_explained(self, &all.op, status, "sendall");
    }
    return Py_NewRef(Py_None); /* not Py_RETURN_NONE */
}

/* ---- receiving ---- */

/* No memory for what a receive has taken from the stream: refuse what would follow behind the gap. */
static PyObject *
lose_received(hv_socket *s, int flags)
{
    long me = hv_thread_id();
    if (!(flags & MSG_PEEK) && hv_turn_seize(&s->receiving, me)) {
        hv_cell_set(&s->in.state, HV_INBOX_LOST);
        hv_turn_end(s, &s->receiving, me);
    }
    return NULL;
}

/* A receive with the driver; a first call may have come to `n`. */
static hv_status
recv_driven(hv_socket *s, hv_op *op, void *to, size_t size, int flags, int64_t n)
{
    hv_iovec iov;
    hv_op_init(op, s, hv_recv_start);
    hv_iovec_set(&iov, to, size);
    op->buffers = &iov;
    op->count = 1;
    op->flags = flags;
    return drive(s, op, as_status(op, n));
}

/* MSG_WAITALL, so that it means the same on every transport: AF_VSOCK asks for more room than it has, AF_UNIX does not
 * wait in a call that has a timeout, and how much a cancelled overlapped receive has taken is not known. What has arrived
 * in time is returned. */
static hv_status
recv_all(hv_socket *s, hv_op *op, void *to, size_t size, int flags)
{
    hv_whole all;
    hv_status status;
    hv_whole_init(&all, s, hv_recv_start, to, size);
    all.op.flags = flags & ~MSG_WAITALL;
    status = drive(s, &all.op, HV_READY);
    *op = all.op;
    if (all.moved > 0 && status != HV_RAISED) {
        op->result = all.moved;
        status = HV_DONE;
    }
    return status;
}

/* -1 with an exception set. */
static int
is_stream(PyObject *self)
{
    PyObject *kind = get_attribute(module_of(self)->kind, self);
    long number = kind == NULL ? -1 : PyLong_AsLong(kind);
    Py_XDECREF(kind);
    return number < 0 ? -1 : number == SOCK_STREAM;
}

/* Receives into memory of the caller. A length of zero makes no system call, as in CPython. */
static hv_status
receive(PyObject *self, hv_op *op, void *to, size_t size, int flags, int64_t n)
{
    hv_socket *s = state_of(self);
    int all = 0;
    if (size == 0) {
        op->result = 0;
        return HV_DONE;
    }
    if (flags & MSG_WAITALL && !(flags & MSG_PEEK) && hv_address_kind_of(s->family) != HV_ADDRESS_OTHER) {
        all = is_stream(self);
    }
    return all < 0 ? HV_RAISED : all > 0 ? recv_all(s, op, to, size, flags) : recv_driven(s, op, to, size, flags, n);
}

/* A new bytes object of what is in `room`. */
static PyObject *
received_bytes(hv_socket *s, const char *room, size_t n, int flags)
{
    PyObject *bytes = PyBytes_FromStringAndSize(room, (Py_ssize_t)n);
    return bytes != NULL ? bytes : lose_received(s, flags);
}

static PyObject *
received_length(hv_socket *s, size_t n, int flags)
{
    PyObject *length = PyLong_FromSize_t(n);
    return length != NULL ? length : lose_received(s, flags);
}

/* recv() of more than fits on the stack. */
static PyObject *
recv_long(PyObject *self, Py_ssize_t length, int flags)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, length), *received;
    hv_op op;
    hv_status status;
    if (bytes == NULL) {
        return NULL;
    }
    status = receive(self, &op, PyBytes_AsString(bytes), (size_t)length, flags, HV_UNTRIED);
    if (status != HV_DONE) {
        Py_DECREF(bytes);
        return fail_explained(self, &op, status, "recv");
    }
    if (op.result >= (size_t)length) { /* above: MSG_TRUNC tells what a datagram had */
        return bytes;
    }
    /* The stable ABI cannot shrink it in place. */
    received = received_bytes(op.socket, PyBytes_AsString(bytes), op.result, flags);
    Py_DECREF(bytes);
    return received;
}

static PyObject *
recv_short(PyObject *self, Py_ssize_t length, int flags)
{
    hv_socket *s = state_of(self);
    char room[RECV_ON_STACK];
    hv_op op;
    hv_status status;
    int64_t n = flags == 0 && length > 0 ? recv_once(s, room, (size_t)length) : HV_UNTRIED;
    if (n > 0) {
        return received_bytes(s, room, (size_t)n, 0);
    }
    status = receive(self, &op, room, (size_t)length, flags, n);
    if (status != HV_DONE) {
        return fail_explained(self, &op, status, "recv");
    }
    return received_bytes(s, room, op.result < (size_t)length ? op.result : (size_t)length, flags);
}

static PyObject *
sock_recv(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t length;
    int flags = 0;
    if (!check_count("recv", nargs, 1, 2) || !as_length(args[0], "negative buffersize in recv", &length) ||
        (nargs > 1 && !as_int(args[1], &flags)) || !may_receive(state_of(self))) {
        return NULL;
    }
    return length > RECV_ON_STACK ? recv_long(self, length, flags) : recv_short(self, length, flags);
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

/* nbytes and flags, where they are given. */
static int
recv_into_options(PyObject *const given[3], Py_ssize_t *length, int *flags)
{
    return (given[1] == NULL || as_length(given[1], "negative buffersize in recv_into", length)) &&
           (given[2] == NULL || as_int(given[2], flags));
}

/* recv_into() with the driver; a first call may have come to `n`. Releases the view. */
HV_COLD static PyObject *
recv_into_view(PyObject *self, Py_buffer *view, size_t size, int flags, int64_t n)
{
    hv_socket *s = state_of(self);
    hv_op op;
    hv_status status = receive(self, &op, view->buf, size, flags, n);
    release_writable(view);
    if (status != HV_DONE) {
        return fail_explained(self, &op, status, "recv_into");
    }
    return received_length(s, op.result, flags);
}

HV_COLD static PyObject *
recv_into_with(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *given[3] = {NULL, NULL, NULL};
    Py_buffer view;
    Py_ssize_t length = 0;
    int flags = 0;
    if (!recv_into_arguments(args, nargs, kwnames, given) || !recv_into_options(given, &length, &flags) ||
        !get_writable(given[0], "recv_into", &view)) {
        return NULL;
    }
    if (length > view.len) {
        PyErr_SetString(PyExc_ValueError, "buffer too small for requested bytes");
    } else if (may_receive(state_of(self))) {
        return recv_into_view(self, &view, (size_t)(length > 0 ? length : view.len), flags, HV_UNTRIED);
    }
    release_writable(&view);
    return NULL;
}

static PyObject *
sock_recv_into(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    hv_socket *s = state_of(self);
    Py_buffer view;
    int64_t n;
    if (nargs != 1 || kwnames != NULL || !is_free_to_receive(s)) {
        return recv_into_with(self, args, nargs, kwnames);
    }
    if (!get_writable(args[0], "recv_into", &view)) {
        return NULL;
    }
    n = view.len > 0 ? recv_once(s, view.buf, (size_t)view.len) : HV_UNTRIED;
    if (n <= 0) {
        return recv_into_view(self, &view, (size_t)view.len, 0, n);
    }
    release_writable(&view);
    return received_length(s, (size_t)n, 0);
}

/* ---- several buffers ---- */

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

/* sendmsg with ancillary data or an address is left to socket.socket, where the system has it. */
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
    hv_status status = HV_RAISED;
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
        op.count = hv_spans_from(g.spans + 1, g.count, 0, HV_IO_MAX, g.iov, g.count);
        status = may_send(s) ? drive(s, &op, HV_READY) : HV_RAISED;
    }
    gather_release(&g);
    Py_DECREF(items);
    if (status != HV_DONE) {
        return fail_explained(self, &op, status, "sendmsg");
    }
    return PyLong_FromSize_t(op.result);
}

#endif
