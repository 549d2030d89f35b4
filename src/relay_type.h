/* The type RelayEngine, what Python sees of hv_relay.h: its arguments, its numbers and its log. */
#ifndef RELAY_TYPE_H
#define RELAY_TYPE_H

#ifdef _WIN32
#include "relay_arguments.h"
#else
#include "hv_pump.h"
#endif

#if defined(__linux__) || defined(_WIN32) || defined(__APPLE__) || defined(__FreeBSD__)
#include "hv_relay.h"

typedef struct {
    PyObject_HEAD hv_engine engine;
} engine_object;

static hv_engine *
engine_of(PyObject *self)
{
    return &((engine_object *)self)->engine;
}

/* ---- arguments ---- */

static int
take_listeners(hv_engine *engine, PyObject *tuple)
{
    Py_ssize_t i, count = PyTuple_Size(tuple);
    if (count > HV_MOST_LISTENERS) {
        PyErr_Format(PyExc_ValueError, "at most %d listeners", HV_MOST_LISTENERS);
        return 0;
    }
    for (i = 0; i < count; i++) {
        if (!as_handle(PyTuple_GetItem(tuple, i), &engine->listeners[i])) {
            return 0;
        }
    }
    engine->listener_count = (int)count;
    return 1;
}

/* (family, proto, the bytes of a sockaddr) */
static int
take_target(hv_target *target, PyObject *tuple)
{
    const char *bytes;
    Py_ssize_t length;
    PyObject *address;
    if (!PyArg_ParseTuple(tuple, "iiS", &target->family, &target->proto, &address)) {
        return 0;
    }
    bytes = PyBytes_AsString(address);
    length = PyBytes_Size(address);
    if (length > (Py_ssize_t)sizeof target->address) {
        PyErr_SetString(PyExc_ValueError, "the address is too long");
        return 0;
    }
    memcpy(&target->address, bytes, (size_t)length);
    target->length = (hv_socklen)length;
    return 1;
}

static int
take_targets(hv_engine *engine, PyObject *tuple)
{
    Py_ssize_t i, count = PyTuple_Size(tuple);
    engine->targets = calloc((size_t)count + 1, sizeof *engine->targets);
    if (engine->targets == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    for (i = 0; i < count; i++) {
        if (!take_target(&engine->targets[i], PyTuple_GetItem(tuple, i))) {
            return 0;
        }
    }
    engine->target_count = (int)count;
    if (engine->listener_count > 0 && count == 0) {
        PyErr_SetString(PyExc_ValueError, "listeners need a target");
        return 0;
    }
    return 1;
}

/* ---- the type ---- */

static int
engine_take(hv_engine *engine, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"listeners", "targets", "connect_timeout", "idle_timeout", "max_connections",
                            "verbose",   NULL};
    PyObject *listeners, *targets, *connect_timeout, *idle_timeout;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!OOlp", names, &PyTuple_Type, &listeners, &PyTuple_Type,
                                     &targets, &connect_timeout, &idle_timeout, &engine->most, &engine->is_verbose)) {
        return 0;
    }
    return take_listeners(engine, listeners) && take_targets(engine, targets) &&
           as_seconds(connect_timeout, "connect timeout", &engine->connect_limit) &&
           as_seconds(idle_timeout, "idle timeout", &engine->idle_limit);
}

static PyObject *
engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    hv_engine_init(engine_of(self));
    if (!engine_take(engine_of(self), args, kwargs)) {
        Py_DECREF(self);
        return NULL;
    }
    return self;
}

/* No thread is in run(): it would have a reference. */
static void
engine_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    hv_engine_destroy(engine_of(self));
    release(self);
    Py_DECREF(type);
}

static PyObject *
engine_run(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = hv_engine_run(engine_of(self));
    Py_END_ALLOW_THREADS
    return error != 0 ? raise_os_error(error) : Py_NewRef(Py_None);
}

static PyObject *
engine_adopt(PyObject *self, PyObject *args)
{
    long long client, target;
    PyObject *name;
    hv_origin origin;
    int error;
    if (!PyArg_ParseTuple(args, "LLS", &client, &target, &name)) {
        return NULL;
    }
    hv_origin_set(&origin, PyBytes_AsString(name), (size_t)PyBytes_Size(name));
    error = hv_engine_adopt(engine_of(self), (hv_handle)client, (hv_handle)target, &origin);
    return error != 0 ? raise_os_error(error) : Py_NewRef(Py_None);
}

static PyObject *
engine_stop_listening(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    Py_BEGIN_ALLOW_THREADS
    hv_engine_stop_listening(engine_of(self));
    Py_END_ALLOW_THREADS
    return Py_NewRef(Py_None);
}

static PyObject *
engine_abort(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    hv_engine_set_state(engine_of(self), HV_ENGINE_ABORTS);
    return Py_NewRef(Py_None);
}

static PyObject *
engine_end(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    hv_engine_set_state(engine_of(self), HV_ENGINE_OVER);
    return Py_NewRef(Py_None);
}

