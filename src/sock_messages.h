/* The methods that send and receive as a whole. A call that ended early has left its progress in the socket, and the
 * same call continues it: nothing is sent twice, and nothing received is lost. */
#ifndef SOCK_MESSAGES_H
#define SOCK_MESSAGES_H

#include "sock_data.h"

#define LIMIT_BY_DEFAULT (16 << 20)
#define RECV_ON_HEAP 65536 /* up to this size a copy costs less than taking the GIL in the middle of a message */

static void
message_init(hv_message *m, hv_socket *s)
{
    hv_op_init(&m->op, s, NULL);
    hv_op_start_clock(&m->op);
    m->op.advance = hv_message_advance;
    m->s = s;
    m->me = hv_thread_id();
    m->sends = 0;
    m->spans = NULL;
    m->span_count = 0;
    m->spans_sent = 0;
    m->bytes_sent = 0;
    m->iov = NULL;
    m->receives = 0;
    m->limit = SIZE_MAX;
    m->room = NULL;
    m->room_size = 0;
    m->heap_max = 0;
    m->heap = NULL;
    m->sent = NULL;
    m->outcome = HV_MESSAGE_OPEN;
}

static PyObject *
fail_message(PyObject *self, const hv_message *m, hv_status status, const char *operation)
{
    return fail_explained(self, &m->op, status, operation);
}

/* Waits within the operation's timeout until it is this thread's turn to send or to receive. */
static hv_status
take_turn(hv_message *m, hv_turn *turn)
{
    hv_turn_op wait;
    hv_status status;
    hv_socket_sync(m->s);
    if (hv_turn_take(turn, m->me)) {
        return HV_DONE;
    }
    if (hv_word_get(&turn->owner) == m->me) {
        PyErr_SetString(PyExc_RuntimeError, "a signal handler cannot start a message while its thread is in one");
        return HV_RAISED;
    }
    hv_op_init(&wait.op, m->s, hv_turn_start);
    wait.op.deadline = m->op.deadline;
    wait.op.spun = 1;
    wait.turn = turn;
    wait.me = m->me;
    wait.began = hv_now();
    status = drive(m->s, &wait.op, HV_READY);
    m->op.error = wait.op.error;
    return status;
}

/* ---- sending ---- */

/* The buffers of a message. False with an exception set; gather_release() is due if it is true. */
static int
gather_message(gather *g, PyObject *const *items, Py_ssize_t count)
{
    Py_ssize_t i;
    if (!gather_init(g, (size_t)count)) {
        return 0;
    }
    for (i = 0; i < count; i++) {
        if (!gather_add(g, items[i])) {
            gather_release(g);
            return 0;
        }
    }
    if (g->total > HV_MESSAGE_MAX) {
        gather_release(g);
        PyErr_SetString(PyExc_ValueError, "a message has 4294967295 bytes at most");
        return 0;
    }
    for (i = 0; i < 4; i++) {
        g->header[i] = (unsigned char)(g->total >> (24 - 8 * i));
    }
    g->total += sizeof g->header;
    return 1;
}

/* The buffers of a message, to be compared with those of a later call; copies of those that may change. None if
 * there is no memory for that. An exception that is set stays set. */
static PyObject *
keep_buffers(PyObject *const *items, Py_ssize_t count)
{
    PyObject *type, *value, *traceback, *kept;
    Py_ssize_t i;
    PyErr_Fetch(&type, &value, &traceback);
    kept = PyTuple_New(count);
    for (i = 0; kept != NULL && i < count; i++) {
        PyObject *bytes = PyBytes_CheckExact(items[i]) ? Py_NewRef(items[i]) : PyBytes_FromObject(items[i]);
        if (bytes == NULL) {
            Py_CLEAR(kept);
        } else {
            PyTuple_SetItem(kept, i, bytes);
        }
    }
    if (kept == NULL) {
        PyErr_Clear();
        kept = Py_NewRef(Py_None);
    }
    PyErr_Restore(type, value, traceback);
    return kept;
}

