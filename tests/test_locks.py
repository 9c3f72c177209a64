"""Lock, RLock and SimpleQueue: the same as CPython's to their users, fair, usable across threads.

Where plain CPython can run the same script, both run it and must print the same bytes.
"""

from __future__ import annotations

import textwrap

import pytest

# Starts real OS threads under portalpatch; joins them from any strand through a green lock.
NATIVE = """
import _thread
try:
    from portalpatch import _core
    start_native = _core.original(_thread.start_new_thread)
except ImportError:
    start_native = _thread.start_new_thread
"""


@pytest.fixture
def same(run_app):
    """same(source, ...): plain CPython and portalpatch print the same bytes; returns stdout."""

    def run(source, status=0, **how):
        # Plain Python warns of a fork with several OS threads; here there is only one.
        how.setdefault("flags", ["-W", "ignore::DeprecationWarning"])
        plain = run_app(source, mode="plain", **how).check(status)
        patched = run_app(source, mode="cli", **how).check(status)
        assert (patched.out, patched.err) == (plain.out, plain.err)
        return plain.out

    return run


@pytest.fixture
def green(run_app):
    """green(source): stdout of a script under portalpatch, which ends well and says no more."""

    def run(source, **how):
        done = run_app(NATIVE + textwrap.dedent(source), **how).check()
        assert done.err == ""
        return done.out

    return run


def test_signatures_of_lock_types_as_cpython(same):
    same("""
import _thread, inspect, sys
def say(name, function):
    try:
        print(name, inspect.signature(function))
    except ValueError as error:
        print(error)
say("lock", _thread.LockType)
if sys.version_info >= (3, 13):  # before, most methods have none
    for type in _thread.LockType, _thread.RLock:
        for name in "acquire", "__enter__", "__exit__", "release":
            say(name, getattr(type, name))
    say("acquire_lock", _thread.LockType.acquire_lock)
""")


def test_acquire_arguments_and_errors_as_cpython(same):
    same("""
        import _thread, threading

        def attempt(function, *args, **kwargs):
            try:
                print(function(*args, **kwargs))
            except BaseException as error:
                print(type(error).__name__, error)

        calls = [((), {}), ((True,), {}), ((False,), {}), ((1,), {}), ((0,), {}), (("x",), {}),
                 ((True, -1), {}), ((True, -1.0), {}), ((True, -2), {}), ((True, -0.5), {}),
                 ((False, -1), {}), ((False, 1), {}), ((False, 0), {}), ((True, 0), {}),
                 ((True, 0.01), {}), ((True, 1e20), {}), ((True, 1e10), {}),
                 ((True, float("nan")), {}), ((True, float("inf")), {}), ((True, "x"), {}),
                 ((True, None), {}), ((True, 1 << 70), {}), ((1 << 70,), {}), ((1, 2, 3), {}),
                 ((), {"blocking": False}), ((), {"timeout": 0.01}), ((), {"foo": 1}),
                 ((1,), {"blocking": 1}), ((1, 1), {"timeout": 1}), ((), {"blocking": True, "timeout": 0}),
                 ((True,), {"timeout": 9223372036}), ((True,), {"timeout": 9223372037})]
        for make in (threading.Lock, threading.RLock):
            for args, kwargs in calls:
                print(args, kwargs)
                attempt(make().acquire, *args, **kwargs)
                if args in ((True, -1), (True, -1.0), (1 << 70,)) or 9223372036 in kwargs.values():
                    continue  # would wait for ever
                lock = make()
                lock.acquire()
                done = threading.Lock()
                done.acquire()
                if args[:1] == (False,) or len(args) > 1 or kwargs:
                    def other():
                        attempt(lock.acquire, *args, **kwargs)
                        done.release()
                    _thread.start_new_thread(other, ())
                    done.acquire()
        lock, rlock = threading.Lock(), threading.RLock()
        attempt(lock.release)
        attempt(lock.__exit__, 1, 2, 3)
        attempt(rlock.release)
        attempt(rlock._release_save)
        attempt(rlock._acquire_restore, 1)
        attempt(rlock._acquire_restore, (1,))
        attempt(rlock._acquire_restore, ("a", 1))
        attempt(lambda: _thread.RLock(1).acquire())
        attempt(type(lock), 1)
        attempt(type(lock), a=1)
        attempt(lambda: type("Sub", (type(lock),), {}))
        attempt(lambda: type("Sub", (_thread.RLock,), {})().acquire())
        attempt(setattr, type(lock), "x", 1)
    """)


