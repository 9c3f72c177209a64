"""Condition, Event, Semaphore, queue.Queue: faster inside, to the program what they are in CPython."""

from __future__ import annotations

import re

import pytest
from test_locks import green, same  # noqa: F401

WAITS = {
    "condition": "with condition: condition.wait()",
    "condition, timeout": "with condition: condition.wait(timeout=30)",
    "condition, wait_for": "with condition: condition.wait_for(lambda: False)",
    "event": "event.wait()",
    "event, timeout": "event.wait(30)",
    "semaphore": "semaphore.acquire()",
    "semaphore, with": "with semaphore: pass",
    "semaphore, timeout": "semaphore.acquire(timeout=30)",
    "queue, get": "items.get()",
    "queue, get, timeout": "items.get(timeout=30)",
    "queue, put": "full.put(2)",
    "queue, put, timeout": "full.put(2, timeout=30)",
    "lifo queue, get": "queue.LifoQueue().get()",
    "barrier": "threading.Barrier(2).wait()",
    "join": "items.put(1); items.join()",
}


@pytest.mark.parametrize("wait", WAITS)
def test_interrupted_wait_has_cpythons_traceback(same, wait):
    out = same(
        """
        import queue, signal, sys, threading, traceback
        condition, event, semaphore = threading.Condition(), threading.Event(), threading.Semaphore(0)
        items, full = queue.Queue(), queue.Queue(1)
        full.put(1)

        def wait():
            WAIT

        threading.Thread(target=int).start()  # from now on they are what they are here
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            wait()
        except KeyboardInterrupt:
            traceback.print_exc(file=sys.stdout)
        print(condition.acquire(False), condition._waiters, event._cond._lock.locked())
        print(items.mutex.locked(), full.mutex.locked(), full.qsize(), semaphore._cond._lock.locked())
        """.replace("WAIT", WAITS[wait])
    )
    assert "in wait" in out and "KeyboardInterrupt" in out


def test_functions_look_like_cpythons(same):
    same("""
        import inspect, pickle, queue, threading
        threading.Thread(target=int).start()
        for function in (threading.Condition.wait, threading.Condition.notify, threading.Event.set,
                         threading.Event.wait, threading.Event.clear, threading.Semaphore.acquire,
                         threading.Semaphore.release, threading.BoundedSemaphore.release,
                         threading.Semaphore.__enter__, queue.Queue.get, queue.Queue.put):
            print(type(function), function.__qualname__, function.__module__, function.__defaults__)
            print(inspect.signature(function), inspect.getsource(function), function.__doc__)
            print(pickle.dumps(function), function.__code__.co_name, function.__code__.co_firstlineno)
        print(threading.Semaphore.__enter__ is threading.Semaphore.acquire)
        print(sorted(vars(threading.Condition())), sorted(vars(queue.Queue())))
    """)


def test_frames_of_parked_threads_are_cpythons(same):
    same("""
        import queue, sys, threading, time, traceback
        condition, event, items = threading.Condition(), threading.Event(), queue.Queue()

        def hold(): condition.acquire(); condition.wait()

        for body in (hold, event.wait, items.get, threading.Semaphore(0).acquire):
            thread = threading.Thread(target=body, daemon=True)
            thread.start()
            time.sleep(0.05)
            stack = traceback.extract_stack(sys._current_frames()[thread.ident])
            print([(frame.name, frame.lineno, frame.line) for frame in stack])
    """)


