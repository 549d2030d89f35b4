/* The relay's pump: moves bytes between two connected sockets, both ways at once, until both
 * directions have ended. The type Pump is what Python sees of it; hv_pump_posix.h has the loop. Windows has no socket that
 * needs it. */
#ifndef HV_PUMP_H
#define HV_PUMP_H

#include "relay_arguments.h"

/* What part of `hold` an answer may pause that has begun. */
#define HV_PUMP_HOLD_PART 5

typedef enum {
    HV_PUMP_RUNS,
    HV_PUMP_ENDED,   /* both directions; pair->error is that of a send, or 0 */
    HV_PUMP_STOPPED, /* by hv_stop_set() */
    HV_PUMP_IDLE,    /* nothing moved for so long */
    HV_PUMP_FAILED,  /* pair->error: one of the sockets is broken */
} hv_pump_status;

/* One direction. It receives only when all it has received before is sent: that is the backpressure. */
typedef struct {
    hv_handle from, to;
    char *room;
    size_t start, end; /* what was received and is not sent yet lies between */
    int ended;
    hv_counter *count;
} hv_flow;

typedef struct {
    hv_flow flows[2];    /* from a to b, and back */
    int64_t idle;        /* ns, < 0 for ever */
    int64_t hold;        /* ns that the end of a's stream is kept from b while b has not ended its own, < 0 for none */
    int64_t active;      /* hv_now() of the last transfer; kept only if one of the two is a limit */
    const hv_flow *last; /* the flow of the last transfer */
    int held;            /* the end of a's stream is being kept */
    int error;
} hv_pair;

/* The platform's part, with hv_stop and hv_pump_run(). */
static void hv_end_stream(hv_handle handle);
static int hv_error_is_pipe(int error);

static inline int
hv_flow_is_sending(const hv_flow *flow)
{
    return flow->start < flow->end;
}

static inline int
hv_pair_has_ended(const hv_pair *pair)
{
    return pair->flows[0].ended && pair->flows[1].ended;
}

static inline void
hv_pair_is_active(hv_pair *pair)
{
    if (pair->idle >= 0 || pair->hold >= 0) {
        pair->active = hv_now();
    }
}

/* ns that the end may still be kept. An answer to a's last bytes may take its time; once it has begun, it follows soon. */
static inline int64_t
hv_pair_hold_left(const hv_pair *pair)
{
    int64_t hold = pair->last == &pair->flows[1] ? pair->hold / HV_PUMP_HOLD_PART : pair->hold;
    int64_t left = pair->active + hold - hv_now();
    return left < 0 ? 0 : left;
}

static inline void
hv_pair_release(hv_pair *pair)
{
    if (pair->held) {
        pair->held = 0;
        hv_end_stream(pair->flows[0].to);
    }
}

/* A peer that takes the end of one stream for that of both would lose what it has not sent yet. */
static inline void
hv_pair_pass_end(hv_pair *pair, const hv_flow *flow)
{
    if (flow == &pair->flows[0] && pair->hold >= 0 && !pair->flows[1].ended) {
        pair->held = 1;
    } else {
        hv_end_stream(flow->to);
    }
}

/* Nothing at all is the end of the stream, which is passed on. */
static inline void
hv_flow_received(hv_pair *pair, hv_flow *flow, size_t n)
{
    flow->start = 0;
    flow->end = n;
    if (n == 0) {
        flow->ended = 1;
        hv_pair_pass_end(pair, flow);
    } else {
        pair->last = flow;
    }
    hv_pair_is_active(pair);
}

static inline void
hv_flow_sent(hv_pair *pair, hv_flow *flow, size_t n)
{
    flow->start += n;
    hv_counter_add(flow->count, n);
    hv_pair_is_active(pair);
}

/* The other direction continues: what the peer sent before it stopped reading can still be received. */
static inline void
hv_flow_is_refused(hv_pair *pair, hv_flow *flow, int error)
{
    flow->start = flow->end = 0;
    flow->ended = 1;
    if (!hv_error_is_pipe(error)) {
        pair->error = error;
    }
}

/* Nanoseconds that may pass without a transfer; < 0 for ever. */
static inline int64_t
hv_pair_idle_left(const hv_pair *pair)
{
    int64_t left = pair->idle < 0 ? -1 : pair->active + pair->idle - hv_now();
    return pair->idle >= 0 && left < 0 ? 0 : left;
}

/* Nanoseconds after which the pair is worth another look: 0 if it has been idle for too long, < 0 for ever.
 * An end that was kept for long enough is passed on. */
static inline int64_t
hv_pair_left(hv_pair *pair)
{
    int64_t left = hv_pair_idle_left(pair);
    int64_t hold = pair->held && !hv_flow_is_sending(&pair->flows[1]) ? hv_pair_hold_left(pair) : -1;
    if (hold == 0) {
        hv_pair_release(pair);
    }
    return hold > 0 && (left < 0 || hold < left) ? hold : left;
}