/* Whether these are the buffers of keep_buffers(). */
static int
same_buffers(PyObject *kept, PyObject *const *items, const gather *g)
{
    size_t i;
    if (kept == NULL || !PyTuple_Check(kept) || PyTuple_Size(kept) != (Py_ssize_t)g->count) {
        return 0;
    }
    for (i = 0; i < g->count; i++) {
        PyObject *bytes = PyTuple_GetItem(kept, (Py_ssize_t)i);
        const hv_span *span = &g->spans[i + 1];
        if (bytes != items[i] && ((size_t)PyBytes_Size(bytes) != span->length ||
                                  memcmp(PyBytes_AsString(bytes), span->base, span->length) != 0)) {
            return 0;
        }
    }
    return 1;
}

static void
outbox_clear(hv_outbox *out)
{
    PyObject *buffers = out->buffers;
    hv_cell_set(&out->size, 0);
    out->buffers = NULL;
    out->orphaned = 0;
    Py_XDECREF(buffers);
}

static void
message_takes(hv_message *m, const gather *g)
{
    m->spans = g->spans;
    m->span_count = g->count + 1;
    m->iov = g->iov;
}

/* Begins to send, or continues. HV_DONE: end_send() is due. */
static hv_status
begin_send(hv_message *m, const gather *g, PyObject *const *items)
{
    hv_outbox *out = &m->s->out;
    hv_status status = take_turn(m, &m->s->sending);
    if (status != HV_DONE) {
        return status;
    }
    if (out->size == 0 && hv_cell_get(&m->s->send_lost) == 0) {
        out->sent = 0;
        hv_cell_set(&out->size, (int64_t)g->total);
    } else if (out->orphaned || !same_buffers(out->buffers, items, g)) {
        refuse_send(m->s);
        hv_turn_end(m->s, &m->s->sending, m->me);
        return HV_RAISED;
    }
    m->sends = 1;
    return HV_DONE;
}

/* Keeps what is needed to continue, if something is left, and ends the turn if that is not done. */
static void
end_send(hv_message *m, const gather *g, PyObject *const *items)
{
    hv_outbox *out = &m->s->out;
    if (!m->sends) {
        return;
    }
    if (out->sent == out->size || out->sent == 0 || !hv_gate_is_open(&m->s->gate)) {
        outbox_clear(out);
    } else if (out->buffers == NULL) {
        out->buffers = keep_buffers(items, (Py_ssize_t)g->count);
    }
    hv_turn_end(m->s, &m->s->sending, m->me);
}

static PyObject *
sock_send_message(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    hv_socket *s = state_of(self);
    hv_message m;
    hv_status status;
    gather g;
    if (!gather_message(&g, args, nargs)) {
        return NULL;
    }
    message_init(&m, s);
    message_takes(&m, &g);
    status = begin_send(&m, &g, args);
    if (status == HV_DONE) {
        hv_message_next(&m);
        status = drive(s, &m.op, HV_READY);
        end_send(&m, &g, args);
    }
    gather_release(&g);
    return status == HV_DONE ? Py_NewRef(Py_None) : fail_message(self, &m, status, "send_message");
}

/* ---- receiving ---- */

static void
inbox_clear(hv_inbox *in)
{
    Py_CLEAR(in->store);
    hv_cell_set(&in->state, HV_INBOX_EMPTY);
    in->header_got = 0;
    in->size = 0;
    in->got = 0;
    Py_CLEAR(in->request);
}

/* A message of a closed socket cannot be continued. If a thread is sending or receiving it, that thread forgets it. */
static void
forget_messages(hv_socket *s)
{
    long me = hv_thread_id();
    if (hv_turn_seize(&s->sending, me)) {
        outbox_clear(&s->out);
        hv_turn_end(s, &s->sending, me);
    }
    if (hv_turn_seize(&s->receiving, me)) {
        inbox_clear(&s->in);
        hv_turn_end(s, &s->receiving, me);
    }
}

