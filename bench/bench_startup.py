"""What starting costs: `import portalpatch`, `patch_all()`, the command line, attach to many objects.

Each figure is taken inside a fresh process (import, patch_all) or is a whole run of `python -c pass`.
"""

from __future__ import annotations

import subprocess
import sys
import time

import harness

IMPORT = """
import time
start = time.perf_counter()
import {module}
middle = time.perf_counter()
{call}
end = time.perf_counter()
import json
print(json.dumps({{"import": (middle - start) * 1e3, "patch": (end - middle) * 1e3}}))
"""
LOADED = """
import ctypes, json, sys, time
import portalpatch
for path in sys.argv[1:]:
    ctypes.CDLL(path)
start = time.perf_counter()
portalpatch.patch_all()
patched = time.perf_counter()
objects = portalpatch.statistics().hooked_objects
before_undo = time.perf_counter()
portalpatch.unpatch_all()
undone = time.perf_counter()
figures = {"patch": (patched - start) * 1e3, "unpatch": (undone - before_undo) * 1e3}
print(json.dumps({**figures, "objects": objects}))
"""
OBJECTS = 200
SOURCE = """
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
long bench_object(void *p, long n) {
    return recv((int)n, p, 1, 0) + send((int)n, p, 1, 0) + poll(p, 0, 0) + usleep(0)
        + read((int)n, p, 0) + write((int)n, p, 0) + nanosleep(p, p) + close(-1);
}
"""


def make_objects(count: int) -> list[str]:
    """Paths of small shared objects that call what we interpose."""
    folder = harness.BUILT / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "object0.so"
    if not first.exists():
        source = folder / "object.c"
        source.write_text(SOURCE)
        command = ["gcc", "-O1", "-w", "-fPIC", "-shared", "-o", str(first), str(source)]
        subprocess.run(command, check=True)
    paths = [folder / f"object{number}.so" for number in range(count)]
    for path in paths[1:]:
        if not path.exists():  # a copy is another file, and so another object to the loader
            path.write_bytes(first.read_bytes())
    return [str(path) for path in paths]


def main() -> None:
    args = harness.options(__doc__)
    bench = harness.Benchmark("startup", "import, patch_all(), command line", args, "gevent")
    rounds = 5 if bench.quick else 15

    def code(text: str, *words: str):
        return lambda: harness.finished([sys.executable, "-c", text, *words])

    cases = {
        "portalpatch": code(IMPORT.format(module="portalpatch", call="portalpatch.patch_all()"))
    }
    if bench.present("gevent", "gevent"):
        call = "gevent.monkey.patch_all()"
        cases["gevent"] = code(IMPORT.format(module="gevent.monkey", call=call))
    if bench.present("eventlet", "eventlet"):
        cases["eventlet"] = code(IMPORT.format(module="eventlet", call="eventlet.monkey_patch()"))
    cases["asyncio (import)"] = code(IMPORT.format(module="asyncio", call="pass"))
    patching = bench.measure(
        "in a fresh process", {"import": "import, ms", "patch": "patch_all(), ms"}, cases, rounds
    )

    objects = make_objects(OBJECTS)
    attaching = bench.measure(
        "attach by rewriting GOT slots",
        {"patch": "patch_all(), ms", "unpatch": "unpatch_all(), ms", "objects": "objects hooked"},
        {
            "as loaded by Python": code(LOADED),
            f"{OBJECTS} more objects loaded": code(LOADED, *objects),
        },
        rounds,
    )

    def whole(*words: str):
        def once():
            start = time.perf_counter()
            subprocess.run(
                harness.pinned([sys.executable, *words], harness.SERVER_CPU),
                check=True,
                env=harness.plain_environment(),
            )
            return {"ms": (time.perf_counter() - start) * 1e3}

        return once

    program = harness.BUILT / "nothing.py"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text("pass\n")
    cases = {
        "python": whole(str(program)),
        "python -m portalpatch": whole("-m", "portalpatch", str(program)),
    }
    if bench.present("gevent", "gevent"):
        cases["python -m gevent.monkey"] = whole("-m", "gevent.monkey", str(program))
    bench.measure("a program that does nothing, from start to end", {"ms": "ms"}, cases, rounds)
    if not args.only:
        bench.target("patch_all(), ms", patching.median("portalpatch", "patch"), 15)
        more = attaching.median(f"{OBJECTS} more objects loaded", "patch")
        bench.target(f"patch_all() with {OBJECTS} more objects loaded, ms", more, 15)
    bench.finish()


if __name__ == "__main__":
    main()
