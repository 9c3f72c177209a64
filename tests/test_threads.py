"""Threads: under portalpatch a threaded program does and prints what it does under plain Python.

Most tests run one script both ways and compare the bytes of stdout and stderr.
"""

from __future__ import annotations

import re
import sys

import pytest
from test_locks import green, same  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore")


def test_thread_api_as_cpython(same):
    same("""
        import threading, time
        seen = {}

        def work(*args, **kwargs):
            me = threading.current_thread()
            seen[me.name] = (args, kwargs, me.daemon, me.is_alive(), me is threading.main_thread(),
                             me.ident == threading.get_ident(), me.native_id is not None)

        threads = [threading.Thread(target=work, args=(n,), kwargs={"k": n}, daemon=bool(n % 2))
                   for n in range(4)] + [threading.Thread(target=work, name="named")]
        for thread in threads:
            print(thread.name, thread.ident, thread.is_alive(), thread.daemon)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
            print(thread.is_alive(), type(thread.ident))
        print(sorted(seen.items()))
        for action in (threads[0].start, threading.current_thread().join, threading.Thread().join):
            try:
                action()
            except RuntimeError as error:
                print(error)
        event = threading.Event()
        waiting = threading.Thread(target=event.wait, name="waiting")
        waiting.start()
        print(threading.active_count(), [t.name for t in threading.enumerate()])
        waiting.join(0.01)
        print(waiting.is_alive(), re.sub(r"\\d+", "*", repr(waiting)) if (re := __import__("re")) else 0)
        event.set()
        waiting.join()
        print(re.sub(r"\\d+", "*", repr(waiting)), threading.main_thread().ident == threading.get_ident())
        try:
            threading.Thread(target=lambda: threading.current_thread().join()).start()
        finally:
            pass
    """)


def test_idents_are_unique_and_nonzero(green):
    out = green("""
        import threading, time
        idents = []
        all_live = threading.Barrier(50)
        threads = [threading.Thread(target=lambda: (idents.append(threading.get_ident()), all_live.wait()))
                   for _ in range(50)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(len({*idents, threading.get_ident()}), 0 in idents)
        print(all(thread.ident in idents for thread in threads))
    """)
    assert out == "51 False\nTrue\n"


def test_idents_of_green_threads_are_ended_threads_to_pthread_functions(green):
    out = green("""
        import ctypes, errno, threading
        libc = ctypes.CDLL(None)
        def use_ident():
            ident = ctypes.c_void_p(threading.get_ident())
            libc.pthread_setname_np(ident, b"renamed")  # as Trio does with its workers
            print(errno.errorcode[libc.pthread_getschedparam(ident, *map(ctypes.byref, (ctypes.c_int(), ctypes.c_int())))])
        threads = [threading.Thread(target=use_ident) for _ in range(50)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(open("/proc/self/comm").read() != "renamed\\n")
    """)
    assert out == "ESRCH\n" * 50 + "True\n"


def test_names_of_green_threads_leave_that_of_the_process(same):
    """From 3.14 on a thread gives its name to its OS thread."""
    same("""
        import _thread, threading
        comm = lambda: open("/proc/self/comm").read()  # the main thread's
        before = comm()

        def use_names():
            print(threading.current_thread().name, comm() == before)
            threading.current_thread().name = "again"
            print(threading.current_thread().name, comm() == before)
            for args in ((), (1,), ("a", "b")):
                try:
                    getattr(_thread, "set_name", int)(*args)
                except TypeError as error:
                    print(error if hasattr(_thread, "set_name") else "")

        thread = threading.Thread(target=use_names, name="worker")
        thread.start()
        thread.join()
        threading.current_thread().name = "mine"
        print(comm() == before)
    """)


def test_start_new_thread_arguments_and_errors_as_cpython(same):
    same("""
        import _thread, threading
        start = _thread.start_new_thread

        def attempt(function, *args, **kwargs):
            try:
                print(type(function(*args, **kwargs)))
            except BaseException as error:
                print(type(error).__name__, error)

        attempt(start, 1, ()), attempt(start, print, []), attempt(start, print, (), 1)
        attempt(start, print), attempt(start, print, (), {}, 1)
        attempt(lambda: start(function=print, args=()))
        done = threading.Event()
        attempt(start, lambda a, *, b: (print(a, b), done.set()), (1,), {"b": 2})
        done.wait()
        print(start, _thread.get_ident, _thread._count)
        attempt(_thread.get_ident, 1), attempt(_thread.get_ident)
    """)