def test_reprs_pickles_and_types_as_cpython(same):
    same("""
        import _thread, copy, pickle, re, threading, weakref

        def show(value):
            print(re.sub(r"0x[0-9a-f]+|owner=[1-9][0-9]*", "*", repr(value)))

        lock, rlock = threading.Lock(), threading.RLock()
        show(lock), show(rlock)
        lock.acquire(), rlock.acquire(), rlock.acquire()
        show(lock), show(rlock)
        print(lock.locked(), rlock._is_owned())
        print(f"owner={threading.get_ident()} count=2" in repr(rlock))
        for value in (lock, rlock):
            for function in (pickle.dumps, copy.copy):
                try:
                    function(value)
                except TypeError as error:
                    print(error)
        print(pickle.dumps(threading.Lock), threading.Lock, _thread.allocate_lock)
        print(isinstance(lock, _thread.LockType), type(lock).__module__, type(lock).__name__)
        print(type(rlock).__module__, type(rlock).__qualname__, isinstance(rlock, _thread.RLock))
        reference = weakref.ref(lock)
        del lock
        print(reference())
        print(sorted(name for name in dir(threading.Lock()) if name not in dir(object)))
        with threading.Lock() as value:
            print(value)
        with rlock as value:
            print(value)
    """)


def test_condition_event_semaphore_barrier_as_cpython(same):
    same("""
        import threading

        log = []
        condition = threading.Condition()
        turn = 0

        def take_turns(number):
            global turn
            for _ in range(3):
                with condition:
                    condition.wait_for(lambda: turn % 3 == number)
                    log.append(number)
                    turn += 1
                    condition.notify_all()

        threads = [threading.Thread(target=take_turns, args=(number,)) for number in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(log)
        with condition:
            print(condition.wait(0.01))
        event = threading.Event()
        print(event.wait(0.01), event.is_set())
        threading.Timer(0.01, event.set).start()
        print(event.wait(), event.wait(0))
        semaphore = threading.BoundedSemaphore(2)
        print(semaphore.acquire(), semaphore.acquire(), semaphore.acquire(timeout=0.01))
        semaphore.release(2)
        try:
            semaphore.release()
        except ValueError as error:
            print(error)
        barrier = threading.Barrier(3, action=lambda: print("action"))
        threads = [threading.Thread(target=barrier.wait) for _ in range(2)]
        [thread.start() for thread in threads]
        barrier.wait()
        [thread.join() for thread in threads]
        try:
            barrier.wait(0.01)
        except threading.BrokenBarrierError:
            print("broken", barrier.broken)
    """)


def test_release_hands_the_lock_over_in_order_of_arrival(green):
    out = green("""
        import threading, time
        lock, order = threading.Lock(), []
        lock.acquire()

        def wait(number):
            with lock:
                order.append(number)
                time.sleep(0.001)

        threads = []
        for number in range(20):
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            time.sleep(0)
        lock.release()
        print(lock.acquire(False))  # spoken for: nobody overtakes
        [thread.join() for thread in threads]
        print(order == list(range(20)), lock.locked())
    """)
    assert out == "False\nTrue False\n"


def test_uncontended_acquire_does_not_switch(green):
    out = green("""
        import threading, portalpatch, time
        threading.Thread(target=time.sleep, args=(0.05,)).start()
        lock, rlock, ran = threading.Lock(), threading.RLock(), []
        _thread.start_new_thread(ran.append, (1,))
        for _ in range(1000):
            with lock, rlock, rlock:
                pass
        print(ran)
    """)
    assert out == "[]\n"


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_timeout_never_fires_early(green, kind):
    out = green(f"""
        import threading, time
        lock = threading.{kind}()
        lock.acquire()
        early = []

        def wait(timeout):
            began = time.monotonic()
            got = lock.acquire(timeout=timeout)
            if got or time.monotonic() - began < timeout:
                early.append(timeout)

        threads = [threading.Thread(target=wait, args=(n / 1000 + 0.0005,)) for n in range(100)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        done = threading.Lock()
        done.acquire()
        start_native(lambda: (wait(0.0123), done.release()), ())
        done.acquire()
        print(early)
    """)
    assert out == "[]\n"


def test_lock_passes_between_native_and_green_threads(green):
    out = green("""
        import threading, time
        lock, counter, ended = threading.Lock(), 0, threading.Semaphore(0)

        def work():
            global counter
            for _ in range(200):
                with lock:
                    seen = counter
                    if seen % 7 == 0:
                        time.sleep(0)
                    counter = seen + 1
            ended.release()

        for number in range(6):
            (start_native if number % 2 else _thread.start_new_thread)(work, ())
        for _ in range(6):
            ended.acquire()
        print(counter)
    """)
    assert out == "1200\n"


