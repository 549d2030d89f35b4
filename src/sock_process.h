/* What differs between the platforms and has to do with Python: exceptions, and what the platform asks of the process. */
#ifndef SOCK_PROCESS_H
#define SOCK_PROCESS_H

#include "hv_abi.h"

#include "hv_platform.h"

#ifdef _WIN32

static PyObject *
raise_os_error(int error)
{
    return PyErr_SetExcFromWindowsErr(PyExc_OSError, error);
}

/* CPython exports the event that its own sleep waits for, but not in the stable ABI: it is looked up
 * in the library that PyLong_Type really lives in. Without it, Ctrl-C waits for the call to end. */
static HANDLE
find_sigint_event(void)
{
    typedef HANDLE (*event_getter)(void);
    HMODULE python;
    FARPROC found = NULL;
    if (GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                           (LPCWSTR)(void *)&PyLong_Type, &python)) {
        found = GetProcAddress(python, "_PyOS_SigintEvent");
    }
    return found == NULL ? NULL : ((event_getter)(void (*)(void))found)();
}

/* The only thread that runs signal handlers. */
static int
find_main_thread(unsigned long *main_id)
{
    PyObject *threading = PyImport_ImportModule("threading");
    PyObject *main_thread = threading == NULL ? NULL : PyObject_CallMethod(threading, "main_thread", NULL);
    PyObject *ident = main_thread == NULL ? NULL : PyObject_GetAttrString(main_thread, "ident");
    *main_id = ident == NULL ? 0 : PyLong_AsUnsignedLong(ident);
    Py_XDECREF(threading);
    Py_XDECREF(main_thread);
    Py_XDECREF(ident);
    return !PyErr_Occurred();
}

static int
tell_platform(void)
{
    unsigned long main_id;
    if (!find_main_thread(&main_id)) {
        return 0;
    }
    hv_lock_acquire(&hv_once);
    if (hv_main_thread == 0) {
        hv_main_thread = main_id;
        hv_sigint_event = find_sigint_event();
    }
    hv_lock_release(&hv_once);
    return 1;
}

/* The base is never told that a socket waits without end: it would make the handle blocking, whose sends only the
 * system could end. It waits for a century instead, and what asks for the timeout is told None. */
#define BASE_FOREVER 3e9

#else

static PyObject *
raise_os_error(int error)
{
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static int
tell_platform(void)
{
    return 1;
}

#define BASE_FOREVER 0.0 /* the base is told what the user has said */

#endif

/* Once for each interpreter; false with an exception set. */
static int
process_init(void)
{
    int error;
    if (!tell_platform()) {
        return 0;
    }
    error = hv_platform_init();
    if (error != 0) {
        raise_os_error(error);
    }
    return error == 0;
}

#endif
