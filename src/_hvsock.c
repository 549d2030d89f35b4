/* hvsock._hvsock: a socket type with a data path, waiting, closing and Hyper-V addresses of its own; the rest is
 * socket.socket's. One translation unit; a call passes through three layers:
 *
 *   sock_*.h   arguments and objects; sock_driver.h owns the GIL, the gate, the deadline and the signals
 *   hv_*.h     an operation and what it moves, without Python
 *   hv_posix.h, hv_windows.h   one attempt on the system, behind the seam of hv_platform.h
 */
#include "sock_addresses.h"
#include "sock_data.h"
#include "sock_life.h"
#include "sock_messages.h"

#include "relay_type.h"

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
    "After BlockingIOError, TimeoutError or an interrupt it may be partly sent: continue by calling it again with\n"
    "the same buffers. Any other send is a RuntimeError until then. Messages of several threads never mix.\n"
    "A message has 4294967295 bytes at most; on the wire a big-endian length of 4 bytes comes first.");
PyDoc_STRVAR(recv_message_doc,
             "recv_message($self, /, max_size=16777216)\n--\n\n"
             "Receive one message.\n"
             "\n"
             "OSError (EMSGSIZE), before any of it is received, if it is longer than max_size bytes: a larger limit\n"
             "still gets it. EOFError at the end of the stream, IncompleteReadError if that is inside a message.\n"
             "After BlockingIOError, TimeoutError or an interrupt nothing is lost: continue by calling it again.");
PyDoc_STRVAR(recv_message_into_doc,
             "recv_message_into($self, buffer, /)\n--\n\n"
             "Receive one message into a writable buffer, and return its length; otherwise like recv_message().");
PyDoc_STRVAR(recv_exactly_doc,
             "recv_exactly($self, size, /)\n--\n\n"
             "Receive size bytes within one timeout.\n"
             "\n"
             "EOFError at the end of the stream, IncompleteReadError if that comes after fewer bytes.\n"
             "After BlockingIOError, TimeoutError or an interrupt nothing is lost: continue by calling it again\n"
             "with the same size.");
PyDoc_STRVAR(recv_exactly_into_doc, "recv_exactly_into($self, buffer, /)\n--\n\n"
                                    "Fill a writable buffer; otherwise like recv_exactly().");
PyDoc_STRVAR(exchange_doc,
             "exchange($self, /, *buffers, max_size=16777216)\n--\n\n"
             "Send one message and receive the next one, in one release of the GIL and within one timeout.\n"
             "\n"
             "Exchanges of several threads follow each other. After TimeoutError or an interrupt continue by calling\n"
             "it again with the same buffers, which are not sent twice; recv_message() takes the reply without that.\n"
             "Otherwise like both calls.\n"
             "The whole request is sent before the reply is received, so the peer has to take it before it answers.");
PyDoc_STRVAR(
    busy_poll_doc,
    "Microseconds, 0 to 1000000, that a receive or accept that has to wait tries before it sleeps; 0 at first.\n"
    "\n"
    "The GIL is released while it does, a core is busy, and Ctrl-C waits. When other threads take the core, the\n"
    "socket sleeps at once for a while. Accepted sockets inherit it.");
PyDoc_STRVAR(bind_doc, "bind($self, address, /)\n--\n\n"
                       "Bind to the family's own address: 36 bytes of SOCKADDR_HV, (cid, port), or a path.");
PyDoc_STRVAR(connect_doc, "connect($self, address, /)\n--\n\n"
                          "Connect to the family's own address within the timeout. After an error, close the socket.");
PyDoc_STRVAR(connect_ex_doc, "connect_ex($self, address, /)\n--\n\n"
                             "Like connect, but return the system's error code instead of raising it; 0 is success.");
PyDoc_STRVAR(accept_doc, "accept($self)\n--\n\n"
                         "Wait for a connection; return (socket, address of the peer).\n"
                         "\n"
                         "The socket is of this class if its constructor takes (family, type, proto, fileno=), else a\n"
                         "plain Socket.");
PyDoc_STRVAR(accept_plain_doc, "_accept_plain($self, cls, /)\n--\n\n"
                               "accept() with cls as the plain class, whose __init__ is not called.");
PyDoc_STRVAR(getsockname_doc, "getsockname($self)\n--\n\n"
                              "Return this socket's address.");
PyDoc_STRVAR(getpeername_doc, "getpeername($self)\n--\n\n"
                              "Return the peer's address.");
PyDoc_STRVAR(gettimeout_doc, "gettimeout($self)\n--\n\n"
                             "Return the timeout in seconds; None: calls wait without limit.");
PyDoc_STRVAR(timeout_doc, "The timeout in seconds, as gettimeout() returns it.");
PyDoc_STRVAR(settimeout_doc, "settimeout($self, value, /)\n--\n\n"
                             "Set the timeout in seconds; None blocks without limit, 0 never blocks.\n"
                             "\n"
                             "It covers a whole call. On POSIX the handle is made non-blocking unless the timeout\n"
                             "is None, on Windows in any case.");