/* Begins a receive of this kind, or continues it. HV_DONE: end_receive() is due. */
static hv_status
begin_receive(hv_message *m, int kind, size_t size)
{
    hv_inbox *in = &m->s->in;
    hv_status status = take_turn(m, &m->s->receiving);
    if (status != HV_DONE) {
        return status;
    }
    if (in->state == HV_INBOX_EMPTY) {
        inbox_clear(in);
        hv_cell_set(&in->state, kind);
        in->header_got = kind == HV_INBOX_EXACTLY ? sizeof in->header : 0;
        in->size = size;
    } else if (in->state != kind || (kind == HV_INBOX_EXACTLY && in->size != size)) {
        refuse_receive(in->state);
        hv_turn_end(m->s, &m->s->receiving, m->me);
        return HV_RAISED;
    }
    m->receives = 1;
    return HV_DONE;
}

static int
inbox_make_store(hv_inbox *in)
{
    PyObject *store = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)in->size);
    if (store == NULL) {
        return 0;
    }
    in->store = store;
    in->memory = PyBytes_AsString(store);
    return 1;
}

/* Transfers until the end or until something is in the way; the outcome is set if it is HV_DONE. */
static hv_status
run_message(hv_message *m)
{
    hv_status status = hv_message_next(m);
    for (;;) {
        if (status == HV_READY) {
            status = drive(m->s, &m->op, HV_READY);
        }
        if (status != HV_DONE || m->outcome != HV_MESSAGE_NEEDS_ROOM) {
            return status;
        }
        if (!inbox_make_store(&m->s->in)) {
            return HV_RAISED;
        }
        status = hv_message_next(m);
    }
}

/* Keeps in the socket what has arrived in the caller's memory, unless it cannot be continued. False with
 * an exception set. */
static int
inbox_keep(hv_socket *s, const char *room)
{
    hv_inbox *in = &s->in;
    if (!hv_gate_is_open(&s->gate)) {
        inbox_clear(in);
        return 1;
    }
    if (in->got > 0 && in->store == NULL) {
        PyObject *type, *value, *traceback;
        int kept;
        PyErr_Fetch(&type, &value, &traceback);
        kept = inbox_make_store(in);
        if (!kept) {
            Py_XDECREF(type);
            Py_XDECREF(value);
            Py_XDECREF(traceback);
            hv_cell_set(&in->state, HV_INBOX_LOST);
            return 0;
        }
        memcpy(in->memory, room, in->got);
        PyErr_Restore(type, value, traceback);
    }
    if (in->got == 0 && in->request == NULL && (in->state == HV_INBOX_EXACTLY || in->header_got == 0)) {
        inbox_clear(in);
    }
    return 1;
}

/* What was received, as the method returns it; the inbox is empty then. */
static PyObject *
deliver(hv_inbox *in, const char *room, Py_buffer *into)
{
    PyObject *result;
    if (into != NULL) {
        if (in->store != NULL) {
            memcpy(into->buf, in->memory, in->size);
        }
        result = in->state == HV_INBOX_MESSAGE ? PyLong_FromSize_t(in->size) : Py_NewRef(Py_None);
    } else if (in->store != NULL) {
        result = in->store;
        in->store = NULL;
    } else {
        result = PyBytes_FromStringAndSize(room, (Py_ssize_t)in->size);
    }
    if (result == NULL) {
        hv_cell_set(&in->state, HV_INBOX_LOST);
        return NULL;
    }
    inbox_clear(in);
    return result;
}

