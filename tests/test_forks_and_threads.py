"""Children, C signal handlers, native threads and the end of the process: no effect on the loop."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from programs import MODES

IN_TASKS = """
import asyncio, os, socket, sys, time

async def conversation(count):
    '''Two tasks that talk to each other by blocking calls: they must go on whatever the others do.'''
    one, other = socket.socketpair()
    async def answer():
        for _ in range(count):
            other.sendall(other.recv(1))
    task = asyncio.create_task(answer())
    for number in range(count):
        one.sendall(bytes([number % 256]))
        assert one.recv(1) == bytes([number % 256])
    await task
    return "talked"
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("library") / "libnative.so"
    source = Path(__file__).parent / "native_library.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-pthread", source, "-o", output], check=True)
    return output


EVERY_MODE = pytest.mark.parametrize("mode", MODES)
TWO_MODES = pytest.mark.parametrize("mode", ["cli", "patch_all"])

# ---- children --------------------------------------------------------------------------------

SUBPROCESSES = """
import subprocess
subprocess._USE_VFORK, close_fds = {"vfork": (True, True), "fork": (False, True), "spawn": (True, False)}[sys.argv[1]]

async def child(number):
    code = f"import sys, time; time.sleep(0.01); sys.stdout.write(sys.stdin.read() * 2); sys.exit({number})"
    done = subprocess.run([sys.executable, "-c", code], input=str(number), capture_output=True,
                          text=True, close_fds=close_fds)
    return done.returncode, done.stdout

async def main():
    results = await asyncio.gather(conversation(300), *[child(n) for n in range(6)])
    print(results[0], results[1:] == [(n, str(n) * 2) for n in range(6)])

asyncio.run(main())
"""


@TWO_MODES
@pytest.mark.parametrize("way", ["vfork", "fork", "spawn"])
def test_subprocesses_in_tasks(run_app, way, mode):
    done = run_app(IN_TASKS + SUBPROCESSES, way, mode=mode)
    assert done.check().out == "talked True\n"
    assert done.err == ""


FORKS = """
async def forker(number):
    mine, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:  # a process of one thread whose calls block
        code = 1
        try:
            time.sleep(0.01)
            theirs.sendall(theirs.recv(1) * 2)
            again = os.fork()
            if again == 0:
                time.sleep(0.01)
                os._exit(40 + number)
            code = os.waitstatus_to_exitcode(os.waitpid(again, 0)[1])
        finally:
            os._exit(code)
    theirs.close()
    mine.sendall(b"x")
    answer = mine.recv(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), answer

async def main():
    results = await asyncio.gather(conversation(300), *[forker(n) for n in range(6)])
    print(results[0], results[1:] == [(40 + n, b"xx") for n in range(6)])

asyncio.run(main())
"""


@EVERY_MODE
def test_fork_in_tasks(run_app, mode):
    done = run_app(IN_TASKS + FORKS, mode=mode, flags=["-W", "ignore::DeprecationWarning"])
    assert done.check().out == "talked True\n"
    assert done.err == ""


LOOP_IN_CHILD = """
import threading

def child():
    async def job(number):
        time.sleep(0.01)
        return number
    async def main():
        return sum(await asyncio.gather(*[job(n) for n in range(10)]))
    results = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(main())))
    thread.start()
    thread.join()
    return results[0]

async def forker():
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

async def main():
    print(await asyncio.gather(conversation(200), forker(), forker()))

asyncio.run(main())
"""


@TWO_MODES
def test_child_of_a_task_runs_threads_and_a_loop_of_its_own(run_app, mode):
    done = run_app(IN_TASKS + LOOP_IN_CHILD, mode=mode, flags=["-W", "ignore::DeprecationWarning"])
    assert done.check().out == "['talked', 45, 45]\n"
    assert done.err == ""


