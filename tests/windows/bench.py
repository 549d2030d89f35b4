"""Makes what ``run`` uses: Windows CPythons, the provider, the extension and its wheel.

Every product is made once and kept in the work directory, with a stamp: a hash of all that it is
made from. It is made again when that hash differs. Works with Python 3.11 and later, on Linux.

    bench.py build WORK MSVC PYTHON...

MSVC: a folder with Microsoft's compiler, or nothing ('') for mingw-w64. PYTHON: the Linux
interpreters, one for each Windows one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
GCC = "x86_64-w64-mingw32-gcc"
DLLTOOL = "x86_64-w64-mingw32-dlltool"
TOOL_MISSING = 77

WARNINGS = ["-Wall", "-Wextra", "-Wsign-compare", "-Werror"]
# Python's method tables cast every function to PyCFunction: that is their design.
EXTENSION_FLAGS = [
    "-std=c11", "-O2", *WARNINGS, "-Wno-cast-function-type", "-DPy_LIMITED_API=0x030B0000",
    "-D_WIN32_WINNT=0x0a00", "-include", str(HERE / "pyconfig_win.h"),
]  # fmt: skip
PROVIDER_FLAGS = ["-std=c11", "-O2", *WARNINGS, "-D_WIN32_WINNT=0x0a00"]

# What pyproject.toml asks for, and what the Windows Python needs to run it.
BUILD_TOOLS = ["setuptools>=77", "packaging"]
# shutil, from 3.12 on, calls CopyFile2 if there is one, and Wine 8 ends the process inside it.
BUILD_IN_WINDOWS = (
    "import _winapi; vars(_winapi).pop('CopyFile2', None)\n"
    "import setuptools.build_meta; setuptools.build_meta.build_wheel('..')"
)

# The wheels carry a complete Windows CPython DLL with its extension modules (deploy_libs/).
WHEELS = {
    "3.11": "panda3d==1.10.16 --hash=sha256:37acfb92655c4226879f95c988e2ef1449a53c54486d6c1ebc00e2772429af82",
    "3.13": "panda3d==1.10.16 --hash=sha256:0e505261bb58d8402d0099c291f1a3459acfdd38f3e7d666e72aa2e1ea5dc46f",
}
# Free-threaded builds, test helpers and Tk are of no use here; platform.uname() asks _wmi first,
# and Wine 8 ends the process inside it.
UNWANTED_LIBS = re.compile(r"cp313t|/_wmi|/_test|/_tkinter|/tcl|/tk")
UNWANTED_STDLIB = {
    "test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "lib-dynload",
    "site-packages", "dist-packages", "__pycache__",
}  # fmt: skip


class Missing(Exception):
    """Something that the user has to install first."""


def run(command: list[str | Path], **options: Any) -> None:
    """Run a command and show what it printed only if it failed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode:
        words = " ".join(map(str, command))
        raise SystemExit(f"{words}\nfailed with status {done.returncode}:\n{done.stdout}")


# Stamps


def digest(inputs: Iterable[Path | str]) -> str:
    """A hash of strings as they are, of files by content, and of folders by all their files."""
    total = hashlib.sha256()
    for item in inputs:
        files = [item] if isinstance(item, str) or item.is_file() else sorted(item.rglob("*"))
        for part in files:
            if isinstance(part, str):
                total.update(part.encode())
            elif part.is_file() and "__pycache__" not in part.parts:
                total.update(str(part.name).encode())
                total.update(part.read_bytes())
            total.update(b"\0")
    return total.hexdigest()


@contextlib.contextmanager
def stamped(stamp: Path, *inputs: Path | str) -> Iterator[bool]:
    """Yield whether the product of ``inputs`` has to be made; a body that ends well sets the stamp."""
    now = digest(inputs)
    stale = not stamp.is_file() or stamp.read_text() != now
    if stale:
        stamp.unlink(missing_ok=True)
    yield stale
    if stale:
        stamp.write_text(now)


# Windows DLLs


class Export(NamedTuple):
    name: str
    ordinal: int
    is_code: bool