def test_thread_handles_as_cpython(same):
    same("""
        import _thread, re, sys, threading, time
        if sys.version_info < (3, 13):
            sys.exit()

        def attempt(function, *args, **kwargs):
            try:
                print(re.sub("[0-9]{4,}", "*", repr(function(*args, **kwargs))))
            except BaseException as error:
                print(type(error).__name__, error)

        H, start = _thread._ThreadHandle, _thread.start_joinable_thread
        handle = H()
        attempt(lambda: handle), attempt(handle.join), attempt(handle._set_done), attempt(handle.is_done)
        attempt(start, 1), attempt(start), attempt(start, print, handle=1)
        attempt(start, print, None, True, 1), attempt(start, print, bad=1)
        attempt(handle.join, "x"), attempt(handle.join, 1, 2)
        gate = threading.Event()
        handle = start(gate.wait)
        attempt(start, print, handle=handle), attempt(handle.join, 0.01), attempt(handle.is_done)
        gate.set()
        attempt(handle.join), attempt(handle.is_done), attempt(handle.join, -1), attempt(handle.join, None)
        attempt(start, print, handle=handle), attempt(handle._set_done)
        attempt(_thread._make_thread_handle, "x"), attempt(_thread._make_thread_handle)
        made = _thread._make_thread_handle(_thread.get_ident())
        attempt(made.join), attempt(made.is_done), attempt(made._set_done), attempt(made.join)
        attempt(lambda: made.ident == _thread.get_ident())
        boxes = []
        boxes.append(start(lambda: (time.sleep(0.01), attempt(boxes[0].join))))
        boxes[0].join()
    """)


ESCAPES = """
    import _thread, sys, threading, time

    def work():
        {statement}

    _thread.start_new_thread(work, ())
    time.sleep(0.1)
    thread = threading.Thread(target=work, name="failing")
    thread.start()
    thread.join()
    sys.stderr.flush()
    print("on", flush=True)
"""


@pytest.mark.parametrize(
    "statement",
    [
        "raise SystemExit(3)",
        "raise SystemExit('text')",
        "1 / 0",
        "raise KeyboardInterrupt",
        "exit()",
    ],
)
def test_exception_leaving_a_thread_is_reported_as_cpython(run_app, statement):
    source = ESCAPES.replace("{statement}", statement)
    plain = run_app(source, mode="plain").check()
    patched = run_app(source).check()

    def shown(text):
        return re.sub("0x[0-9a-f]+", "*", text)

    assert (patched.out, shown(patched.err)) == (plain.out, shown(plain.err))


def test_excepthook_and_unraisablehook_are_called(same):
    same("""
        import _thread, sys, threading, time
        threading.excepthook = lambda args: print("hook", args.exc_type, args.exc_value, args.thread.name)
        sys.unraisablehook = lambda args: print("unraisable", args.exc_type, args.err_msg is not None)
        threading.Thread(target=lambda: 1 / 0, name="a").start()
        _thread.start_new_thread(lambda: 1 / 0, ())
        time.sleep(0.05)
    """)


def test_thread_locals_are_each_threads_own_and_die_before_join_returns(same):
    same("""
        import gc, threading, time, weakref
        local = threading.local()
        local.value = "main"

        class Thing:
            pass

        dead, wrong = [], []

        def work(number):
            assert not hasattr(local, "value")
            local.value = number
            local.thing = Thing()
            weakref.finalize(local.thing, dead.append, number)
            time.sleep(0.001 * (number % 5))
            if local.value != number:
                wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        [thread.start() for thread in threads]
        for number, thread in enumerate(threads):
            thread.join()
            print(number in dead)
        print(wrong, local.value)
    """)


def test_tasks_share_the_thread_locals_of_their_thread(same):
    """As in plain asyncio, which itself keeps the current loop in one (and Trio its whole state)."""
    same("""
        import asyncio, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        local = threading.local()

        async def child():
            seen = local.value
            local.value = "child"
            return seen, asyncio.get_event_loop_policy().get_event_loop() is asyncio.get_running_loop()

        async def main():
            local.value = "main"
            print(await asyncio.create_task(child()), local.value)

        def run():
            asyncio.run(main())
            print(local.value)

        run()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    """)