MULTIPROCESSING = """
import multiprocessing

def square(number):
    time.sleep(0.001)
    return number * number

async def pool(context):
    with context.Pool(2) as workers:
        return sum(workers.map(square, range(20)))

async def process(context):
    queue = context.Queue()
    child = context.Process(target=queue.put, args=("put",))
    child.start()
    answer = queue.get()
    child.join()
    return answer, child.exitcode

async def main():
    context = multiprocessing.get_context(sys.argv[1])
    print(await asyncio.gather(conversation(200), pool(context), process(context)))

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_in_tasks(run_app, method):
    flags = ["-W", "ignore::DeprecationWarning"]
    done = run_app(IN_TASKS + MULTIPROCESSING, method, flags=flags)
    assert done.check().out == "['talked', 2470, ('put', 0)]\n"
    assert done.err == ""


# ---- signals and native threads --------------------------------------------------------------

HANDLER = """
import ctypes, signal, subprocess
library = ctypes.CDLL(sys.argv[1])
reading, writing = os.pipe()
assert library.catch_signal(signal.SIGUSR1, writing) == 0

async def reader():
    count = 0
    while (data := os.read(reading, 10)) != b"." and data[-1:] != b".":
        count += len(data)
    return count + len(data) - 1

async def sender():
    code = "import os, sys, time\\nfor _ in range(300): os.kill(int(sys.argv[1]), 10); time.sleep(0.0005)"
    subprocess.run([sys.executable, "-c", code, str(os.getpid())], check=True)
    os.write(writing, b".")

async def main():
    count, _, *talks = await asyncio.gather(reader(), sender(), *[conversation(500) for _ in range(4)])
    print(count == library.times_handled(), count > 0, set(talks))

asyncio.run(main())
"""


@EVERY_MODE
def test_c_signal_handler_that_writes_to_a_pipe(run_app, library, mode):
    done = run_app(IN_TASKS + HANDLER, str(library), mode=mode)
    assert done.check().out == "True True {'talked'}\n"
    assert done.err == ""


NATIVE = """
import ctypes, threading
library = ctypes.CDLL(sys.argv[1])

def talk(number):
    one, other = socket.socketpair()
    assert library.start_echo(other.detach()) == 0
    for turn in range(100):
        one.sendall(bytes([turn]))
        assert one.recv(1) == bytes([turn])
    one.shutdown(socket.SHUT_WR)
    assert one.recv(1) == b""
    one.close()
    return number

async def task(number):
    return talk(number)

async def main():
    loop = asyncio.get_running_loop()
    native = [loop.run_in_executor(None, talk, n) for n in range(10, 14)]
    print(await asyncio.gather(*[task(n) for n in range(10)], *native) == list(range(14)))

asyncio.run(main())
threads = [threading.Thread(target=talk, args=(n,)) for n in range(10)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(os.listdir("/proc/self/fd")) < 40)
"""


@EVERY_MODE
def test_native_threads_make_the_same_calls(run_app, library, mode):
    done = run_app(IN_TASKS + NATIVE, str(library), mode=mode)
    assert done.check().out == "True\nTrue\n"
    assert done.err == ""


CALLS_BACK = """
import asyncio, ctypes, sys, threading, time

library = ctypes.CDLL(sys.argv[1])
results = []

async def one():
    time.sleep(0.001)
    return 1

async def main():
    return sum(await asyncio.gather(*[one() for _ in range(5)]))

@ctypes.CFUNCTYPE(None, ctypes.c_int)
def callback(order):
    time.sleep(0.001)
    thread = threading.Thread(target=time.sleep, args=(0.001,))
    thread.start()
    thread.join()
    results.append(asyncio.run(main()) + order)

library.start_caller(callback)
for order in range(1, 11):
    library.have_called(order)
    thread = threading.Thread(target=time.sleep, args=(0,))
    thread.start()
    thread.join()