def exports(dll: Path) -> list[Export]:
    """The named exports of a 64-bit PE file, by name."""
    image = dll.read_bytes()
    (header,) = struct.unpack_from("<I", image, 0x3C)
    section_count, optional_size = struct.unpack_from("<6xH12xH", image, header)
    sections = []
    for index in range(section_count):
        start = header + 24 + optional_size + 40 * index
        size, rva, raw_size, raw = struct.unpack_from("<IIII", image, start + 8)
        (flags,) = struct.unpack_from("<I", image, start + 36)
        sections.append((rva, max(size, raw_size), raw, flags))

    def section_of(address: int) -> tuple[int, int, int, int]:
        return next(s for s in sections if s[0] <= address < s[0] + s[1])

    def offset(address: int) -> int:
        rva, _, raw, _ = section_of(address)
        return address - rva + raw

    (directory,) = struct.unpack_from("<I", image, header + 24 + 112)
    base, _, count, functions, names, ordinals = struct.unpack_from("<IIIIII", image, offset(directory) + 16)
    found = []
    for index in range(count):
        (name_at,) = struct.unpack_from("<I", image, offset(names) + 4 * index)
        (slot,) = struct.unpack_from("<H", image, offset(ordinals) + 2 * index)
        (address,) = struct.unpack_from("<I", image, offset(functions) + 4 * slot)
        text = image[offset(name_at) :].split(b"\0", 1)[0].decode("ascii")
        found.append(Export(text, base + slot, bool(section_of(address)[3] & 0x20000000)))
    return found


def write_def(path: Path, library: str, lines: Iterable[str]) -> Path:
    path.write_text("\n".join([f"LIBRARY {library}", "EXPORTS", *lines]) + "\n")
    return path


# A Windows CPython


class Interpreter(NamedTuple):
    """A Linux CPython, from which the Windows one takes its standard library."""

    version: str
    build: str
    executable: str
    stdlib: Path
    headers: Path


def interpreter(executable: str) -> Interpreter:
    code = (
        "import sys, sysconfig as s; print('%d.%d' % sys.version_info[:2], ascii(sys.version),"
        " s.get_path('stdlib'), s.get_path('include'), sep='\\n')"
    )
    answer = subprocess.run([executable, "-c", code], capture_output=True, text=True, check=True)
    version, build, stdlib, headers = answer.stdout.splitlines()
    return Interpreter(version, build, executable, Path(stdlib), Path(headers))


def download(work: Path, source: Interpreter) -> Path:
    """The folder with the Windows DLLs of one CPython, out of its wheel."""
    tag = source.version.replace(".", "")
    folder = work / f"dlls-{source.version}"
    with stamped(work / f"dlls-{source.version}.stamp", WHEELS[source.version]) as stale:
        if not stale:
            return folder
        wheels = work / "wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        wheels.mkdir()
        folder.mkdir()
        wanted = wheels / "wanted.txt"
        wanted.write_text(WHEELS[source.version] + "\n")
        run([
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--only-binary=:all:", "--platform", "win_amd64", "--implementation", "cp",
            "--python-version", source.version, "--abi", f"cp{tag}",
            "--dest", wheels, "--requirement", wanted,
        ])  # fmt: skip
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if name.startswith("deploy_libs/") and not UNWANTED_LIBS.search(name):
                    (folder / Path(name).name).write_bytes(wheel.read(name))
        shutil.rmtree(wheels)
    return folder


def stable_names(source: Interpreter, python_dll: Path) -> list[Export]:
    """What python3.dll exports in this version: CPython's own list, as far as the DLL has it."""
    listing = source.stdlib / "test" / "test_stable_abi_ctypes.py"
    if not listing.is_file():
        raise Missing(f"{listing} is missing: install the test package of Python {source.version}")
    named = set(re.findall(r"[\"'](_?Py\w+)[\"']", listing.read_text()))
    return [export for export in exports(python_dll) if export.name in named]


def import_library(work: Path, source: Interpreter, dlls: Path) -> Path:
    """The 3.11 stable ABI to link against: a newer function fails there, at link time."""
    folder = work / "stable-abi"
    python_dll = dlls / f"python{source.version.replace('.', '')}.dll"
    with stamped(work / "stable-abi.stamp", python_dll, Path(__file__)) as stale:
        if stale:
            folder.mkdir(exist_ok=True)
            lines = [f"{e.name}{'' if e.is_code else ' DATA'}" for e in stable_names(source, python_dll)]
            text = write_def(folder / "python3.def", "python3.dll", lines)
            run([DLLTOOL, "-d", text, "-l", folder / "libpython3.a"])
    return folder