#include "hv_pump_posix.h"

/* ---- the type ---- */

typedef struct {
    PyObject_HEAD hv_stop stop;
    hv_counter counts[2];
} pump_object;

static PyObject *
pump_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    pump_object *self;
    int error;
    if (PyTuple_Size(args) != 0 || kwargs != NULL) {
        PyErr_SetString(PyExc_TypeError, "Pump() takes no arguments");
        return NULL;
    }
    self = (pump_object *)alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    error = hv_stop_open(&self->stop);
    if (error != 0) {
        hv_stop_clear(&self->stop);
        Py_DECREF(self);
        return raise_os_error(error);
    }
    return (PyObject *)self;
}

static void
pump_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    hv_stop_close(&((pump_object *)self)->stop);
    release(self);
    Py_DECREF(type);
}

static PyObject *
pump_run(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    pump_object *self = (pump_object *)object;
    hv_pair pair = {0};
    hv_flow *there = &pair.flows[0], *back = &pair.flows[1];
    hv_pump_status status;
    if (nargs != 4) {
        PyErr_Format(PyExc_TypeError, "run() takes 4 positional arguments (%zd given)", nargs);
        return NULL;
    }
    if (!as_handle(args[0], &there->from) || !as_handle(args[1], &back->from) ||
        !as_seconds(args[2], "idle timeout", &pair.idle) || !as_seconds(args[3], "hold", &pair.hold)) {
        return NULL;
    }
    there->to = back->from;
    back->to = there->from;
    there->count = &self->counts[0];
    back->count = &self->counts[1];
    there->room = PyMem_Malloc((size_t)2 * HV_PUMP_ROOM);
    if (there->room == NULL) {
        return PyErr_NoMemory();
    }
    back->room = there->room + HV_PUMP_ROOM;
    Py_BEGIN_ALLOW_THREADS
    hv_pair_is_active(&pair);
    status = hv_pump_run(&pair, &self->stop);
    Py_END_ALLOW_THREADS
    PyMem_Free(there->room);
    if (status == HV_PUMP_IDLE) {
        PyErr_SetString(PyExc_TimeoutError, "no data in either direction for the idle timeout");
        return NULL;
    }
    if (status != HV_PUMP_STOPPED && pair.error != 0) {
        return raise_os_error(pair.error);
    }
    return PyBool_FromLong(status == HV_PUMP_ENDED);
}

static PyObject *
pump_stop(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    hv_stop_set(&((pump_object *)self)->stop);
    return Py_NewRef(Py_None); /* not Py_RETURN_NONE */
}

static PyObject *
pump_get_transferred(PyObject *self, void *Py_UNUSED(closure))
{
    hv_counter *counts = ((pump_object *)self)->counts;
    return Py_BuildValue("KK", (unsigned long long)hv_counter_get(&counts[0]),
                         (unsigned long long)hv_counter_get(&counts[1]));
}

PyDoc_STRVAR(pump_doc, "Pump()\n--\n\n"
                       "Moves bytes between pairs of connected sockets, each pair in a thread of its own.");
PyDoc_STRVAR(pump_run_doc,
             "run($self, a, b, idle_timeout, hold, /)\n--\n\n"
             "Move bytes both ways between two handles until both streams have ended; what ends is passed on.\n"
             "\n"
             "The end of a's stream is kept from b until b has ended its own, a is gone, or nothing was moved for\n"
             "`hold` seconds, a fifth of them if b was the last to send. None: no idle timeout, and nothing is kept.\n"
             "The handles become non-blocking and stay open. True: both streams have ended; False: stop() was called.\n"
             "Signals do not interrupt it.");
PyDoc_STRVAR(pump_stop_doc, "stop($self)\n--\n\n"
                            "Make every run() return False, those to come too.");
PyDoc_STRVAR(pump_transferred_doc, "Bytes moved so far by every run(): (from a to b, from b to a).");

static PyMethodDef pump_methods[] = {
    {"run", (PyCFunction)(void (*)(void))pump_run, METH_FASTCALL, pump_run_doc},
    {"stop", pump_stop, METH_NOARGS, pump_stop_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pump_getset[] = {
    {"transferred", pump_get_transferred, NULL, pump_transferred_doc, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pump_slots[] = {
    {Py_tp_doc, (void *)pump_doc}, {Py_tp_new, (void *)pump_new}, {Py_tp_dealloc, (void *)pump_dealloc},
    {Py_tp_methods, pump_methods}, {Py_tp_getset, pump_getset},   {0, NULL},
};

static int
pump_add_type(PyObject *module)
{
    PyType_Spec spec = {
        .name = "hvsock._hvsock.Pump",
        .basicsize = sizeof(pump_object),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
        .slots = pump_slots,
    };
    return add_type(module, &spec);
}

#endif
