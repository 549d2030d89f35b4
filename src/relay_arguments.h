/* What the relay's two types have in common: the room of a direction, arguments, and how a type is added. */
#ifndef RELAY_ARGUMENTS_H
#define RELAY_ARGUMENTS_H

#include "sock_process.h"

/* One direction's room. Measured from 8 KiB on: the cost of a byte no longer falls above 128 KiB, and
 * splice() through a pipe costs more than this copy unless both are AF_UNIX sockets.
 * Pages that no data has reached are never touched. */
#define HV_PUMP_ROOM 131072

/* Seconds, or None: < 0. */
static int
as_seconds(PyObject *object, const char *what, int64_t *ns)
{
    double seconds = object == Py_None ? -1.0 : PyFloat_AsDouble(object);
    if (seconds == -1.0 && PyErr_Occurred()) {
        return 0;
    }
    if (object != Py_None && !(seconds > 0.0)) {
        PyErr_Format(PyExc_ValueError, "the %s must be above zero", what);
        return 0;
    }
    *ns = seconds < 0.0 ? -1 : (int64_t)((seconds > 3e9 ? 3e9 : seconds) * 1e9) + 1;
    return 1;
}

static int
as_handle(PyObject *object, hv_handle *handle)
{
    long long wide = PyLong_AsLongLong(object);
    *handle = (hv_handle)wide;
    return !(wide == -1 && PyErr_Occurred());
}

/* Adds a type to the module, by the last part of its name; 0, or -1 with an exception set. */
static int
add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int result = type == NULL ? -1 : PyModule_AddObjectRef(module, strrchr(spec->name, '.') + 1, type);
    Py_XDECREF(type);
    return result;
}

#endif
