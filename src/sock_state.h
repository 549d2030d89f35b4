/* The state of the module and of a socket object, and what is used of socket.socket. */
#ifndef SOCK_STATE_H
#define SOCK_STATE_H

#include "sock_process.h"

#include "hv_message.h"

/* What is used of socket.socket (`base`) and of its own base in C, looked up once for an interpreter. */
typedef struct {
    PyObject *base;
    PyObject *init;
    PyObject *fileno, *settimeout, *detach;
    PyObject *io_refs, *closed;                /* what `init` sets of its own; NULL: not known */
    initproc root_init;                        /* of the base in C */
    PyObject *timeout, *family, *kind, *proto; /* plain numbers, where the attributes of `base` are enums */
} module_state;

typedef struct {
    hv_socket socket;
    module_state *module;  /* NULL before __init__ */
    hv_cell options;       /* of Python's part, which accepted sockets inherit */
    PyObject *after_close; /* called once, after the handle is closed; or NULL. Guarded by the socket's lock */
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

static int
set_attribute(PyObject *descriptor, PyObject *self, PyObject *value)
{
    descrsetfunc set = (descrsetfunc)PyType_GetSlot(Py_TYPE(descriptor), Py_tp_descr_set);
    return set(descriptor, self, value);
}

#endif