def python_tree(work: Path, source: Interpreter, dlls: Path) -> Path:
    """A Windows installation: python.exe, the DLLs, python3.dll and the standard library."""
    tree = work / f"python-{source.version}"
    tag = source.version.replace(".", "")
    inputs: list[Path | str] = [source.build, str(source.stdlib), dlls, HERE / "python_main.c", Path(__file__)]
    with stamped(work / f"python-{source.version}.stamp", *inputs) as stale:
        if not stale:
            return tree
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "DLLs").mkdir(parents=True)
        for file in dlls.iterdir():
            shutil.copy(file, tree / ("DLLs" if file.suffix == ".pyd" else ""))
        shutil.copytree(
            source.stdlib,
            tree / "Lib",
            ignore=lambda _, names: {n for n in names if n in UNWANTED_STDLIB or n.startswith("config-")},
        )
        (tree / "Lib" / "site-packages").mkdir()
        # Of CPython's own tests, those that the project runs over its sockets.
        for name in ("support", "certdata", "test_asyncio"):
            shutil.copytree(source.stdlib / "test" / name, tree / "Lib" / "test" / name)
        for name in ("__init__.py", "test_socket.py"):
            shutil.copy(source.stdlib / "test" / name, tree / "Lib" / "test")
        with contextlib.ExitStack() as cleanup:
            scratch = tree / "scratch"
            scratch.mkdir()
            cleanup.callback(shutil.rmtree, scratch)
            library = f"python{tag}.dll"
            text = write_def(scratch / "main.def", library, ["Py_Main"])
            run([DLLTOOL, "-d", text, "-l", scratch / "libmain.a"])
            run([
                GCC, "-O2", "-municode", "-s", "-o", tree / "python.exe",
                HERE / "python_main.c", scratch / "libmain.a",
            ])  # fmt: skip
            # python3.dll holds no code: each export is forwarded to the DLL of this version.
            lines = [
                f"{e.name}=python{tag}.{e.name}{'' if e.is_code else ' DATA'}"
                for e in stable_names(source, tree / library)
            ]
            text = write_def(scratch / "python3.def", "python3.dll", lines)
            empty = scratch / "empty.c"
            empty.write_text(
                "int DllMain(void *h, unsigned r, void *p)\n{\n    (void)h, (void)r, (void)p;\n    return 1;\n}\n"
            )
            run([
                GCC, "-shared", "-nostdlib", "-Wl,-e,DllMain", "-s",
                "-o", tree / "python3.dll", empty, text,
            ])  # fmt: skip
        compile_modules(source, tree / "Lib")
        # The packages of an older tree went with it.
        for stamp in work.glob(f"packages-{source.version}.stamp"):
            stamp.unlink()
    return tree


def compile_modules(source: Interpreter, folder: Path) -> None:
    """Make the .pyc files, which both platforms share: most tests start a child that writes none itself."""
    run([
        source.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", folder,
    ])  # fmt: skip


def install_packages(work: Path, source: Interpreter, tree: Path) -> None:
    """pytest and what else the tests import, from PyPI."""
    wanted = [HERE / "requirements.txt", PROJECT / "tests" / "libraries" / "requirements-windows.txt"]
    with stamped(work / f"packages-{source.version}.stamp", *wanted) as stale:
        if stale:
            packages = tree / "Lib" / "site-packages"
            shutil.rmtree(packages, ignore_errors=True)
            run([
                sys.executable, "-m", "pip", "install", "--quiet", "--no-compile",
                "--only-binary=:all:", "--platform", "win_amd64", "--implementation", "cp",
                "--python-version", source.version, "--target", packages,
                *(word for path in wanted for word in ("--requirement", path)),
            ])  # fmt: skip
            compile_modules(source, packages)


# The provider


