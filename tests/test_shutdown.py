"""The end of a threaded program: the same bytes and the same exit status as in plain Python."""

from __future__ import annotations

import re
import signal
import textwrap
import time

import pytest
from test_cli import UNSEEN, both

PROGRAMS = {
    "threads are joined, daemons vanish": """
        import atexit, threading, time
        atexit.register(print, "atexit")
        ended = threading.Event()
        def work(name, pause):
            ended.wait()
            time.sleep(pause)
            print(name)
        threading.Thread(target=work, args=("joined", 0.02)).start()
        threading.Thread(target=work, args=("daemon", 600), daemon=True).start()
        print("main ends")
        ended.set()
        """,
    "daemons that hold locks or wait in C": """
        import atexit, os, queue, select, socket, subprocess, sys, threading, time
        lock, rlock, condition = threading.Lock(), threading.RLock(), threading.Condition()
        one, other = socket.socketpair()
        reader, writer = os.pipe()
        def with_lock():
            with lock, rlock, condition:
                try:
                    time.sleep(600)
                finally:
                    print("no")
        def computing():
            while True: pass
        for target in (
            with_lock, lock.acquire, rlock.acquire, condition.acquire, queue.Queue().get,
            queue.SimpleQueue().get, threading.Event().wait, lambda: other.recv(1),
            lambda: one.makefile("rb").readline(), lambda: os.read(reader, 1),
            lambda: select.select([reader], [], []), lambda: sorted([1], key=lambda _: time.sleep(600)),
            lambda: socket.getaddrinfo("localhost", 80), computing,
        ):
            threading.Thread(target=target, daemon=True).start()
        time.sleep(0.05)
        atexit.register(print, "atexit")
        print("end")
        """,
    "os._exit in a thread": """
        import atexit, os, threading
        atexit.register(print, "no")
        def work():
            print("thread", flush=True)
            os._exit(4)
        threading.Thread(target=work).start()
        threading.Event().wait()
        """,
    "sys.exit in a thread": """
        import sys, threading
        def work(status):
            try:
                sys.exit(status)
            finally:
                print("finally", flush=True)
        for status in (None, 5, "text"):
            thread = threading.Thread(target=work, args=(status,))
            thread.start()
            thread.join()
        print("end")
        """,
    "exception in a thread at the end": """
        import threading, time
        def inner():
            time.sleep(0.02)
            {}["missing"]
        def work():
            try:
                inner()
            except KeyError:
                raise ValueError("from a thread")
        threading.Thread(target=work, name="worker").start()
        print("main ends", flush=True)
        """,
    "exception in excepthook": """
        import sys, threading
        def hook(args):
            print("hook", args.exc_type.__name__, args.thread.name, file=sys.stderr)
            1 / 0
        threading.excepthook = hook
        thread = threading.Thread(target=lambda: [][1], name="worker")
        thread.start()
        thread.join()
        def last(*args):
            raise RuntimeError("in sys.excepthook")
        sys.excepthook = last
        thread = threading.Thread(target=lambda: [][1], name="worker")
        thread.start()
        thread.join()
        print("end", flush=True)
        raise LookupError
        """,
    "_register_atexit": """
        import atexit, threading, time
        stop = threading.Event()
        def work():
            stop.wait()
            print("stopped")
        threading.Thread(target=work).start()
        atexit.register(print, "atexit")
        threading._register_atexit(print, "first")
        threading._register_atexit(lambda: (print("told"), stop.set()))
        print("main ends")
        """,
    "_register_atexit too late": """
        import atexit, threading
        def late():
            try:
                threading._register_atexit(print, "no")
            except RuntimeError as error:
                print(error)
        atexit.register(late)
        """,
    "thread started in an atexit handler": """
        import atexit, sys, threading, time
        def late():
            try:
                thread = threading.Thread(target=lambda: (time.sleep(0.01), print("ran")))
                thread.start()
                thread.join()
            except RuntimeError as error:
                print(error)
        atexit.register(late)
        """,
    "executor that still works": """
        import atexit, concurrent.futures, threading, time
        pool = concurrent.futures.ThreadPoolExecutor(2)
        def work(number):
            time.sleep(0.2 + 0.3 * number)
            print("done", number, flush=True)
        for number in range(2):
            pool.submit(work, number)
        atexit.register(print, "atexit")
        print("main ends", flush=True)
        """,
    "executor used too late": """
        import atexit, concurrent.futures
        pool = concurrent.futures.ThreadPoolExecutor(1)
        print(pool.submit(int, "3").result())
        def late():
            try:
                pool.submit(int, "4")
            except RuntimeError as error:
                print(error)
        atexit.register(late)
        """,
    "to_thread that nobody awaits": """
        import asyncio, atexit, threading, time
        atexit.register(print, "atexit")
        ended = threading.Event()
        def work():
            ended.wait()
            time.sleep(0.02)
            print("worked", flush=True)
        async def main():
            asyncio.get_running_loop().run_in_executor(None, work)
            await asyncio.sleep(0.01)
            print("main ends", flush=True)
            ended.set()
        asyncio.run(main())
        """,
    "threads of a program that fails": """
        import threading, time
        threading.Thread(target=lambda: (time.sleep(0.03), print("thread", flush=True))).start()
        def fail():
            raise SystemError("main")
        fail()
        """,
    "thread-local values and objects with finalizers": """
        import threading, time
        class Noisy:
            def __init__(self, name): self.name = name
            def __del__(self): print("gone", self.name, flush=True)
        local = threading.local()
        ended = threading.Event()
        def work(name):
            local.value = Noisy(name)
            ended.wait()
            time.sleep(0.02)
        threading.Thread(target=work, args=("thread",)).start()
        local.value = Noisy("main")
        print("main ends", flush=True)
        ended.set()
        """,
}


def without_addresses(text: str) -> str:
    """Idents as well: a thread's repr says its own."""
    return re.sub(r"0x[0-9a-f]+|started (daemon )?\d+", "*", text)


@pytest.mark.parametrize("mode", UNSEEN)
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_ends_as_in_plain_python(run_app, tmp_path, mode, name):
    (tmp_path / "app.py").write_text(textwrap.dedent(PROGRAMS[name]))
    plain, patched = (
        (done.status, done.out, without_addresses(done.err))
        for done in both(run_app, "app.py", mode=mode)
    )
    assert patched == plain
    assert "no" not in plain[1].split()


INTERRUPTED = """
import atexit, threading, time
atexit.register(print, "atexit", flush=True)
def work():
    print("ready", flush=True)
    time.sleep(1.5)
    print("thread", flush=True)
threading.Thread(target=work).start()
"""


@pytest.mark.parametrize("mode", UNSEEN)
def test_interrupt_while_threads_are_joined_at_the_end(start_program, mode):
    outcomes = []
    for how in ("plain", mode):
        process = start_program(INTERRUPTED, mode=how)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # the main thread gets to its end; a signal before is another program
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        outcomes.append((process.returncode, out, without_addresses(err)))
    assert outcomes[1] == outcomes[0]
    assert "KeyboardInterrupt" in outcomes[0][2]
