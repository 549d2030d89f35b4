"""What pyproject.toml cannot say: how the extension module is compiled.

HVSOCK_WERROR=1 turns the compiler's warnings into errors, HVSOCK_DEBUG=1 turns the assertions in the C code on.
"""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Free-threaded builds have no stable ABI before 3.15: they get a wheel of their own.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
WERROR = os.environ.get("HVSOCK_WERROR") == "1"
DEBUG = os.environ.get("HVSOCK_DEBUG") == "1"

UNIX_FLAGS = [
    "-std=c11",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wmissing-prototypes",
    "-Wshadow",
    "-Wsign-compare",
    "-Wstrict-prototypes",
    # The interpreter's own tables of methods and slots are written without their trailing members.
    "-Wno-missing-field-initializers",
]
MSVC_FLAGS = ["/std:c11", "/W4"]
if sys.version_info < (3, 13):
    # "Unreferenced parameter", for each Py_UNUSED of these versions' headers.
    MSVC_FLAGS.append("/wd4100")

macros: list[tuple[str, str | None]] = []
if LIMITED:
    macros.append(("Py_LIMITED_API", "0x030B0000"))
if sys.platform == "win32":
    macros.append(("_WIN32_WINNT", "0x0a00"))
    if not LIMITED:
        # One pyconfig.h serves both builds there.
        macros.append(("Py_GIL_DISABLED", "1"))


class BuildExt(build_ext):
    """Adds the flags of the compiler that was found."""

    def build_extensions(self) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        flags = [*(MSVC_FLAGS if msvc else UNIX_FLAGS)]
        if WERROR:
            flags.append("/WX" if msvc else "-Werror")
        if DEBUG:
            flags.append("/UNDEBUG" if msvc else "-UNDEBUG")
        for extension in self.extensions:
            extension.extra_compile_args = flags
        super().build_extensions()


setup(
    ext_modules=[
        Extension(
            "hvsock._hvsock",
            sources=["src/_hvsock.c"],
            depends=sorted(path.as_posix() for path in Path("src").glob("*.h")),
            define_macros=macros,
            libraries=["ws2_32", "mswsock"] if sys.platform == "win32" else [],
            py_limited_api=LIMITED,
        )
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