def build_provider(work: Path, wine_dll: Path) -> Path:
    """ws2_32.dll: our functions where the sources name one, a jump into Wine's for the others."""
    sources = HERE / "provider"
    folder = work / "provider"
    product = folder / "ws2_32.dll"
    with stamped(work / "provider.stamp", sources, wine_dll, Path(__file__)) as stale:
        if not stale:
            return product
        folder.mkdir(exist_ok=True)
        listing = (sources / "calls.h").read_text()
        hooked = set(re.findall(r"^\s*X\(\w+, (\w+),", listing, re.MULTILINE))
        own = re.findall(r"^\w.*\b(hvsim_\w+)\(", (sources / "control.h").read_text(), re.MULTILINE)
        real = exports(wine_dll)
        passed = [export for export in real if export.name not in hooked]
        lines = [f"{e.name}={'hook' if e.name in hooked else 'pass'}_{e.name} @{e.ordinal}" for e in real]
        text = write_def(folder / "ws2_32.def", "ws2_32.dll", lines + own)
        jumps = folder / "passed.s"
        with jumps.open("w") as out:
            out.write(".text\n")
            for index, export in enumerate(passed):
                name = f"pass_{export.name}"
                out.write(f".globl {name}\n{name}: jmp *passed_functions+{8 * index}(%rip)\n")
            out.write(f".data\n.globl passed_count\npassed_count: .long {len(passed)}\n.balign 8\n")
            out.write(f".globl passed_functions\npassed_functions: .space {8 * len(passed)}\n")
            out.write(".globl passed_names\npassed_names:\n")
            out.writelines(f".quad name_{e.name}\n" for e in passed)
            out.writelines(f'name_{e.name}: .asciz "{e.name}"\n' for e in passed)
        run([
            GCC, *PROVIDER_FLAGS, "-shared", "-static-libgcc", "-s", "-o", product,
            *sorted(sources.glob("*.c")), jumps, text, "-ladvapi32",
        ])  # fmt: skip
    return product


def install_computecore(work: Path, system: Path) -> None:
    """The stand-in for computecore.dll, which hvsock takes from the system folder only."""
    source = HERE / "computecore.c"
    product = work / "computecore.dll"
    with stamped(work / "computecore.stamp", source, " ".join(PROVIDER_FLAGS)) as stale:
        if stale:
            run([GCC, *PROVIDER_FLAGS, "-shared", "-static-libgcc", "-s", "-o", product, source])
    shutil.copy(product, system)


# The project


def build_extension(work: Path, source: Interpreter, stable_abi: Path) -> Path:
    """_hvsock.pyd, one for all versions."""
    product = work / "_hvsock.pyd"
    inputs: list[Path | str] = [PROJECT / "src", stable_abi, HERE / "pyconfig_win.h", " ".join(EXTENSION_FLAGS)]
    with stamped(work / "extension.stamp", *inputs) as stale:
        if stale:
            run([
                GCC, *EXTENSION_FLAGS, f"-I{source.headers}", "-shared", "-static-libgcc", "-s",
                "-o", product, PROJECT / "src" / "_hvsock.c", f"-L{stable_abi}", "-lpython3", "-lws2_32",
            ])  # fmt: skip
    return product