def test_context_variables_start_empty_in_a_thread(same):
    same("""
        import contextvars, threading, time
        variable = contextvars.ContextVar("variable", default="default")
        variable.set("main")
        seen = []

        def work(number):
            seen.append(variable.get())
            variable.set(number)
            time.sleep(0.001)
            seen.append(variable.get() == number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(sorted(map(str, seen)), variable.get())
    """) if sys.version_info < (3, 14) else None


def test_non_daemon_threads_are_joined_at_exit_and_atexit_runs_after(same):
    out = same("""
        import atexit, threading, time
        atexit.register(print, "atexit")
        ends = threading.Event()

        def work(name, pause):
            ends.wait()
            time.sleep(pause)
            print(name)
            if name == "first":
                threading.Thread(target=work, args=("started late", 0.02)).start()

        threading.Thread(target=work, args=("first", 0.02)).start()
        threading.Thread(target=work, args=("daemon", 60), daemon=True).start()
        print("main ends")
        ends.set()
    """)
    assert out.startswith("main ends\nfirst\n") and out.endswith(
        "atexit\n"
    )  # 3.12 starts none so late


def test_sys_exit_in_main_waits_for_threads_and_keeps_the_status(same):
    same(
        """
        import sys, threading, time
        threading.Thread(target=lambda: (time.sleep(0.03), print("thread done"))).start()
        sys.exit(5)
        """,
        status=5,
    )


def test_joining_the_main_thread_ends_as_the_interpreter_shuts_down(same):
    same("""
        import threading
        main = threading.main_thread()
        joined = threading.Barrier(3)

        def work():
            main.join()
            joined.wait()

        for _ in range(3):
            threading.Thread(target=work).start()
        print("main ends")
    """)


def test_several_threads_join_one(same):
    same("""
        import threading, time
        joined = []
        target = threading.Thread(target=time.sleep, args=(0.02,))
        target.start()
        threads = [threading.Thread(target=lambda: (target.join(), joined.append(target.is_alive())))
                   for _ in range(10)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(joined)
    """)


def test_main_thread_after_fork_in_a_thread(same):
    same("""
        import os, threading

        def work():
            pid = os.fork()
            if pid == 0:
                me = threading.current_thread()
                print(me.name, me is threading.main_thread(), me.ident == threading.get_ident(),
                      threading.active_count(), flush=True)
                os._exit(0)
            print(os.waitpid(pid, 0)[1])

        thread = threading.Thread(target=work, name="forker")
        thread.start()
        thread.join()
    """)


def test_fork_in_main_leaves_one_thread_in_the_child(same):
    same("""
        import os, sys, threading, time
        over = threading.Event()
        for _ in range(3):
            threading.Thread(target=over.wait).start()
        pid = os.fork()
        if pid == 0:
            print(threading.active_count(), threading.current_thread().name, flush=True)
            thread = threading.Thread(target=lambda: (time.sleep(0.01), print("child's", flush=True)))
            thread.start()
            thread.join()
            sys.exit(4)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), threading.active_count())
        over.set()
    """)


def test_executor_made_by_the_program_is_green(green):
    out = green("""
        import os, threading, time
        from concurrent.futures import ThreadPoolExecutor, as_completed, wait
        at_once = []

        def work(number):
            at_once.append(len(os.listdir("/proc/self/task")))
            time.sleep(0.02)
            return number * 2

        with ThreadPoolExecutor(20) as pool:
            print(sum(pool.map(work, range(40))))
            futures = [pool.submit(work, number) for number in range(10)]
            print(sorted(future.result() for future in as_completed(futures)))
            try:
                pool.submit(lambda: 1 / 0).result()
            except ZeroDivisionError as error:
                print(error)
        print(set(at_once))
    """)
    assert out == (
        f"{sum(range(40)) * 2}\n[0, 2, 4, 6, 8, 10, 12, 14, 16, 18]\ndivision by zero\n{{1}}\n"
    )