def test_native_thread_wakes_a_green_one_and_back(green):
    out = green("""
        import threading
        ping, pong = threading.Lock(), threading.Lock()
        ping.acquire(), pong.acquire()

        def native():
            for _ in range(300):
                ping.acquire()
                pong.release()

        start_native(native, ())
        for _ in range(300):
            ping.release()
            pong.acquire()
        print("done")
    """)
    assert out == "done\n"


def test_condition_wait_owns_the_lock_again_after_an_interrupt(same):
    out = same("""
        import os, signal, threading
        condition = threading.Condition()
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            with condition:
                condition.wait()
        except KeyboardInterrupt:
            print("interrupted")
        print(condition.acquire(False))
    """)
    assert out == "interrupted\nTrue\n"


def test_interrupted_acquire_leaves_the_lock_to_others(same):
    out = same("""
        import os, signal, threading
        lock = threading.Lock()
        lock.acquire()
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            lock.acquire()
        except KeyboardInterrupt:
            print("interrupted")
        lock.release()
        print(lock.acquire(timeout=1), lock.locked())
    """)
    assert out == "interrupted\nTrue True\n"


def test_signal_handler_runs_during_acquire_and_the_wait_goes_on(same):
    out = same("""
        import os, signal, threading
        lock = threading.Lock()
        lock.acquire()
        signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        threading.Timer(0.15, lock.release).start()
        print(lock.acquire())
    """)
    assert out == "handled\nTrue\n"


def test_cancelled_task_passes_the_lock_on(green):
    out = green("""
        import asyncio, threading
        lock = threading.Lock()

        async def hold():
            with lock:
                pass
            return "got it"

        async def main():
            lock.acquire()
            first, second = asyncio.create_task(hold()), asyncio.create_task(hold())
            await asyncio.sleep(0.01)
            lock.release()  # handed to the first, which is cancelled before it runs
            first.cancel()
            print(await second, await asyncio.gather(first, return_exceptions=True))
            print(lock.locked())

        asyncio.run(main())
    """)
    assert out.splitlines()[-1] == "False"
    assert out.startswith("got it")


def test_rlock_excludes_another_task_of_the_same_loop(green):
    out = green("""
        import asyncio, threading, time
        lock, log = threading.RLock(), []

        async def work(name):
            with lock, lock:
                log.append(name)
                time.sleep(0.01)  # parks: the other task runs
                log.append(name)

        async def main():
            await asyncio.gather(work("a"), work("b"))

        asyncio.run(main())
        print(log)
    """)
    assert out == "['a', 'a', 'b', 'b']\n"


def test_locks_in_a_forked_child_have_no_waiters(same):
    out = same("""
        import os, threading, time
        lock, rlock = threading.Lock(), threading.RLock()
        lock.acquire(), rlock.acquire()
        for each in (lock, lock, rlock):
            threading.Thread(target=each.acquire, daemon=True).start()
        time.sleep(0.05)
        pid = os.fork()
        if pid == 0:
            lock.release(), rlock.release()
            taken = lock.acquire(False), rlock.acquire(False), lock.acquire(False)
            lock._at_fork_reinit()
            os._exit(0 if taken == (True, True, False) and not lock.locked() else 1)
        print(os.waitpid(pid, 0)[1])
        os._exit(0) if print(end="", flush=True) is None else None
    """)
    assert out == "0\n"


BEFORE = """
    import _thread, threading, queue, logging
    lock, rlock = threading.Lock(), threading.RLock()
    condition, event, aliases = threading.Condition(), threading.Event(), [lock.acquire]
    semaphore, messages = threading.Semaphore(0), queue.Queue()
    from threading import Thread, get_ident
    import portalpatch
    portalpatch.patch_all()
    import time
"""


