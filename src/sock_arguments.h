/* The arguments of methods, as C values. */
#ifndef SOCK_ARGUMENTS_H
#define SOCK_ARGUMENTS_H

#include "hv_abi.h"

#include "hv_platform.h"

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

/* The buffer functions of bytearray, which most receives are into: the way through PyObject_GetBuffer() and back is a
 * tenth of what such a call costs. Set once, with the first import, since other interpreters may be using them. */
typedef int (*buffer_getter)(PyObject *object, Py_buffer *view, int flags); /* 3.11's headers do not name these two */
typedef void (*buffer_releaser)(PyObject *object, Py_buffer *view);
static buffer_getter bytearray_get;
static buffer_releaser bytearray_release;

static void
find_bytearray_buffer(void)
{
    hv_lock_acquire(&hv_once);
    if (bytearray_get == NULL) {
        bytearray_get = (buffer_getter)PyType_GetSlot(&PyByteArray_Type, Py_bf_getbuffer);
        bytearray_release = (buffer_releaser)PyType_GetSlot(&PyByteArray_Type, Py_bf_releasebuffer);
    }
    hv_lock_release(&hv_once);
}

/* A buffer to receive into; release_writable() is due if it is true. */
static inline int
get_writable(PyObject *object, const char *operation, Py_buffer *view)
{
    int failed = PyByteArray_CheckExact(object) ? bytearray_get(object, view, PyBUF_WRITABLE)
                                                : PyObject_GetBuffer(object, view, PyBUF_WRITABLE);
    return failed == 0 || refuse_buffer(object, operation);
}

static inline void
release_writable(Py_buffer *view)
{
    PyObject *object = view->obj;
    if (object != NULL && PyByteArray_CheckExact(object)) {
        bytearray_release(object, view);
        Py_DECREF(object);
    } else {
        PyBuffer_Release(view);
    }
}

#endif