def test_default_executor_of_asyncio_is_native_and_waits_on_green_locks(green):
    out = green("""
        import asyncio, queue, threading, time
        lock, messages = threading.Lock(), queue.Queue()
        main_task = threading.get_native_id()

        def in_pool():
            with lock:
                messages.put("from the pool")
            return threading.get_native_id() == main_task, messages.get() if not messages.empty() else 0

        async def main():
            lock.acquire()
            pending = [asyncio.create_task(asyncio.to_thread(in_pool)) for _ in range(3)]
            await asyncio.sleep(0.02)
            lock.release()
            print(await asyncio.gather(*pending))
            print(type(asyncio.get_running_loop()._default_executor))

        asyncio.run(main())
    """)
    assert out == (
        f"{[(False, 'from the pool')] * 3}\n"
        "<class 'concurrent.futures.thread.ThreadPoolExecutor'>\n"
    )


def test_event_loop_in_a_background_thread(same):
    same("""
        import asyncio, threading
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()

        async def work(number):
            await asyncio.sleep(0.01)
            return number, threading.current_thread() is thread

        futures = [asyncio.run_coroutine_threadsafe(work(n), loop) for n in range(5)]
        print([future.result() for future in futures])
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    """)


def test_asyncio_run_in_several_threads_at_once(same):
    same("""
        import asyncio, threading
        results = []

        async def main(number):
            loop = asyncio.get_running_loop()
            await asyncio.sleep(0.01)
            value = await asyncio.to_thread(lambda: number * 2)
            results.append((number, value, asyncio.get_running_loop() is loop))

        threads = [threading.Thread(target=lambda n=n: asyncio.run(main(n))) for n in range(5)]
        [thread.start() for thread in threads]
        asyncio.run(main(9))
        [thread.join() for thread in threads]
        print(sorted(results))
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            print(error)
    """)


def test_timers_fire_and_can_be_cancelled(same):
    same("""
        import threading, time
        fired = []
        timers = [threading.Timer(after, fired.append, (after,)) for after in (0.01, 0.02, 60, 0.03)]
        [timer.start() for timer in timers]
        timers[2].cancel()
        [timer.join() for timer in timers]
        print(sorted(fired))
    """)


def test_queues_with_many_threads(same):
    same("""
        import queue, threading
        for kind in (queue.Queue, queue.LifoQueue, queue.PriorityQueue):
            work, results = kind(maxsize=3), queue.SimpleQueue()

            def consume():
                while (item := work.get()) != 10**9:
                    results.put(item * 2)
                    work.task_done()
                work.task_done()

            threads = [threading.Thread(target=consume) for _ in range(8)]
            [thread.start() for thread in threads]
            for item in range(500):
                work.put(item)
            work.join()
            for _ in threads:
                work.put(10**9)
            [thread.join() for thread in threads]
            print(sum(results.get() for _ in range(500)), results.empty(), work.qsize())
            try:
                work.get(timeout=0.01)
            except queue.Empty:
                print("empty")
    """)


def test_logging_from_many_threads(same):
    same("""
        import logging, sys, threading, time
        logging.basicConfig(stream=sys.stdout, format="%(threadName)s %(message)s")

        def work():
            for number in range(20):
                logging.warning("message %d", number)
                time.sleep(0)

        threads = [threading.Thread(target=work, name=f"t{n}") for n in range(1)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    """)


def test_current_frames_has_every_thread(same):
    same("""
        import sys, threading
        entered, leave = threading.Barrier(4), threading.Event()

        def inner(name):
            entered.wait()
            leave.wait()

        def functions_of(frame):
            names = []
            while frame:
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            return names

        threads = [threading.Thread(target=inner, args=(n,)) for n in range(3)]
        [thread.start() for thread in threads]
        entered.wait()
        for thread in threads:
            while "wait" not in functions_of(sys._current_frames()[thread.ident])[0]:
                __import__("time").sleep(0.001)
        frames = sys._current_frames()
        print(len(frames), all("inner" in functions_of(frames[thread.ident]) for thread in threads))
        print(functions_of(frames[threading.get_ident()]))

        def look():
            mine = functions_of(sys._current_frames()[threading.get_ident()])
            print(mine[0], functions_of(sys._current_frames()[threading.main_thread().ident])[-1])
            leave.set()

        threading.Thread(target=look).start()
        [thread.join() for thread in threads]
    """)


