/* The ABI seam: which Python C API this file is compiled for, and the module slots that the headers
 * of the stable ABI 3.11 do not name yet but that a newer interpreter understands. */
#ifndef HV_ABI_H
#define HV_ABI_H

#ifdef _WIN32
/* Before Python.h, which would include windows.h with the old winsock.h in it. */
#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#endif

/* PY_SSIZE_T_CLEAN is left out: 3.13's headers ignore it, so a format with '#' would work on 3.11 only in what older
 * headers built. Without it such a format fails on 3.11 and 3.12 in every build, where the tests see it. */
#include <Python.h>

/* Each by itself: 3.15's headers name the slots for every ABI, but not what they may hold. */
#ifndef Py_mod_multiple_interpreters /* 3.12 */
#define Py_mod_multiple_interpreters 3
#endif
#ifndef Py_MOD_PER_INTERPRETER_GIL_SUPPORTED
#define Py_MOD_PER_INTERPRETER_GIL_SUPPORTED ((void *)2)
#endif

#ifndef Py_mod_gil /* 3.13 */
#define Py_mod_gil 4
#endif
#ifndef Py_MOD_GIL_NOT_USED
#define Py_MOD_GIL_NOT_USED ((void *)1)
#endif

/* For what a fast path leaves: in the same function it would make the compiler save registers on every call. */
#if defined(__GNUC__)
#define HV_COLD __attribute__((noinline, cold))
#elif defined(_MSC_VER)
#define HV_COLD __declspec(noinline)
#else
#define HV_COLD
#endif

#endif
