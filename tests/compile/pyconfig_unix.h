/* The part of CPython's pyconfig.h that a limited-API extension needs, for the 64-bit Unixes that are compiled for.
 *
 * Python.h from this machine's installation includes that installation's pyconfig.h, which describes this machine. This
 * file is force-included (-include) before it and takes its include guard, as ../windows/pyconfig_win.h does. It is
 * written by hand, not by the configure of each platform: what is below is the same on all of them (LP64), apart from
 * the names that ask for a standard.
 */
#ifndef Py_PYCONFIG_H
#define Py_PYCONFIG_H

/* What the system's headers declare depends on these. On macOS configure leaves the standards out, since they would hide
 * the rest there. */
#define _GNU_SOURCE 1
#define _DARWIN_C_SOURCE 1
#define __BSD_VISIBLE 1
#ifndef __APPLE__
#define _XOPEN_SOURCE 700
#define _POSIX_C_SOURCE 200809L
#endif

#define HAVE_ERRNO_H 1
#define HAVE_STDDEF_H 1
#define HAVE_SYS_STAT_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_UNISTD_H 1
#define HAVE_WCHAR_H 1
#define STDC_HEADERS 1

#define WITH_DOC_STRINGS 1

#define ALIGNOF_MAX_ALIGN_T 16
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 8
#define SIZEOF_LONG_LONG 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_VOID_P 8
#define SIZEOF_WCHAR_T 4

#endif