PyDoc_STRVAR(setblocking_doc, "setblocking($self, flag, /)\n--\n\n"
                              "settimeout(None) if flag is true, settimeout(0) otherwise.");
PyDoc_STRVAR(detach_doc, "detach($self)\n--\n\n"
                         "Give the handle up without closing it, and return it.");
PyDoc_STRVAR(after_close_doc,
             "_after_close($self, call, /)\n--\n\n"
             "Have call() called once, after close() has released the handle; None: nothing any more.");
PyDoc_STRVAR(real_close_doc, "_real_close($self)\n--\n\n"
                             "Wake the calls that use the handle, and close it when they have left.");
PyDoc_STRVAR(explain_doc, "_explain($self, exception, operation, /)\n--\n\n"
                          "Called with the exception of a failed data call before it is raised.");

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
    {"_accept_plain", sock_accept_plain, METH_O, accept_plain_doc},
    {"getsockname", sock_getsockname, METH_NOARGS, getsockname_doc},
    {"getpeername", sock_getpeername, METH_NOARGS, getpeername_doc},
    {"gettimeout", sock_gettimeout, METH_NOARGS, gettimeout_doc},
    {"settimeout", sock_settimeout, METH_O, settimeout_doc},
    {"setblocking", sock_setblocking, METH_O, setblocking_doc},
    {"detach", sock_detach, METH_NOARGS, detach_doc},
    {"_after_close", sock_after_close, METH_O, after_close_doc},
    {"_real_close", sock_real_close, METH_NOARGS, real_close_doc},
    {"_explain", sock_explain, METH_VARARGS, explain_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef sock_properties[] = {
    {"busy_poll", sock_get_busy_poll, sock_set_busy_poll, busy_poll_doc, NULL},
    {"timeout", sock_get_timeout, NULL, timeout_doc, NULL},
    {"_family", sock_get_family, NULL, "The family, as a plain number; 0 before __init__.", NULL},
    {"_options", sock_get_options, sock_set_options, "A number for a subclass; accepted sockets inherit it.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot sock_slots[] = {
    {Py_tp_init, (void *)sock_init},
    {Py_tp_finalize, (void *)sock_finalize},
    {Py_tp_traverse, (void *)sock_traverse},
    {Py_tp_clear, (void *)sock_clear},
    {Py_tp_methods, sock_methods},
    {Py_tp_getset, sock_properties},
    {0, NULL},
};

/* What __init__ of socket.socket sets; NULL where a newer one sets something else. */
static int
find_own_slots(module_state *module)
{
    PyObject *known = Py_BuildValue("[sss]", "__weakref__", "_io_refs", "_closed");
    PyObject *slots = known == NULL ? NULL : PyObject_GetAttrString(module->base, "__slots__");
    int are_known = slots == NULL ? -1 : PyObject_RichCompareBool(slots, known, Py_EQ);
    Py_XDECREF(known);
    Py_XDECREF(slots);
    if (are_known == 1) {
        module->io_refs = PyObject_GetAttrString(module->base, "_io_refs");
        module->closed = module->io_refs == NULL ? NULL : PyObject_GetAttrString(module->base, "_closed");
        are_known = module->closed == NULL ? -1 : 1;
    }
    return are_known >= 0;
}

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
            {&module->init, base, "__init__"},
            {&module->fileno, root, "fileno"},
            {&module->settimeout, root, "settimeout"},
            {&module->detach, root, "detach"},
            {&module->timeout, root, "timeout"},
            {&module->family, root, "family"},
            {&module->kind, root, "type"},
            {&module->proto, root, "proto"},
        };
        size_t i;
        module->base = Py_NewRef(base);
        module->root_init = (initproc)PyType_GetSlot((PyTypeObject *)root, Py_tp_init);
        for (i = 0; i < sizeof wanted / sizeof *wanted && is_one == 1; i++) {
            *wanted[i].to = PyObject_GetAttrString(wanted[i].from, wanted[i].name);
            is_one = *wanted[i].to != NULL;
        }
        is_one = is_one == 1 && find_own_slots(module);
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
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
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
    if (!process_init() || !find_base(state)) {
        return -1;
    }
    find_bytearray_buffer();
    type = make_type(module, state->base);
    if (type != NULL && PyModule_AddObjectRef(module, "Socket", type) == 0 &&
        PyModule_AddIntConstant(module, "SUN_PATH_SIZE", HV_SUN_PATH_SIZE) == 0 && pump_add_type(module) == 0 &&
        engine_add_type(module) == 0) {
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
    Py_VISIT(state->settimeout);
    Py_VISIT(state->detach);
    Py_VISIT(state->io_refs);
    Py_VISIT(state->closed);
    Py_VISIT(state->timeout);
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
    Py_CLEAR(state->settimeout);
    Py_CLEAR(state->detach);
    Py_CLEAR(state->io_refs);
    Py_CLEAR(state->closed);
    Py_CLEAR(state->timeout);
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