def test_current_exceptions_has_every_thread(same):
    same("""
        import re, sys, threading, time, traceback
        gate = threading.Event()

        def show(value):
            value = value[1] if isinstance(value, tuple) else value
            return None if value is None else (repr(value), len(traceback.extract_tb(value.__traceback__)))

        def handling():
            try:
                1 / 0
            except ZeroDivisionError:
                gate.wait()

        def generator():
            try:
                raise KeyError("inside")
            except KeyError:
                yield gate.wait()

        def in_generator():
            next(generator())

        threads = [threading.Thread(target=body) for body in (handling, in_generator, gate.wait)]
        [thread.start() for thread in threads]
        time.sleep(0.05)
        try:
            raise ValueError("main")
        except ValueError:
            shown = sys._current_exceptions()
        for thread in (threading.main_thread(), *threads):
            print(show(shown.pop(thread.ident)))
        print(len(shown))
        inner = []
        thread = threading.Thread(target=lambda: inner.append(sys._current_exceptions()))
        try:
            raise ValueError("main again")
        except ValueError:
            thread.start(), thread.join()
        print(show(inner[0][threading.main_thread().ident]), show(inner[0][threads[0].ident]))
        print(thread.ident in inner[0])
        gate.set()
    """)


def test_default_executor_of_uvloop_is_native(green):
    out = green("""
        import asyncio, concurrent.futures, threading, time, uvloop
        from portalpatch import _core
        lock, loops = threading.Lock(), []

        def work():
            with lock:
                return threading.get_native_id() == main_id, _core.strand_key() == threading.get_ident()

        async def main(own):
            loop = asyncio.get_running_loop()
            loops.append(loop)
            if own:
                loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
            lock.acquire()
            waiting = [asyncio.create_task(asyncio.to_thread(work)), loop.run_in_executor(None, work)]
            await asyncio.sleep(0.01)
            lock.release()
            print([(await each)[0] for each in waiting])

        main_id = threading.get_native_id()
        for own in (False, False, True):
            loop = uvloop.new_event_loop()
            loop.run_until_complete(main(own))
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
        print(len(set(map(id, loops))))
    """)
    assert out == "[False, False]\n[False, False]\n[True, True]\n3\n"


# ---- signals ------------------------------------------------------------------------------------


def test_handler_runs_in_the_main_thread_while_others_execute(same):
    same("""
        import os, signal, threading, time
        where = []
        signal.signal(signal.SIGUSR1, lambda *_: where.append(threading.current_thread().name))

        def work():
            os.kill(os.getpid(), signal.SIGUSR1)  # delivered while this thread executes
            time.sleep(0.01)

        for _ in range(3):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            time.sleep(0.01)
        print(where)
    """)


def test_loop_woken_by_a_signal_still_learns_that_a_task_goes_on(green):
    """epoll.poll() waits again after EINTR; what was to end that wait must not get lost."""
    out = green("""
        import asyncio, os, signal, threading
        signal.signal(signal.SIGUSR1, lambda *_: None)
        lock = threading.Lock()

        def release():
            lock.release()  # the task is ready now
            os.kill(os.getpid(), signal.SIGUSR1)  # then the loop is, for another reason

        async def waiting():
            lock.acquire()
            return "released"

        async def main():
            lock.acquire()
            task = asyncio.create_task(waiting())
            await asyncio.sleep(0.01)
            threading.Thread(target=release).start()
            return await task

        print(asyncio.run(main()))
    """)
    assert out == "released\n"


def test_getsignal_shows_the_programs_handlers(same):
    same("""
        import signal

        def handler(signum, frame):
            print(signum, frame.f_code.co_name)

        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        print(signal.signal(signal.SIGINT, handler) is signal.default_int_handler)
        print(signal.getsignal(signal.SIGINT) is handler)
        print(signal.signal(signal.SIGINT, signal.SIG_IGN) is handler, signal.getsignal(signal.SIGINT))
        print(signal.signal(signal.SIGINT, signal.SIG_DFL), signal.getsignal(signal.SIGTERM))
        for arguments in ((signal.SIGINT, "x"), (signal.SIGINT,), (1000, handler), (signal.SIGKILL, handler)):
            try:
                print(signal.signal(*arguments))
            except (TypeError, ValueError, OSError) as error:
                print(type(error).__name__, error)
        print([signal.getsignal(number) for number in range(1, 65) if number not in (32, 33, 2)])
        signal.signal(signal.SIGUSR1, handler)
        signal.raise_signal(signal.SIGUSR1)
    """)