static PyObject *
engine_wait(PyObject *self, PyObject *args)
{
    int running, is_so;
    double seconds;
    if (!PyArg_ParseTuple(args, "id", &running, &seconds)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    is_so = hv_engine_wait(engine_of(self), running, (int64_t)(seconds * 1e9));
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(is_so);
}

static PyObject *
engine_next_log(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    static const char *const kinds[] = {"connected", "ended", "aborted", "failed", "refused", "accept"};
    hv_log *entry;
    PyObject *origin, *result;
    Py_BEGIN_ALLOW_THREADS
    entry = hv_engine_next_log(engine_of(self));
    Py_END_ALLOW_THREADS
    if (entry == NULL) {
        return Py_NewRef(Py_None);
    }
    origin = PyBytes_FromStringAndSize(entry->origin.bytes, entry->origin.length);
    result = origin == NULL ? NULL : Py_BuildValue("siN", kinds[entry->kind], entry->error, origin);
    free(entry);
    return result;
}

static PyObject *
engine_get_counters(PyObject *self, void *Py_UNUSED(closure))
{
    hv_engine *engine = engine_of(self);
    const hv_counter *counters[] = {&engine->total,   &engine->refused,  &engine->failed,
                                    &engine->aborted, &engine->moved[0], &engine->moved[1]};
    unsigned long long n[6];
    size_t i;
    for (i = 0; i < 6; i++) {
        n[i] = (unsigned long long)hv_counter_get(counters[i]);
    }
    return Py_BuildValue("lKKKKKK", hv_word_get(&engine->open), n[0], n[1], n[2], n[3], n[4], n[5]);
}

PyDoc_STRVAR(engine_doc,
             "RelayEngine(listeners, targets, connect_timeout, idle_timeout, max_connections, verbose)\n--\n\n"
             "Relays connections in the threads that call run(), without Python.\n"
             "\n"
             "listeners: handles, non-blocking, whose clients are connected to the targets, tried in their\n"
             "order: (family, proto, bytes of a sockaddr). Both may be empty: adopt() only.");
PyDoc_STRVAR(engine_run_doc, "run($self)\n--\n\n"
                             "Serve, until end().");
PyDoc_STRVAR(engine_adopt_doc, "adopt($self, client, target, name, /)\n--\n\n"
                               "Relay between two connected handles, which the engine owns from then on.\n"
                               "\n"
                               "OSError: nothing runs any more; the handles stay the caller's.");
PyDoc_STRVAR(engine_stop_listening_doc, "stop_listening($self)\n--\n\n"
                                        "Accept no more; afterwards the listeners can be closed.");
PyDoc_STRVAR(engine_abort_doc, "abort($self)\n--\n\n"
                               "Abort all connections, and those to come.");
PyDoc_STRVAR(engine_end_doc, "end($self)\n--\n\n"
                             "Have run() and next_log() return.");
PyDoc_STRVAR(engine_wait_doc, "wait($self, running, seconds, /)\n--\n\n"
                              "Wait until so many threads run, or, with 0, until no connection is open.\n"
                              "\n"
                              "False: that took longer than so many seconds.");
PyDoc_STRVAR(engine_next_log_doc,
             "next_log($self)\n--\n\n"
             "Wait for what is to be logged: (kind, error, the client's sockaddr or the name it was adopted with).\n"
             "\n"
             "None: after end(). Error 0 is the engine's own reason.");
PyDoc_STRVAR(engine_counters_doc, "(open, total, refused, failed, aborted, bytes to target, bytes to client).");

static PyMethodDef engine_methods[] = {
    {"run", engine_run, METH_NOARGS, engine_run_doc},
    {"adopt", engine_adopt, METH_VARARGS, engine_adopt_doc},
    {"stop_listening", engine_stop_listening, METH_NOARGS, engine_stop_listening_doc},
    {"abort", engine_abort, METH_NOARGS, engine_abort_doc},
    {"end", engine_end, METH_NOARGS, engine_end_doc},
    {"wait", engine_wait, METH_VARARGS, engine_wait_doc},
    {"next_log", engine_next_log, METH_NOARGS, engine_next_log_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef engine_getset[] = {
    {"counters", engine_get_counters, NULL, engine_counters_doc, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, (void *)engine_doc},         {Py_tp_new, (void *)engine_new},
    {Py_tp_dealloc, (void *)engine_dealloc}, {Py_tp_methods, (void *)engine_methods},
    {Py_tp_getset, (void *)engine_getset},   {0, NULL},
};

static int
engine_add_type(PyObject *module)
{
    PyType_Spec spec = {
        .name = "hvsock._hvsock.RelayEngine",
        .basicsize = sizeof(engine_object),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
        .slots = engine_slots,
    };
    return add_type(module, &spec);
}

#ifdef _WIN32
/* The engine serves every kind of socket that there is. */
static int
pump_add_type(PyObject *Py_UNUSED(module))
{
    return 0;
}
#endif

#else

/* On other systems each connection has a Pump and a thread. */
static int
engine_add_type(PyObject *Py_UNUSED(module))
{
    return 0;
}

#endif

#endif
