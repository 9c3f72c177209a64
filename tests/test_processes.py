"""multiprocessing under portalpatch: the same results as plain, and no green thread is held up."""

from __future__ import annotations

import pytest
from test_locks import green, same  # noqa: F401

PROGRAM = """
import multiprocessing, sys, threading, time

def square(number):
    return number * number

def work(tasks, results, lock, name):
    for _ in range(10):
        with lock:
            results.put((name, tasks.get()))

def main(context):
    with context.Pool(3) as pool:
        print(pool.map(square, range(10)), sum(pool.imap_unordered(square, range(50))))
    tasks, results, lock = context.Queue(), context.Queue(), context.Lock()
    children = [context.Process(target=work, args=(tasks, results, lock, n)) for n in range(3)]
    [child.start() for child in children]
    feeder = threading.Thread(target=lambda: [tasks.put(n) for n in range(30)])
    feeder.start()
    print(sorted(results.get()[1] for _ in range(30)))
    feeder.join()
    [child.join() for child in children]
    print([child.exitcode for child in children])
    with context.Manager() as manager:
        shared = manager.dict()
        threads = [threading.Thread(target=shared.__setitem__, args=(n, n)) for n in range(5)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(sorted(shared.items()))
    one, other = context.Pipe()
    threading.Timer(0.01, one.send, ("through the pipe",)).start()
    print(other.recv())

if __name__ == "__main__":
    main(multiprocessing.get_context(sys.argv[1]))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_queues_managers_and_pipes_as_cpython(run_app, method):
    flags = ["-W", "ignore::DeprecationWarning"]
    plain = run_app(PROGRAM, method, mode="plain", flags=flags).check()
    patched = run_app(PROGRAM, method, mode="cli", flags=flags).check()
    assert (patched.out, patched.err) == (plain.out, plain.err)


def test_waiting_for_a_shared_semaphore_lets_other_threads_run(same):
    same("""
        import multiprocessing, threading, time
        lock, semaphore = multiprocessing.Lock(), multiprocessing.Semaphore(0)
        event, rlock = multiprocessing.Event(), multiprocessing.RLock()
        lock.acquire()
        threading.Timer(0.02, lock.release).start()
        print(lock.acquire(), lock.acquire(timeout=0.01), lock.acquire(False))
        lock.release()
        threading.Timer(0.02, semaphore.release).start()
        print(semaphore.acquire())
        threading.Timer(0.02, event.set).start()
        print(event.wait())
        log = []

        def enter(name):
            with rlock, rlock:
                log.append(name)
                time.sleep(0.01)
                log.append(name)

        threads = [threading.Thread(target=enter, args=(name,)) for name in "abc"]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print("".join(sorted("".join(log[n : n + 2]) for n in range(0, 6, 2))))
        for function in (rlock.release, lock.release):
            try:
                print(function())
            except (AssertionError, ValueError) as error:
                print(error)
        began = time.monotonic()
        lock.acquire()
        print(lock.acquire(timeout=0.05), time.monotonic() - began >= 0.05)
    """)


def test_subprocess_pipes_larger_than_the_buffer(same):
    same("""
        import subprocess, sys, threading
        echo = [sys.executable, "-c", "import sys; sys.stdout.write(sys.stdin.read() * 2)"]
        results = []

        def run(letter):
            done = subprocess.run(echo, input=letter * 300000, capture_output=True, text=True)
            results.append((letter, len(done.stdout), set(done.stdout) == {letter}, done.returncode))

        threads = [threading.Thread(target=run, args=(letter,)) for letter in "abc"]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(sorted(results))
        try:
            subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.1)
        except subprocess.TimeoutExpired as error:
            print(error.timeout > 0.09)
        print(subprocess.call([sys.executable, "-c", "raise SystemExit(3)"]))
    """)