def test_arguments_and_errors_as_cpython(same):
    same("""
        import queue, threading
        threading.Thread(target=int).start()

        def attempt(function, *args, **kwargs):
            try:
                print(repr(function(*args, **kwargs)))
            except BaseException as error:
                print(type(error).__name__, error)

        odd = [(), (None,), (0,), (-1,), (0.001,), (1e-9,), ("x",), (1e30,), (float("nan"),), (1, 2), (True,)]
        for lock in (threading.Lock(), threading.RLock()):
            condition = threading.Condition(lock)
            attempt(condition.wait), attempt(condition.notify), attempt(condition.notify_all)
            with condition:
                for args in odd:
                    if args not in ((), (None,), (True,)):
                        attempt(condition.wait, *args)
                for args in (*odd, (2,), (-3,)):
                    attempt(condition.notify, *args)
                print(condition._is_owned(), condition._waiters)
        for args in odd:
            event = threading.Event()
            if args not in ((), (None,), (True,)):
                attempt(event.wait, *args)
            event.set()
            attempt(event.wait, *args)
            attempt(event.set), attempt(event.is_set), attempt(event.clear), attempt(event.is_set)
        for make in (threading.Semaphore, threading.BoundedSemaphore):
            for args in (*odd, (False,), (False, 1), (False, None), (True, 0), (True, -1), (1,), (0,)):
                attempt(make(1).acquire, *args)
                if args and args not in ((None,), (1,), (True,), ("x",), (-1,), (1e30,), (0.001,), (1e-9,)):
                    attempt(make(0).acquire, *args) if args != (float("nan"),) and args[0] == args[0] else 0
                semaphore = make(1)
                attempt(semaphore.release, *args), print(semaphore._value)
            semaphore = make(2)
            semaphore.acquire(), semaphore.acquire()
            attempt(semaphore.release, 2), print(semaphore._value), attempt(semaphore.release, 0)
        for make in (queue.Queue, queue.LifoQueue, queue.PriorityQueue):
            for args in ((False,), (True, 0), (True, -1), (True, 0.001), (0,), (None,), (False, -1), (1, 0)):
                attempt(make().get, *args)
                holds = make(1)
                attempt(holds.put, 7, *args), print(holds.unfinished_tasks)
                attempt(holds.put, 8, *args), print(holds.unfinished_tasks)
                attempt(holds.get, *args), attempt(holds.task_done), attempt(holds.task_done)
            for size in (0, -1, 2):
                items = make(size)
                for item in (3, 1):
                    items.put(item)
                print(items.full(), items.qsize(), items.get(), items.get_nowait(), items.empty())
        items = queue.Queue()
        items.put(NotImplemented), items.put(...), items.put(None)
        print(items.get(), items.get(), items.get())
        attempt(items.put), attempt(items.get, 1, 2, 3), attempt(items.get, bad=1)
        if hasattr(items, "shutdown"):
            items.put(1)
            items.shutdown()
            attempt(items.put, 2), attempt(items.get), attempt(items.get), attempt(items.get_nowait)
    """)


def test_shutdown_of_a_queue_wakes_those_who_wait(same):
    same("""
        import queue, threading, time
        if not hasattr(queue.Queue, "shutdown"):
            raise SystemExit
        ended = []

        def attempt(function, *args):
            try:
                function(*args)
            except queue.ShutDown:
                ended.append(function.__name__)

        empty, full = queue.Queue(), queue.Queue(1)
        full.put(1)
        threads = [threading.Thread(target=attempt, args=args) for args in ((empty.get,), (full.put, 2))]
        [thread.start() for thread in threads]
        time.sleep(0.05)
        empty.shutdown(), full.shutdown()
        [thread.join() for thread in threads]
        print(sorted(ended))
    """)


def test_what_a_program_overrides_is_used(same):
    same("""
        import queue, threading
        from unittest import mock
        threading.Thread(target=int).start()

        class Told(threading.Condition):
            def notify(self, n=1):
                print("notify", n)
                super().notify(n)
            def _is_owned(self):
                print("asked")
                return True

        told = Told()
        with told:
            told.notify_all()
            told.wait(0.001)
        semaphore = threading.Semaphore(0)
        semaphore._cond = Told(threading.Lock())
        semaphore.release(), print(semaphore.acquire())

        class Twice(queue.Queue):
            def _put(self, item):
                self.queue.append(item * 2)
            def _get(self):
                return self.queue.pop()

        items = Twice()
        items.put(1), items.put(2), print(items.get(), items.get())
        plain = queue.Queue()
        plain._put = lambda item: plain.queue.append(("mine", item))
        plain.put(1), print(plain.get())
        with mock.patch.object(threading.Condition, "notify", lambda self, n=1: print("mocked", n)):
            plain.put(1)
        with mock.patch.object(threading.Condition, "wait", lambda self, timeout=None: print("waits")):
            threading.Event().wait()
        plain.get()

        class Lock:
            def __init__(self): self.lock, self.log = threading.Lock(), []
            def acquire(self, *args): self.log.append("acquire"); return self.lock.acquire(*args)
            def release(self): self.log.append("release"); self.lock.release()
            def locked(self): return self.lock.locked()  # 3.14's Condition wants it
            def __enter__(self): return self.acquire()
            def __exit__(self, *_): self.release()

        lock = Lock()
        condition = threading.Condition(lock)
        with condition:
            condition.wait(0.001), condition.notify()
        print(lock.log)
        recursive = threading.RLock()
        condition = threading.Condition(recursive)
        with recursive, condition, condition:
            thread = threading.Thread(target=lambda: (condition.acquire(), condition.notify(), condition.release()))
            thread.start()
            condition.wait()
            print(recursive._recursion_count() if hasattr(recursive, "_recursion_count") else 3)
    """)