def project_files() -> list[str]:
    """What is in the repository or about to be; where there is no git, as in an sdist, every file."""
    listing = subprocess.run(
        ["git", "-C", PROJECT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        names = [os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    else:
        names = [str(path.relative_to(PROJECT)) for path in PROJECT.rglob("*") if "__pycache__" not in path.parts]
    return [name for name in names if (PROJECT / name).is_file()]


def copy_project(target: Path, names: Iterable[str]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, target / name)


def build_wheel(work: Path, source: Interpreter, extension: Path) -> Path:
    """hvsock-VERSION-cp311-abi3-win_amd64.whl: what setuptools makes here, with the Windows extension."""
    folder = work / "wheel"
    names = [name for name in project_files() if not name.startswith((".", "tests/", "benchmarks/"))]
    with stamped(work / "wheel.stamp", *[PROJECT / name for name in names], extension, Path(__file__)) as stale:
        if stale:
            shutil.rmtree(folder, ignore_errors=True)
            copy_project(folder / "project", names)
            run([
                source.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
                "--wheel-dir", folder, folder / "project",
            ])  # fmt: skip
            made_here = next(folder.glob("*.whl"))
            repack(made_here, extension)
            made_here.unlink()
    return next(folder.glob("*.whl"))


def repack(wheel: Path, extension: Path) -> None:
    """Write the Windows wheel beside the Linux one: another extension, tag and RECORD, and the rest as it is."""
    name, version, python, abi, _ = wheel.stem.split("-")
    tag = f"{python}-{abi}-win_amd64"
    record_name = f"{name}-{version}.dist-info/RECORD"
    record = []
    with (
        zipfile.ZipFile(wheel) as linux,
        zipfile.ZipFile(wheel.parent / f"{name}-{version}-{tag}.whl", "w", zipfile.ZIP_DEFLATED) as windows,
    ):
        for member in linux.namelist():
            target, data = member, linux.read(member)
            if member == record_name:
                continue
            if member.endswith(".so"):
                target, data = f"{name}/{extension.name}", extension.read_bytes()
            elif member.endswith(".dist-info/WHEEL"):
                data = re.sub(rb"^Tag: .*$", f"Tag: {tag}".encode(), data, flags=re.MULTILINE)
            windows.writestr(target, data)
            hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{target},sha256={hashed},{len(data)}\n")
        windows.writestr(record_name, "".join([*record, f"{record_name},,\n"]))


# The project, by Microsoft's compiler


def windows_path(path: Path | str) -> str:
    return "Z:" + str(path).replace("/", "\\")


class Toolset(NamedTuple):
    """Microsoft's compiler, linker and SDK, for x64."""

    compiler: Path  # VC/Tools/MSVC/VERSION
    kit: Path  # Windows Kits/10
    kit_version: str

    def environment(self) -> dict[str, str]:
        """What cl and setuptools need; setuptools then takes cl and link from the path."""
        headers = self.kit / "Include" / self.kit_version
        libraries = self.kit / "Lib" / self.kit_version

        def joined(*folders: Path) -> str:
            return ";".join(map(windows_path, folders))

        return {
            **os.environ,
            "INCLUDE": joined(self.compiler / "include", *(headers / part for part in ("ucrt", "shared", "um"))),
            "LIB": joined(self.compiler / "lib" / "x64", *(libraries / part / "x64" for part in ("ucrt", "um"))),
            "WINEPATH": joined(self.compiler / "bin" / "Hostx64" / "x64", self.kit / "bin" / self.kit_version / "x64"),
            "DISTUTILS_USE_SDK": "1",
            "MSSdk": "1",
            "VSCMD_ARG_TGT_ARCH": "x64",
            "VSCMD_SKIP_SENDTELEMETRY": "1",
        }


def toolset(folder: Path) -> Toolset:
    """The newest compiler and SDK of a folder in Visual Studio's layout."""
    compilers = sorted(folder.glob("VC/Tools/MSVC/*/bin/Hostx64/x64/cl.exe"))
    kits = sorted(folder.glob("Windows Kits/10/Include/*/shared/hvsocket.h"))
    if not compilers or not kits:
        wanted = "VC/Tools/MSVC/*/bin/Hostx64/x64/cl.exe and Windows Kits/10/Include/*/shared/hvsocket.h"
        raise Missing(f"{folder} is not in Visual Studio's layout: {wanted}")
    version = kits[-1].parent.parent
    return Toolset(compilers[-1].parents[3], version.parent.parent, version.name)


def prepare_for_msvc(work: Path, source: Interpreter, tree: Path, stable_abi: Path, tools: Toolset) -> None:
    """What a Windows Python has for compilers: headers, with Windows' pyconfig.h, and python3.lib."""
    shutil.rmtree(tree / "include", ignore_errors=True)
    shutil.copytree(source.headers, tree / "include")
    shutil.copy(HERE / "pyconfig_win.h", tree / "include" / "pyconfig.h")
    (tree / "libs").mkdir(exist_ok=True)
    run([
        "wine", "lib.exe", "/nologo", "/machine:x64", f"/def:{windows_path(stable_abi / 'python3.def')}",
        f"/out:{windows_path(tree / 'libs' / 'python3.lib')}",
    ], env=tools.environment())  # fmt: skip
    with stamped(work / "build-tools.stamp", *BUILD_TOOLS) as stale:
        if stale:
            shutil.rmtree(work / "build-tools", ignore_errors=True)
            run([
                sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
                "--target", work / "build-tools", *BUILD_TOOLS,
            ])  # fmt: skip


def build_wheel_with_msvc(work: Path, source: Interpreter, tree: Path, stable_abi: Path, tools: Toolset) -> Path:
    """The wheel that setuptools makes in one Windows Python, with warnings as errors."""
    folder = work / f"msvc-{source.version}"
    names = [name for name in project_files() if not name.startswith((".", "tests/", "benchmarks/"))]
    inputs: list[Path | str] = [
        str(tools),
        tree / "python.exe",
        HERE / "pyconfig_win.h",
        HERE / "sdk.c",
        stable_abi,
        Path(__file__),
    ]
    with stamped(work / f"msvc-{source.version}.stamp", *[PROJECT / name for name in names], *inputs) as stale:
        if stale:
            shutil.rmtree(folder, ignore_errors=True)
            copy_project(folder / "project", names)
            prepare_for_msvc(work, source, tree, stable_abi, tools)
            run([
                "wine", "cl.exe", "/nologo", "/c", "/std:c11", "/W4", "/WX", "/I" + windows_path(PROJECT / "src"),
                windows_path(HERE / "sdk.c"), f"/Fo{windows_path(folder / 'sdk.obj')}",
            ], env=tools.environment())  # fmt: skip
            environment = {
                **tools.environment(), "HVSOCK_WERROR": "1", "PYTHONPATH": windows_path(work / "build-tools"),
            }  # fmt: skip
            run(["wine", tree / "python.exe", "-P", "-c", BUILD_IN_WINDOWS], cwd=folder / "project", env=environment)
    return next(folder.glob("*.whl"))


# Into the Windows Pythons


def install_project(source: Interpreter, tree: Path, provider: Path, wheel: Path) -> None:
    """The provider beside python.exe; the wheel and the provider's controls in site-packages."""
    packages = tree / "Lib" / "site-packages"
    shutil.copy(provider, tree)
    shutil.copy(HERE / "hvsim.py", packages)
    for old in packages.glob("hvsock*"):
        shutil.rmtree(old)
    run([
        sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--no-index",
        "--only-binary=:all:", "--platform", "win_amd64", "--implementation", "cp",
        "--python-version", source.version, "--target", packages, wheel,
    ])  # fmt: skip
    compile_modules(source, packages / "hvsock")


def copy_tests(work: Path) -> None:
    """The project without the package: tests must find the installed one."""
    copy_project(work / "project", [name for name in project_files() if not name.startswith("hvsock/")])


def build(work: Path, msvc: str, executables: list[str]) -> None:
    sources = [interpreter(executable) for executable in executables]
    for source in sources:
        if source.version not in WHEELS:
            raise Missing(f"no Windows DLLs are known for Python {source.version}: bench.py has {', '.join(WHEELS)}")
    oldest = next((source for source in sources if source.version == "3.11"), None)
    wine_dll = work / "prefix" / "drive_c" / "windows" / "system32" / "ws2_32.dll"
    provider = build_provider(work, wine_dll)
    install_computecore(work, wine_dll.parent)
    if oldest is None:
        raise Missing("bench.py build needs Python 3.11 in its list: the extension is built for it")
    stable_abi = import_library(work, oldest, download(work, oldest))
    trees = [python_tree(work, source, download(work, source)) for source in sources]
    if msvc:
        tools = toolset(Path(msvc))
        wheels = [
            build_wheel_with_msvc(work, source, tree, stable_abi, tools)
            for source, tree in zip(sources, trees, strict=True)
        ]
        # Each Python runs what another one has built.
        wheels = [*wheels[1:], wheels[0]]
    else:
        wheels = [build_wheel(work, oldest, build_extension(work, oldest, stable_abi))] * len(sources)
    for source, tree, wheel in zip(sources, trees, wheels, strict=True):
        install_packages(work, source, tree)
        install_project(source, tree, provider, wheel)
    copy_tests(work)


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["build", work, msvc, *executables] if executables:
                build(Path(work), msvc, executables)
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except Missing as error:
        print(error, file=sys.stderr)
        return TOOL_MISSING
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