def test_locks_made_before_patching_wait_greenly(run_app):
    source = (
        BEFORE
        + """
    log = []

    def hold(each, name):
        with each:
            log.append(name)
            time.sleep(0.01)
            log.append(name)

    for each in (lock, rlock, condition):
        threads = [Thread(target=hold, args=(each, name)) for name in "abc"]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print("".join(sorted(log[::2])), log[::2] == log[1::2])  # whoever comes first
        log.clear()
    with rlock, rlock:
        print(rlock._is_owned(), rlock.acquire(False))
        rlock.release()
    Thread(target=lambda: (time.sleep(0.01), event.set())).start()
    print(event.wait(), event.wait(1))
    lock.acquire()
    Thread(target=lambda: (time.sleep(0.01), lock.release())).start()
    print(aliases[0](), lock.acquire(timeout=0.01), repr(lock)[:8])
    Thread(target=lambda: (time.sleep(0.01), semaphore.release(), messages.put(5))).start()
    print(semaphore.acquire(), messages.get(), condition.acquire(False), condition._is_owned())
    """
    )
    out = run_app(source, mode="plain").check().out
    assert out.splitlines() == [
        "abc True",
        "abc True",
        "abc True",
        "True True",
        "True True",
        "True False <locked ",
        "True 5 True True",
    ]


def test_functions_imported_before_patching_are_green(run_app):
    source = (
        BEFORE
        + """
    idents = set()
    for _ in range(10):
        _thread.start_new_thread(lambda: (idents.add(get_ident()), time.sleep(0.01)), ())
    time.sleep(0.05)
    print(len(idents), get_ident() in idents, len(__import__("os").listdir("/proc/self/task")))
    """
    )
    assert run_app(source, mode="plain").check().out == "10 False 1\n"


def test_module_locks_exclude_tasks_that_import_the_same_module(green, tmp_path):
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(0.05)\nvalue = 1\n")
    out = green("""
        import asyncio, threading

        async def use():
            import slow_module
            return slow_module.value

        def use_in_thread():
            import slow_module
            values.append(slow_module.value)

        async def main():
            return await asyncio.gather(use(), use(), use())

        values = []
        threads = [threading.Thread(target=use_in_thread) for _ in range(3)]
        [thread.start() for thread in threads]
        print(asyncio.run(main()))
        [thread.join() for thread in threads]
        print(values)
    """)
    assert out == "[1, 1, 1]\n[1, 1, 1]\n"


# ---- SimpleQueue ------------------------------------------------------------------------------


def test_simple_queue_arguments_and_errors_as_cpython(same):
    same("""
        import pickle, queue, re, weakref
        Q = queue.SimpleQueue

        def attempt(function, *args, **kwargs):
            try:
                print(re.sub("0x[0-9a-f]+", "*", repr(function(*args, **kwargs))))
            except BaseException as error:
                print(type(error).__module__, type(error).__name__, error)

        q = Q()
        for args in ((), (1,)):
            attempt(Q, *args)
        attempt(Q, x=1)
        for args in ((True, -1), (True, 1e30), (False,), (True, "x"), (True, None, 3), (False, "x"),
                     (False, -1), (True, float("nan")), (True, 0), (True, 9e18), ("", 5), (True, 0.01)):
            attempt(q.get, *args)
        attempt(q.get, timeout=-1), attempt(q.get, foo=1), attempt(q.put), attempt(q.put, 1, 2, 3, 4)
        attempt(q.put, item=3), attempt(q.get_nowait), attempt(q.put, 1, x=2)
        attempt(q.put, 7, False, 3), attempt(q.get, True, 1), attempt(q.get_nowait)
        attempt(Q.__class_getitem__, int), attempt(pickle.dumps, q), attempt(lambda: q)
        class Sub(Q):
            def __init__(self, name):
                self.name = name
        attempt(lambda: Sub("n").name)
        print(q.empty(), q.qsize(), weakref.ref(q)() is q)
        q.put(q)
        print(q.empty(), q.qsize())
    """)


def test_simple_queue_serves_getters_in_order_of_arrival(green):
    out = green("""
        import queue, threading, time
        q, got = queue.SimpleQueue(), []
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=lambda n=number: got.append((n, q.get()))))
            threads[-1].start()
            time.sleep(0)
        for item in range(6):
            q.put(item)
        print(q.get_nowait(), q.qsize())  # there is one for each who waits
        [thread.join() for thread in threads]
        print(got)
    """)
    assert out == "0 0\n[(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]\n"


def test_simple_queue_between_native_and_green_threads(green):
    out = green("""
        import queue, threading
        there, back = queue.SimpleQueue(), queue.SimpleQueue()

        def echo():
            while (item := there.get()) is not None:
                back.put(item)

        for number in range(4):
            (start_native if number % 2 else _thread.start_new_thread)(echo, ())
        for item in range(500):
            there.put(item)
        print(sum(back.get() for _ in range(500)))
        for _ in range(4):
            there.put(None)
    """)
    assert out == f"{sum(range(500))}\n"


