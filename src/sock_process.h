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

/* A function that CPython exports, but not in the stable ABI: it is looked up in the library that PyLong_Type really
 * lives in. */
static FARPROC
find_in_python(const char *name)
{
    HMODULE python;
    if (!GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                            (LPCWSTR)(void *)&PyLong_Type, &python)) {
        return NULL;
    }
    return GetProcAddress(python, name);
}

/* The event that CPython's SIGINT handler sets and its own sleep waits for, and the question whether this thread of this
 * interpreter is the one that runs signal handlers. Without them, Ctrl-C waits for the call to end. */
static int
tell_platform(void)
{
    typedef HANDLE (*event_getter)(void);
    FARPROC event = find_in_python("_PyOS_SigintEvent"), is_main = find_in_python("_PyOS_IsMainThread");
    hv_lock_acquire(&hv_once);
    if (event != NULL && is_main != NULL) {
        hv_sigint_event = ((event_getter)(void (*)(void))event)();
        hv_is_main_thread = (int (*)(void))(void (*)(void))is_main;
    }
    hv_lock_release(&hv_once);
    return 1;
}

/* The base is never told that a socket waits without end: it would make the handle blocking, and only the system could
 * end its sends. It gets the longest timeout that it accepts instead, for which gettimeout() returns None. */
#define BASE_FOREVER 2147483.0 /* seconds, 24 days */

static PyObject *
base_timeout(PyObject *value)
{
    return value == Py_None ? PyFloat_FromDouble(BASE_FOREVER) : Py_NewRef(value);
}

/* < 0: None */
static double
users_timeout(double seconds)
{
    return seconds >= BASE_FOREVER ? -1.0 : seconds;
}

/* New handles get a mode by settimeout(), since the system makes them blocking. */
static inline int
makes_mode(void)
{
    return 1;
}

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

static PyObject *
base_timeout(PyObject *value)
{
    return Py_NewRef(value);
}

static double
users_timeout(double seconds)
{
    return seconds;
}

static inline int
makes_mode(void)
{
    return 0;
}

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