def test_interrupt_main_raises_in_the_main_thread(same):
    same("""
        import _thread, threading, time
        try:
            threading.Timer(0.02, _thread.interrupt_main).start()
            for _ in range(1000):
                time.sleep(0.01)
        except KeyboardInterrupt:
            print("interrupted", threading.current_thread().name)
        thread = threading.Thread(target=_thread.interrupt_main)
        try:
            thread.start()
            thread.join()
            time.sleep(1)
        except KeyboardInterrupt:
            print("again")
    """)


def test_signal_mask_of_a_thread_is_its_own(same):
    same("""
        import os, signal, threading, time
        signal.signal(signal.SIGUSR1, lambda *_: print("handled in", threading.current_thread().name))

        def blocks():
            print(signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()))
            time.sleep(0.01)
            print(signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1]))
            print(signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_SETMASK, []))
            print(signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR2]))
            for wrong in ((9, [1]), (signal.SIG_BLOCK, [1000]), (signal.SIG_BLOCK, 5), (1,)):
                try:
                    signal.pthread_sigmask(*wrong)
                except (OSError, ValueError, TypeError) as error:
                    print(type(error).__name__, error)

        thread = threading.Thread(target=blocks)
        thread.start()
        os.kill(os.getpid(), signal.SIGUSR1)
        thread.join()
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        waiting = threading.Thread(target=time.sleep, args=(0.05,))
        waiting.start()
        signal.pthread_kill(waiting.ident, signal.SIGUSR1)
        waiting.join()
    """)


def test_alarm_interrupts_a_join(same):
    same("""
        import signal, threading, time

        def handler(signum, frame):
            raise TimeoutError("alarm")

        signal.signal(signal.SIGALRM, handler)
        thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
        thread.start()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            thread.join()
        except TimeoutError as error:
            print(error, thread.is_alive())
    """)


# ---- progress ---------------------------------------------------------------------------------


def test_threads_that_never_wait_do_not_starve_the_others(same):
    same("""
        import threading, time
        flag, seen = [], []

        def spin():
            while not flag:
                pass
            seen.append(1)

        threads = [threading.Thread(target=spin) for _ in range(2)]
        [thread.start() for thread in threads]
        time.sleep(0.01)
        flag.append(1)
        [thread.join() for thread in threads]
        print(seen)
        del flag[:]
        threading.Timer(0.01, flag.append, (1,)).start()
        while not flag:
            pass
        print("main saw it")
    """)


def test_task_is_not_interrupted_between_its_waits(green):
    out = green("""
        import asyncio, threading, time
        log = []
        threading.Thread(target=lambda: (time.sleep(0.01), log.append("thread"))).start()

        async def compute(name):
            log.append(name)
            began = time.thread_time()
            while time.thread_time() - began < 0.2:
                pass
            log.append(name)

        async def main():
            await asyncio.gather(compute("a"), compute("b"))

        asyncio.run(main())
        print([name for name in log if name != "thread"])
        first = log.index("a")
        print(log[first + 1])
    """)
    assert out == "['a', 'a', 'b', 'b']\na\n"


def test_trace_and_profile_functions_are_each_threads_own(same):
    same("""
        import sys, threading, time
        events = {}

        def tracer(name):
            def trace(frame, event, arg):
                if frame.f_code.co_name in ("traced", "untraced", "main_traced"):
                    events.setdefault(name, []).append((frame.f_code.co_name, event))
                return trace
            return trace

        def traced(name):
            for _ in range(2):
                time.sleep(0.001)

        def with_trace(name):
            sys.settrace(tracer(name))
            traced(name)
            print(sys.gettrace() is not None)
            sys.settrace(None)

        def untraced():
            for _ in range(5):
                time.sleep(0.001)

        def with_profile():
            sys.setprofile(tracer("profile"))
            traced("profile")

        def main_traced():
            time.sleep(0.005)

        threads = [threading.Thread(target=with_trace, args=(name,)) for name in "ab"]
        threads += [threading.Thread(target=untraced), threading.Thread(target=with_profile)]
        [thread.start() for thread in threads]
        sys.settrace(tracer("main"))
        main_traced()
        sys.settrace(None)
        [thread.join() for thread in threads]
        for name in sorted(events):
            print(name, events[name])
        print(sys.gettrace(), sys.getprofile())
        threading.settrace(tracer("all"))
        thread = threading.Thread(target=traced, args=("all",))
        thread.start()
        thread.join()
        print(len(events["all"]), sys.gettrace())
    """)