/* The peer has ended the stream: between two messages, or where one is not complete. */
static void
raise_ended(const hv_inbox *in, const char *room)
{
    int headless = in->header_got < sizeof in->header;
    size_t got = headless ? in->header_got : in->got;
    const char *partial = headless ? (const char *)in->header : in->store != NULL ? in->memory : room;
    PyObject *errors, *bytes, *error;
    if (got == 0 && (headless || in->state == HV_INBOX_EXACTLY)) {
        PyErr_SetString(PyExc_EOFError, "the peer has ended the stream");
        return;
    }
    errors = PyImport_ImportModule("hvsock._errors");
    bytes = errors == NULL ? NULL : PyBytes_FromStringAndSize(partial, (Py_ssize_t)got);
    error = bytes == NULL ? NULL
                          : PyObject_CallMethod(errors, "IncompleteReadError", "On", bytes,
                                                (Py_ssize_t)(headless ? sizeof in->header : in->size));
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    }
    Py_XDECREF(errors);
    Py_XDECREF(bytes);
    Py_XDECREF(error);
}

static void
raise_too_long(PyObject *self, size_t size, size_t limit, const char *operation)
{
    PyObject *text = PyUnicode_FromFormat("a message of %zu bytes is announced, and the limit is %zu", size, limit);
    PyObject *error = text == NULL ? NULL : PyObject_CallFunction(PyExc_OSError, "iO", HV_ERROR_TOO_LONG, text);
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        explain(self, operation);
    }
    Py_XDECREF(text);
    Py_XDECREF(error);
}

/* Ends this thread's turn with the result, or with an exception that says why there is none. */
static PyObject *
end_receive(PyObject *self, hv_message *m, hv_status status, const char *operation, Py_buffer *into)
{
    hv_inbox *in = &m->s->in;
    PyObject *result = NULL;
    int whole = status == HV_DONE && m->outcome == HV_MESSAGE_WHOLE;
    int explained = 0;
    size_t size = in->size; /* others may receive as soon as the turn is over */
    if (whole) {
        result = deliver(in, m->room, into);
    } else if (status == HV_DONE && m->outcome == HV_MESSAGE_ENDED) {
        raise_ended(in, m->room);
        if (PyErr_ExceptionMatches(PyExc_EOFError)) {
            inbox_clear(in);
        } else {
            inbox_keep(m->s, m->room); /* the next call says it */
        }
    } else if (inbox_keep(m->s, m->room)) {
        explained = 1;
    }
    hv_turn_end(m->s, &m->s->receiving, m->me);
    if (explained && status == HV_DONE) {
        raise_too_long(self, size, m->limit, operation);
    } else if (explained) {
        fail_message(self, m, status, operation);
    }
    return result;
}

/* Receives something whole into bytes, small things by way of the stack. */
static PyObject *
receive_bytes(PyObject *self, hv_message *m, int kind, size_t size, const char *operation)
{
    char room[RECV_ON_STACK];
    hv_iovec iov;
    PyObject *result;
    hv_status status = begin_receive(m, kind, size);
    if (status != HV_DONE) {
        return fail_message(self, m, status, operation);
    }
    m->iov = &iov;
    m->room = room;
    m->room_size = sizeof room;
    result = end_receive(self, m, run_message(m), operation, NULL);
    free(m->heap);
    return result;
}

/* Receives something whole into a buffer of the caller. */
static PyObject *
receive_into(PyObject *self, PyObject *buffer, int kind, const char *operation)
{
    hv_message m;
    hv_iovec iov;
    hv_status status;
    Py_buffer view;
    PyObject *result;
    if (!get_writable(buffer, operation, &view)) {
        return NULL;
    }
    message_init(&m, state_of(self));
    status = begin_receive(&m, kind, (size_t)view.len);
    if (status == HV_DONE) {
        m.iov = &iov;
        m.room = view.buf;
        m.room_size = m.limit = (size_t)view.len;
        result = end_receive(self, &m, run_message(&m), operation, &view);
    } else {
        result = fail_message(self, &m, status, operation);
    }
    release_writable(&view);
    return result;
}

static PyObject *
sock_recv_exactly(PyObject *self, PyObject *size)
{
    hv_message m;
    Py_ssize_t length;
    if (!as_length(size, "size must not be negative", &length)) {
        return NULL;
    }
    message_init(&m, state_of(self));
    return receive_bytes(self, &m, HV_INBOX_EXACTLY, (size_t)length, "recv_exactly");
}

