/* The part of CPython's PC/pyconfig.h that a limited-API extension needs.
 *
 * Python.h from a Linux installation includes that installation's pyconfig.h,
 * which describes Linux. This file is force-included (-include) before it and
 * takes its include guard, so that the Linux one expands to nothing. An -I
 * option cannot do this: Python.h finds the neighbour in its own folder first.
 */
#ifndef Py_PYCONFIG_H
#define Py_PYCONFIG_H

#define MS_WIN32 1
#define MS_WINDOWS 1
#define NT_THREADS 1

/* Data such as PyExc_OSError is imported, PyInit_* is exported. */
#define Py_ENABLE_SHARED 1
#define HAVE_DECLSPEC_DLL 1

#define HAVE_ERRNO_H 1
#define HAVE_STDDEF_H 1
#define HAVE_SYS_STAT_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_WCHAR_H 1
#define STDC_HEADERS 1

#define WITH_DOC_STRINGS 1

/* 64-bit Windows: long has 4 bytes (LLP64). */
#define MS_WIN64 1
#define ALIGNOF_MAX_ALIGN_T 8
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_VOID_P 8
#define SIZEOF_WCHAR_T 2

/* MSVC's linker is told here what to link with. */
#ifdef _MSC_VER
#pragma comment(lib, "python3.lib")
#endif

#endif
