/* The arguments of methods, as C values. */
#ifndef SOCK_ARGUMENTS_H
#define SOCK_ARGUMENTS_H

#include "hv_abi.h"

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

HV_COLD static int
refuse_buffer(PyObject *object, const char *operation)
{
    PyObject *name = PyType_GetName(Py_TYPE(object));
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError, "%s() argument 1 must be read-write bytes-like object, not %V", operation, name, "?");
    Py_XDECREF(name);
    return 0;
}

/* A buffer to receive into; PyBuffer_Release() is due if it is true. */
static inline int
get_writable(PyObject *object, const char *operation, Py_buffer *view)
{
    return PyObject_GetBuffer(object, view, PyBUF_WRITABLE) == 0 || refuse_buffer(object, operation);
}

#endif
