"""Builds the two shared objects of portalpatch and maps its directories to packages.

libportalpatch.so is plain C (interpose/*.c), `_core` is the C extension (pyglue/*.c) that links to
it with rpath $ORIGIN, so that the preloaded and the linked library are one. Both are compiled here
rather than by distutils: the interposer must not get the flags Python was built with
(_FORTIFY_SOURCE among them), and header dependencies are tracked (`-MMD`), so an edit rebuilds
just what it touches.

Environment: CC (default gcc), PORTALPATCH_CFLAGS and PORTALPATCH_LDFLAGS (appended, for example
-fsanitize=address), PORTALPATCH_WERROR=1 (a warning is an error), PORTALPATCH_BUILD_BASE (where
objects go; default build/<cache tag>, so builds for several Pythons never meet).
"""

import concurrent.futures
import glob
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARY = "portalpatch.libportalpatch"
CORE = "portalpatch._core"

WARNINGS = ["-Wall", "-Wextra"]
LIBRARY_CFLAGS = [
    "-std=gnu11", "-O2", "-g", "-fPIC", "-fvisibility=hidden", "-fexceptions",
    "-D_GNU_SOURCE", "-U_FORTIFY_SOURCE", "-pthread",
]  # fmt: skip
LIBRARY_LDFLAGS = ["-shared", "-Wl,-z,initfirst", "-Wl,-soname,libportalpatch.so"]
CORE_CFLAGS = [
    "-std=gnu11", "-O2", "-g", "-fPIC", "-fvisibility=hidden", "-fwrapv",
    "-D_GNU_SOURCE", "-DNDEBUG", "-pthread",
]  # fmt: skip
CORE_LDFLAGS = ["-shared", "-Wl,-rpath,$ORIGIN"]


def sources(folder: str) -> list[str]:
    return sorted(os.path.relpath(path, HERE) for path in glob.glob(f"{HERE}/{folder}/*.c"))


def environment_flags(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def needs(header: str, package: str, flags: list[str]) -> None:
    """Stop with one line that names the Debian package where a header is missing."""
    probe = subprocess.run(
        [*compiler(), *flags, "-E", "-x", "c", "-"],
        input=f"#include <{header}>\n",
        text=True,
        capture_output=True,
    )
    if probe.returncode:
        raise SystemExit(f"portalpatch: {header} not found: install the Debian package {package}")


def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC", "gcc"))
    if shutil.which(command[0]) is None:
        raise SystemExit(
            f"portalpatch: no C compiler ({command[0]}): install the Debian package gcc"
        )
    return command


def greenlet_include() -> list[str]:
    try:
        import greenlet
    except ImportError:
        raise SystemExit("portalpatch: the build needs greenlet (pip install greenlet)") from None
    folder = os.path.dirname(os.path.abspath(greenlet.__file__))
    return ["-isystem", folder, "-isystem", os.path.dirname(folder)]


class BuildSharedObjects(build_ext):
    """build_ext with a compile step of its own; see the module's docstring."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2] == "libportalpatch":
            return os.path.join(*fullname.split(".")[:-1], "libportalpatch.so")
        return super().get_ext_filename(fullname)

    def build_extension(self, ext: Extension) -> None:
        output = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(output), exist_ok=True)
        if ext.name == LIBRARY:
            flags = [*LIBRARY_CFLAGS, "-Iinterpose"]
            link = [*LIBRARY_LDFLAGS, "-Wl,--version-script=interpose/exports.map"]
            libraries = ["-ldl", "-pthread"]
            extra_inputs = ["interpose/exports.map"]
        else:
            paths = sysconfig.get_paths()
            python = ["-isystem", paths["include"], "-isystem", paths["platinclude"]]
            if sysconfig.get_config_var("Py_DEBUG"):
                # Debian's headers of a debug build are links: by their targets' names the compiler
                # would find pyconfig.h of the other build.
                python.append("-fno-canonical-system-headers")
            needs("ev.h", "libev-dev", [])
            needs("Python.h", f"python{sys.version_info[0]}.{sys.version_info[1]}-dev", python)
            flags = [*CORE_CFLAGS, "-Iinterpose", "-Ipyglue", *python, *greenlet_include()]
            library = self.get_ext_fullpath(LIBRARY)
            link = [*CORE_LDFLAGS, f"-L{os.path.dirname(library)}"]
            libraries = ["-lev", "-lportalpatch", "-pthread"]
            extra_inputs = [library]
        objects = self.compile_all(ext.sources, flags)
        link = [*compiler(), *link, *environment_flags("PORTALPATCH_LDFLAGS"), "-o", output]
        record = os.path.join(self.build_temp, os.path.basename(output) + ".cmd")
        self.run_if_outdated(
            [*link, *objects, *libraries], record, output, [*objects, *extra_inputs]
        )

    def compile_all(self, files: list[str], flags: list[str]) -> list[str]:
        """Compile what is out of date, two files at a time; returns the object files."""
        flags = [*flags, *WARNINGS, *environment_flags("PORTALPATCH_CFLAGS")]
        if os.environ.get("PORTALPATCH_WERROR") == "1":
            flags.append("-Werror")

        def compile_one(source: str) -> str:
            object_file = os.path.join(self.build_temp, os.path.splitext(source)[0] + ".o")
            os.makedirs(os.path.dirname(object_file), exist_ok=True)
            command = [*compiler(), *flags, "-MMD", "-c", source, "-o", object_file]
            inputs = dependencies(object_file)
            self.run_if_outdated(command, object_file + ".cmd", object_file, inputs)
            return object_file

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(compile_one, files))

    def run_if_outdated(
        self, command: list[str], record: str, target: str, inputs: list[str]
    ) -> None:
        """Run a compiler command unless `target` is newer than `inputs` and was made by the same
        command, as the file `record` tells."""
        text = shlex.join(command)
        same = os.path.exists(record) and read(record) == text
        if same and not self.force and not outdated(target, inputs):
            return
        print(text, flush=True)
        if subprocess.run(command).returncode:
            raise SystemExit(f"portalpatch: build failed: {text}")
        with open(record, "w") as stream:
            stream.write(text)


def read(path: str) -> str:
    with open(path) as stream:
        return stream.read()


def dependencies(object_file: str) -> list[str]:
    """The files an object was made from, as gcc wrote them down; empty where unknown."""
    try:
        text = read(os.path.splitext(object_file)[0] + ".d")
    except FileNotFoundError:
        return []
    return text.replace("\\\n", " ").partition(":")[2].split()


def outdated(target: str, inputs: list[str]) -> bool:
    try:
        made = os.path.getmtime(target)
        return not inputs or any(os.path.getmtime(path) > made for path in inputs)
    except FileNotFoundError:
        return True


def build_options() -> dict[str, dict[str, str]]:
    """One build folder a Python: concurrent builds from one tree do not meet."""
    base = os.environ.get("PORTALPATCH_BUILD_BASE") or os.path.join(
        "build", sys.implementation.cache_tag
    )
    os.makedirs(os.path.join(HERE, base), exist_ok=True)
    return {"build": {"build_base": base}, "egg_info": {"egg_base": base}}


os.chdir(HERE)
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise SystemExit("portalpatch: free-threaded builds of Python are not supported")
extensions = [Extension(LIBRARY, sources("interpose"))]
if sources("pyglue"):
    extensions.append(Extension(CORE, sources("pyglue")))
setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildSharedObjects},
    options=build_options(),
)