static PyObject *
sock_recv_exactly_into(PyObject *self, PyObject *buffer)
{
    return receive_into(self, buffer, HV_INBOX_EXACTLY, "recv_exactly_into");
}

/* The argument max_size: by keyword, or at a position where that is allowed. */
static int
as_limit(PyObject *const *args, Py_ssize_t nargs, Py_ssize_t most, PyObject *kwnames, const char *operation,
         size_t *limit)
{
    Py_ssize_t length, keywords = kwnames == NULL ? 0 : PyTuple_Size(kwnames);
    PyObject *given = most > 0 && nargs > 0 ? args[0] : NULL;
    *limit = LIMIT_BY_DEFAULT;
    if (most > 0 && nargs > most) {
        return check_count(operation, nargs, 0, most);
    }
    if (keywords > 0) {
        PyObject *name = PyTuple_GetItem(kwnames, 0);
        if (given != NULL || keywords > 1 || PyUnicode_CompareWithASCIIString(name, "max_size") != 0) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected or repeated argument %R", operation,
                         PyTuple_GetItem(kwnames, keywords - 1));
            return 0;
        }
        given = args[nargs];
    }
    if (given != NULL) {
        if (!as_length(given, "max_size must not be negative", &length)) {
            return 0;
        }
        *limit = (size_t)length;
    }
    return 1;
}

static PyObject *
sock_recv_message(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    hv_message m;
    size_t limit;
    if (!as_limit(args, nargs, 1, kwnames, "recv_message", &limit)) {
        return NULL;
    }
    message_init(&m, state_of(self));
    m.limit = limit;
    m.heap_max = RECV_ON_HEAP;
    return receive_bytes(self, &m, HV_INBOX_MESSAGE, 0, "recv_message");
}

static PyObject *
sock_recv_message_into(PyObject *self, PyObject *buffer)
{
    return receive_into(self, buffer, HV_INBOX_MESSAGE, "recv_message_into");
}

/* ---- a request and its reply ---- */

/* It is this thread's turn to receive: its turn to send, too, unless the reply to this very request is due. */
static hv_status
begin_request(hv_message *m, const gather *g, PyObject *const *items, int is_new)
{
    hv_inbox *in = &m->s->in;
    if (same_buffers(in->request, items, g)) {
        return HV_DONE;
    }
    if (in->request != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the reply to another request is due: recv_message() takes it");
        return HV_RAISED;
    }
    if (!is_new) {
        refuse_receive(in->state);
        return HV_RAISED;
    }
    return begin_send(m, g, items);
}

static PyObject *
sock_exchange(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    char room[RECV_ON_STACK];
    hv_socket *s = state_of(self);
    hv_message m;
    hv_status status;
    gather g;
    PyObject *result;
    size_t limit;
    if (!as_limit(args, nargs, 0, kwnames, "exchange", &limit) || !gather_message(&g, args, nargs)) {
        return NULL;
    }
    message_init(&m, s);
    message_takes(&m, &g);
    m.limit = limit;
    m.room = room;
    m.room_size = sizeof room;
    m.heap_max = RECV_ON_HEAP;
    status = begin_receive(&m, HV_INBOX_MESSAGE, 0);
    if (status != HV_DONE) {
        gather_release(&g);
        return fail_message(self, &m, status, "exchange");
    }
    status = begin_request(&m, &g, args, s->in.header_got == 0);
    if (status == HV_DONE) {
        status = run_message(&m);
        if (hv_message_is_sent(&m) && s->in.request == NULL && !(status == HV_DONE && m.outcome == HV_MESSAGE_WHOLE)) {
            s->in.request = keep_buffers(args, nargs);
        }
        end_send(&m, &g, args);
    }
    result = end_receive(self, &m, status, "exchange", NULL);
    free(m.heap);
    Py_XDECREF((PyObject *)m.sent);
    gather_release(&g);
    return result;
}

#endif