def test_trace_functions_and_signal_masks_end_with_their_thread(same):
    same("""
        import signal, sys, threading

        def trace(frame, event, arg):
            return trace

        def first():
            sys.settrace(trace)
            sys.setprofile(trace)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

        def second():
            seen.append((sys.gettrace(), sys.getprofile(), signal.pthread_sigmask(signal.SIG_BLOCK, [])))

        seen = []
        for _ in range(50):  # of which most have the memory of one that has ended
            for function in (first, second):
                thread = threading.Thread(target=function)
                thread.start()
                thread.join()
        print([one for one in seen if one != (None, None, set())])
    """)


def test_fd_closed_before_its_wait_reached_the_kernel(run_app):
    """The closer keeps the thread busy from the park on, so libev has not told epoll yet."""
    done = run_app("""
        import select, socket, threading, time
        def select_one(listener):
            select.select([listener], [], [], 30)
        def select_three(listener):
            select.select([*socket.socketpair(), listener], [], [], 30)
        def poll(listener):
            poller = select.poll()
            poller.register(listener, select.POLLIN)
            poller.poll(30000)
        def accept(listener):
            listener.accept()
        def run(wait, listener, ready):
            ready.set()
            try:
                wait(listener)
            except OSError:
                pass
        for wait in [select_one, select_three, poll, accept] * 5:
            listener = socket.create_server(("127.0.0.1", 0))
            ready = threading.Event()
            thread = threading.Thread(target=run, args=(wait, listener, ready))
            thread.start()
            ready.wait()
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
            listener.close()
            thread.join()
        print("done")
    """).check()
    assert done.out == "done\n"


# ---- exceptions from outside ------------------------------------------------------------------


def test_exception_set_from_outside_stops_a_green_thread_and_no_other(same):
    same("""
        import ctypes, threading, time
        def stop(ident, exception):
            return ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(ident), ctypes.py_object(exception))
        class Stop(Exception):
            pass
        def wait(name, started):
            try:
                started.set()
                while True:
                    time.sleep(0.01)
            except Stop:
                print(name, "stopped")
            except ValueError:
                print(name, "stopped otherwise")
        threads = []
        for name in "abc":
            started = threading.Event()
            threads.append(threading.Thread(target=wait, args=(name, started)))
            threads[-1].start()
            started.wait()
        print(stop(threads[1].ident, Stop))
        threads[1].join()
        print([thread.is_alive() for thread in threads])
        print(stop(threads[0].ident, Stop), stop(threads[0].ident, ValueError))
        threads[0].join()
        print(stop(1, Stop))
        def stop_main(main):
            print(stop(main, Stop))
        stopper = threading.Thread(target=stop_main, args=(threading.main_thread().ident,))
        try:
            stopper.start()
            while True:
                time.sleep(0.01)
        except Stop:
            print("main stopped")
        stop(threads[2].ident, Stop)
        threads[2].join()
    """)


def test_a_loop_that_never_waits_lets_green_threads_run(same):
    same("""
        import asyncio, threading
        done = []
        async def main():
            loop = asyncio.get_running_loop()
            other = loop.create_task(wait())
            threading.Thread(target=done.append, args=(1,)).start()
            inside = []
            loop.call_soon(compute, inside)
            while not inside:
                await asyncio.sleep(0)
            return inside + [await other]
        async def wait():
            await asyncio.sleep(0.001)
            done.append("task")
            return "waited"
        def compute(inside):
            while not done:  # in a callback: other threads may run now, tasks may not
                pass
            inside.extend(done)
        print(asyncio.run(main()), done)
    """)


def test_signal_that_comes_in_a_green_thread_is_one_signal_to_asyncio(same):
    same("""
        import asyncio, os, signal, threading, time
        caught = []
        async def main():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, caught.append, "signal")
            for n in range(20):
                thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
                thread.start()
                while len(caught) <= n:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.002)
        asyncio.run(main())
        print(caught)
    """)


def test_task_that_starts_a_thread_is_not_canceled_there(same):
    same("""
        import asyncio, threading
        async def main(end):
            started = []
            def begin():
                started.append("began")
                end.wait()
            async def start():
                thread = threading.Thread(target=begin)
                thread.start()
                started.append("started")
                try:
                    await asyncio.sleep(1)
                finally:
                    started.append("canceled")
            task = asyncio.ensure_future(start())
            asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.wait([task])
            print(task.cancelled(), started)
            end.set()
        asyncio.run(main(threading.Event()))
    """)