print(results == [5 + order for order in range(1, 11)])
"""


@EVERY_MODE
def test_thread_of_a_library_that_calls_back_again_and_again(run_app, library, mode):
    """Each time with a Python state of its own: what the last one knew of this thread is gone."""
    completed = run_app(CALLS_BACK, str(library), mode=mode).check()
    assert (completed.out, completed.err) == ("True\n", "")


OUTLIVES_ITS_STARTER = """
import asyncio, threading, time

async def moment():
    await asyncio.sleep(0.001)

def late():
    time.sleep(0.1)
    print("late")

def job():
    asyncio.run(moment())
    threading.Thread(target=late).start()

async def main():
    await asyncio.to_thread(job)

asyncio.run(main())
print("end of main")
"""


@EVERY_MODE
def test_thread_that_a_worker_starts_outlives_the_worker(run_app, mode):
    """The worker has run a loop of its own, so it could start green threads that end with it."""
    completed = run_app(OUTLIVES_ITS_STARTER, mode=mode).check()
    assert (sorted(completed.out.split("\n")), completed.err) == (["", "end of main", "late"], "")


# ---- dlclose, the end ------------------------------------------------------------------------

UNLOAD = """
import _ctypes, portalpatch
for turn in range(20):
    handle = _ctypes.dlopen(sys.argv[1], 2)
    assert "libnative" in open("/proc/self/maps").read()
    _ctypes.dlclose(handle)
    assert "libnative" not in open("/proc/self/maps").read()
    time.sleep(0.001)
handle = _ctypes.dlopen(sys.argv[1], 2)
portalpatch.unpatch_all()
_ctypes.dlclose(handle)
portalpatch.patch_all(mutex_guard=["libnative*"])
handle = _ctypes.dlopen(sys.argv[1], 2)
_ctypes.dlclose(handle)
portalpatch.unpatch_all()
print("unloaded")
"""


@EVERY_MODE
def test_libraries_that_are_unloaded(run_app, library, mode):
    done = run_app(IN_TASKS + UNLOAD, str(library), mode=mode)
    assert done.check().out == "unloaded\n"
    assert done.err == ""


EXIT = """
import threading, time, portalpatch

def work(seconds):
    portalpatch.offload(lambda: time.sleep(seconds))

for seconds in (600, 600, 0.001, 0.005, 0.01, 0.02):
    threading.Thread(target=work, args=(seconds,), daemon=True).start()
time.sleep(0.005)
print("ends")
"""
EXIT_OF_A_LOOP = """
import asyncio, sys, time, portalpatch

async def work(seconds):
    portalpatch.offload(lambda: time.sleep(seconds))

async def main():
    pauses = (600, 600, *(n / 1000 for n in range(1, 40, 3)))  # some end while Python does
    tasks = [asyncio.create_task(work(seconds)) for seconds in pauses]
    await asyncio.sleep(0.005)
    print("ends")
    sys.exit(3)

asyncio.run(main())
"""


@EVERY_MODE
def test_exit_while_offloads_run(run_app, mode):
    done = run_app(EXIT, mode=mode, limit=30)
    assert (done.check().out, done.err) == ("ends\n", "")


@TWO_MODES
def test_loop_that_ends_while_offloads_run(run_app, mode):
    done = run_app(EXIT_OF_A_LOOP, mode=mode, limit=30)
    assert (done.check(3).out, done.err) == ("ends\n", "")


TRACEMALLOC = """
import asyncio, tracemalloc
from portalpatch import offload

async def offloads():
    assert offload(lambda: "done") == "done"

async def main():
    for _ in range(100):
        tasks = [asyncio.ensure_future(offloads()) for _ in range(6)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)

tracemalloc.start()
asyncio.run(main())
print("ends")
"""


@TWO_MODES
def test_offloads_under_tracemalloc(run_app, mode):
    """A worker's thread state is made while tracemalloc waits for the GIL that the main thread holds."""
    done = run_app(TRACEMALLOC, mode=mode, limit=30)
    assert (done.check().out, done.err) == ("ends\n", "")