def test_simple_queue_put_may_be_reentered_by_a_destructor(same):
    same("""
        import gc, queue
        q = queue.SimpleQueue()

        class Puts:
            def __del__(self):
                q.put("deleted")

        for _ in range(1000):
            cycle = Puts()
            cycle.self = cycle
            q.put(1)
        del cycle
        gc.collect()
        print(q.qsize(), sorted({q.get_nowait() for _ in range(2000)}, key=str))
    """)


def test_simple_queue_made_before_patching_waits_greenly(run_app):
    """Its getters are green and native threads; so are those who put."""
    done = run_app(
        """
        import _thread, queue, threading, time
        q, results, from_native = queue.SimpleQueue(), [], queue.SimpleQueue()

        def outcome(*args):
            start = time.monotonic()
            try:
                return q.get(*args)
            except Exception as error:
                return type(error).__name__, str(error), args != (True, 0.01) or time.monotonic() - start >= 0.01

        attempts = ((True, 0.01), (True, -1), (False,), (True, "x"), (1, 2, 3), (True, 0))
        natively = [outcome(*args) for args in attempts]
        start_native = _thread.start_new_thread
        start_native(lambda: [from_native.put(q.get()) for _ in range(2)], ())  # waits natively
        import portalpatch
        start_native = portalpatch._core.original(_thread.start_new_thread)
        portalpatch.patch_all()
        time.sleep(0.01)
        threads = [threading.Thread(target=lambda: results.append(q.get())) for _ in range(3)]
        [thread.start() for thread in threads]
        for item in range(3):
            q.put(item) if item else q.put_nowait(item)
            time.sleep(0.001)
        start_native(lambda: (time.sleep(0.01), q.put(3), q.put(4)), ())
        [thread.join() for thread in threads]
        print(sorted([*results, from_native.get(), from_native.get()]))
        print(type(q) is type(queue.SimpleQueue()))
        greenly = [outcome(*args) for args in attempts]
        print(greenly == natively, *greenly, sep="\\n")
        """,
        mode="plain",
    ).check()
    assert done.out.startswith(
        "[0, 1, 2, 3, 4]\nFalse\nTrue\n('Empty', '', True)\n('ValueError', "
    ), done.out


def test_locks_that_the_standard_library_made_before_patching_never_stop_the_thread(
    run_app, tmp_path
):
    """Each is held by a green thread that parks while another wants it; a third one runs meanwhile."""
    (tmp_path / "slow_before.py").write_text("import time\ntime.sleep(0.05)\nvalue = 1\n")
    out = (
        run_app(
            """
        import concurrent.futures, importlib, io, logging, random, tempfile, threading, time

        class SlowStream(io.StringIO):
            def write(self, text):
                time.sleep(0.005)
                return super().write(text)

        stream = SlowStream()
        logging.basicConfig(stream=stream, format="%(message)s")
        pool = concurrent.futures.ThreadPoolExecutor(2)  # its workers are native threads
        pool.submit(int).result()
        future = concurrent.futures.Future()
        random.seed(1)
        import portalpatch
        portalpatch.patch_all()

        def together(function, count=4):
            ticks, results, over = [], [], []
            def tick():
                while not over:
                    ticks.append(1)
                    time.sleep(0.001)
            ticker = threading.Thread(target=tick)
            ticker.start()
            threads = [threading.Thread(target=lambda: results.append(function())) for _ in range(count)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            over.append(1)
            ticker.join()
            return len(ticks) > 1, results

        def hold_importlib():
            import slow_before
            return slow_before.value

        def hold_module_lock():
            with tempfile._once_lock:
                time.sleep(0.005)

        print("logging", together(lambda: logging.warning("text")), stream.getvalue().count("text"))
        print("importlib", together(hold_importlib))
        print("tempfile", together(hold_module_lock))
        threading.Timer(0.01, future.set_result, ["result"]).start()
        print("future", together(future.result))
        print("pool", together(lambda: pool.submit(time.sleep, 0.01).result()))
        print("random", together(lambda: (time.sleep(0.002), random.Random(1).random())[1] > 0))
        pool.shutdown()
        """,
            mode="plain",
            env={"PYTHONPATH": str(tmp_path)},
        )
        .check()
        .out
    )
    assert out.splitlines() == [
        "logging (True, [None, None, None, None]) 4",
        "importlib (True, [1, 1, 1, 1])",
        "tempfile (True, [None, None, None, None])",
        "future (True, ['result', 'result', 'result', 'result'])",
        "pool (True, [None, None, None, None])",
        "random (True, [True, True, True, True])",
    ]