def test_waiters_are_notified_in_order(green):
    out = green("""
        import threading, time
        condition, woken = threading.Condition(), []

        def wait(number):
            with condition:
                condition.wait()
                woken.append(number)

        threads = [threading.Thread(target=wait, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
            time.sleep(0)
        for n in (1, 2, 3):
            with condition:
                condition.notify(n)
            time.sleep(0.01)
            print(woken)
    """)
    assert out == "[0]\n[0, 1, 2]\n[0, 1, 2, 3, 4, 5]\n"


def test_notification_of_a_cancelled_waiter_goes_to_the_next(green):
    """An item was put, and the one who was told of it is cancelled before it could take it."""
    out = green("""
        import asyncio, queue, threading
        threading.Thread(target=int).start()
        items = queue.Queue()

        async def take():
            return items.get()

        async def main():
            first, second = asyncio.create_task(take()), asyncio.create_task(take())
            await asyncio.sleep(0.01)
            items.put("item")
            first.cancel()
            done = await asyncio.gather(first, second, return_exceptions=True)
            print([type(done[0]).__name__, done[1]] if done[0] != "item" else "taken")
            print(items.mutex.locked(), items.not_empty._waiters)

        asyncio.run(main())
    """)
    assert out == "['CancelledError', 'item']\nFalse deque([])\n"


def test_a_task_cancelled_while_it_gives_its_permit_back_has_given_it(green):
    """It waits for the semaphore's own lock just then, which somebody holds for an instant."""
    out = green("""
        import asyncio, threading
        threading.Thread(target=int).start()

        async def main(semaphore, times):
            with semaphore._cond:
                given = asyncio.create_task(give(semaphore))
                await asyncio.sleep(0.01)
                for _ in range(times):
                    given.cancel()
                    await asyncio.sleep(0.01)
                print(semaphore._value, given.done())
            print([type(error).__name__ for error in await asyncio.gather(given, return_exceptions=True)])
            print(semaphore._value, semaphore._cond._is_owned())

        async def give(semaphore):
            semaphore.release()

        for kind in (threading.Semaphore, threading.BoundedSemaphore):
            for times in (1, 2):
                semaphore = kind(1)
                semaphore.acquire()
                asyncio.run(main(semaphore, times))
    """)
    assert out == "0 False\n['CancelledError']\n1 False\n" * 4


def test_native_and_green_threads_share_them(green):
    out = green("""
        import queue, threading
        there, back, tickets = queue.Queue(3), queue.Queue(), threading.Semaphore(2)

        def echo():
            while (item := there.get()) is not None:
                with tickets:
                    back.put(item)

        for number in range(4):
            (start_native if number % 2 else _thread.start_new_thread)(echo, ())
        threading.Thread(target=lambda: [there.put(item) for item in range(400)]).start()
        print(sum(back.get() for _ in range(400)))
        for _ in range(4):
            there.put(None)
    """)
    assert out == f"{sum(range(400))}\n"


def test_unpatching_gives_the_functions_their_code_back(run_app):
    out = (
        run_app(
            """
        import queue, threading
        functions = [threading.Condition.wait, threading.Event.set, queue.Queue.get, queue.Queue.put]
        before = [function.__code__ for function in functions]
        import portalpatch
        portalpatch.patch_all()
        threading.Thread(target=int).start()
        during = [function.__code__ is code for function, code in zip(functions, before)]
        portalpatch.unpatch_all()
        print(during, all(function.__code__ is code for function, code in zip(functions, before)))
        """,
            mode="plain",
        )
        .check()
        .out
    )
    assert re.match(r"\[False, False, False, False\] True", out)