FREED = {"PYTHONMALLOC": "debug", "MALLOC_PERTURB_": "85"}  # what is freed is overwritten


def test_task_that_started_a_thread_is_freed(run_app):
    """The thread's start went back to the task, whose values of threading.local then were in place."""
    source = """
        import asyncio, threading
        async def starts_thread():
            threading.Thread(target=print, args=("thread",)).start()
        async def main():
            for _ in range(3):
                await asyncio.create_task(starts_thread())
            threading.Thread(target=print, args=("last",)).start()
        asyncio.run(main())
        print("ended")
    """
    assert run_app(source, env=FREED).check().out == "thread\n" * 3 + "last\nended\n"


def test_tasks_outlive_the_thread_of_their_loop(run_app):
    done = run_app(
        """
        import asyncio, gc, threading, time
        values = threading.local()
        async def sleeper(seconds):
            time.sleep(seconds)
            values.task = bytearray(1000)
            return seconds
        async def waiter():
            await asyncio.sleep(0)
        def run(loop, tasks):
            values.thread = bytearray(1000)
            tasks += [loop.create_task(sleeper(seconds / 100)) for seconds in (3, 4, 5)]
            loop.run_until_complete(waiter())
        for _ in range(3):
            loop, tasks = asyncio.new_event_loop(), []
            thread = threading.Thread(target=run, args=(loop, tasks))
            thread.start()
            thread.join()
            time.sleep(0.035)  # one goes on now, while no loop runs
            print(loop.run_until_complete(asyncio.gather(*tasks)))
            loop.close()
            del loop, tasks, thread
            gc.collect()
            threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(3)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        """,
        env=FREED,
    ).check()
    assert done.out == "[0.03, 0.04, 0.05]\n" * 3


def test_tasks_go_on_under_a_selector_that_never_waits(same):
    same("""
        import asyncio, selectors, threading, time
        class Spinning(selectors.SelectSelector):
            def select(self, timeout=None):
                sum(range(1000))
                return []
        async def main():
            event = threading.Event()
            threading.Timer(0.01, event.set).start()
            print(event.wait(), await asyncio.sleep(0.01, "slept"))
        loop = asyncio.SelectorEventLoop(Spinning())
        print(loop.run_until_complete(main()))
        loop.close()
    """)


def test_threads_wait_while_they_free_long_chains_of_objects(same):
    same("""
import threading, time
class Link(list):
    freed = 0
    def __del__(self):
        Link.freed += 1
        temporary = [[], []]
        del temporary  # so deep in the chain it is put off
        if Link.freed % 5000 > 3000 and Link.freed % 7 == 0:
            time.sleep(0.0001)
def free_a_chain():
    chain = None
    for _ in range(5000):
        chain = Link((chain,))
    del chain
threads = [threading.Thread(target=free_a_chain) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(Link.freed)
""")


def test_threads_that_compute_in_finders_exclude_each_other(same):
    same("""
import importlib.util, sys, threading
class Finder:
    inside, entered = False, 0
    def find_spec(name, path, target=None):
        assert not Finder.inside
        Finder.inside = True
        for _ in range(300_000):
            pass
        Finder.inside = False
        Finder.entered += 1
sys.meta_path.insert(0, Finder)
def look_for(number):
    for part in range(3):
        importlib.util.find_spec(f"there_is_no_{number}_{part}")
threads = [threading.Thread(target=look_for, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(Finder.entered)
""")


def test_computing_threads_share_a_buffered_file(run_app):
    """They give way between bytecodes only: never inside _io, whose locks know OS threads."""
    done = run_app("""
        import tempfile, threading, time
        def beat():
            while True:
                time.sleep(0.001)
        def write(file, errors):
            try:
                for _ in range(20000):
                    file.write(b"x" * 17)
            except RuntimeError as error:
                errors.append(error)
        threading.Thread(target=beat, daemon=True).start()
        errors = []
        with tempfile.TemporaryFile(buffering=8) as file:
            threads = [threading.Thread(target=write, args=(file, errors)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            file.flush()
            print(errors, file.seek(0, 2))
    """).check()
    assert done.out == f"[] {4 * 20000 * 17}\n"
