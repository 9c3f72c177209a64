"""Everything that waits, mixed by a seed: green and native threads, tasks, cancellations, forks.

usage: python [-m portalpatch] program.py seed [scale]

Ends with "seed N: ok" and status 0, and else says which promise was broken. The promises: two are
never inside one lock, what is put into a queue comes out once, semaphores and barriers count right,
threading.local and the fork's child see what they should, and everybody who waits is woken. A run that
does not end prints all stacks and exits after LIMIT seconds: a lost wake-up. It uses nothing of
portalpatch, so plain Python runs it, too, and must pass.
"""

import _thread
import asyncio
import concurrent.futures.thread  # now: its fork handlers come in pairs
import contextlib
import faulthandler
import gc
import os
import queue
import random
import select
import signal
import socket
import sys
import threading
import time
import warnings

LIMIT = 120  # seconds, ASan on a busy machine included
seed = int(sys.argv[1])
scale = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
faulthandler.dump_traceback_later(LIMIT, exit=True)
warnings.simplefilter("ignore", DeprecationWarning)  # a fork with native threads running

try:  # an OS thread, whatever `threading` starts
    from portalpatch import _core

    start_native = _core.original(_thread.start_new_thread)
except ImportError:
    start_native = _thread.start_new_thread


class Guarded:
    """A lock, and a count that shows whether somebody else is inside as well."""

    def __init__(self, lock):
        self.lock = lock
        self.inside = 0

    @contextlib.contextmanager
    def held(self):
        with self.lock:
            self.inside += 1
            assert self.inside == 1, "two are inside one lock"
            try:
                yield
            finally:
                self.inside -= 1


locks = [Guarded(threading.Lock()) for _ in range(4)]
rlock = Guarded(threading.RLock())
semaphore = threading.BoundedSemaphore(3)
condition = threading.Condition()
gate = threading.Event()
local = threading.local()
simple = queue.SimpleQueue()
bounded = queue.Queue(2)
stack = queue.LifoQueue()
tally_lock = threading.Lock()
tally = {"permits": 0, "signals": 0, "put": 0, "got": 0}
problems = []
ended = threading.Semaphore(0)


def count(what, number=1):
    with tally_lock:
        tally[what] += number


# ---- what everybody does, in random order --------------------------------------------------------


def use_lock(choose):
    with choose.choice(locks).held():
        if choose.random() < 0.3:
            time.sleep(choose.random() * 0.0005)


def try_lock(choose):
    guarded = choose.choice(locks)
    if guarded.lock.acquire(timeout=choose.random() * 0.002):
        try:
            assert guarded.inside == 0
        finally:
            guarded.lock.release()


def use_rlock(choose):
    with rlock.held(), rlock.lock:
        time.sleep(0)


def use_semaphore(choose):
    with semaphore:
        time.sleep(choose.random() * 0.0003)


def use_condition(choose):
    with condition:
        condition.notify(choose.randrange(3))
        condition.wait(choose.random() * 0.001)


def use_event(choose):
    gate.set() if choose.random() < 0.5 else gate.clear()
    gate.wait(choose.random() * 0.001)


def use_simple_queue(choose):
    simple.put(1)
    simple.get()


def use_bounded_queue(choose):
    """Whoever puts gets one as well, so all who put in time can be served."""
    with contextlib.suppress(queue.Full, queue.Empty):
        bounded.put(1, timeout=choose.random() * 0.002)
        count("put")
        bounded.get(timeout=choose.random() * 0.002)
        count("got")


def use_stack(choose):
    stack.put(choose.random())
    stack.get()


def echo(end):
    with end, contextlib.suppress(ConnectionError):
        end.sendall(end.recv(10))


def use_socket(choose):
    here, there = socket.socketpair()
    with here:
        _thread.start_new_thread(echo, (there,))
        here.settimeout(LIMIT)
        here.sendall(b"x" * 10)
        assert here.recv(10) == b"x" * 10


def use_pipe_and_poll(choose):
    reader, writer = os.pipe()
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        assert poll.poll(choose.random()) == []
        os.write(writer, b"x")
        assert poll.poll(60000) and os.read(reader, 1) == b"x"
    finally:
        os.close(reader)
        os.close(writer)


def use_local(choose):
    before = getattr(local, "value", None)
    assert before in (None, threading.get_ident()), "another thread's value"
    local.value = threading.get_ident()
    time.sleep(0)
    assert local.value == threading.get_ident()


def make_garbage(choose):
    class Puts:
        def __del__(self):
            simple.put(1)
            simple.get_nowait()

    cycle = Puts()
    cycle.itself = cycle
    del cycle
    if choose.random() < 0.1:
        gc.collect()


def resolve(choose):
    socket.getaddrinfo("127.0.0.1", 80)


ACTIONS = [
    use_lock, use_lock, try_lock, use_rlock, use_semaphore, use_condition, use_event,
    use_simple_queue, use_bounded_queue, use_stack, use_socket, use_pipe_and_poll, use_local,
    make_garbage, resolve,
]  # fmt: skip


def work(seed, steps):
    choose = random.Random(seed)
    for _ in range(steps):
        choose.choice(ACTIONS)(choose)


def reporting(function, *args):
    """As a thread's function: a failure fails the run."""
    try:
        function(*args)
    except BaseException as error:
        problems.append(error)
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        ended.release()


# ---- those who meet ------------------------------------------------------------------------------


def meet(barrier, rounds):
    for _ in range(rounds):
        barrier.wait()


def produce(items, number):
    for item in range(number):
        items.put(item)
    items.put(None)


def consume(items, producers, sums):
    total, left = 0, producers
    while left:
        item = items.get()
        if item is None:
            left -= 1
        else:
            total += item
    sums.append(total)


def produce_and_consume(choose):
    """Each of several producers' items comes out once, whatever the queue."""
    items = choose.choice([queue.Queue(), queue.Queue(1), queue.SimpleQueue()])
    sums, number, producers = [], 50, choose.randrange(1, 4)
    threads = [threading.Thread(target=produce, args=(items, number)) for _ in range(producers - 1)]
    for thread in threads:
        thread.start()
    start_native(produce, (items, number))
    consume(items, producers, sums)
    for thread in threads:
        thread.join()
    assert sums == [producers * number * (number - 1) // 2]


# ---- tasks ---------------------------------------------------------------------------------------


async def task(seed, steps):
    choose = random.Random(seed)
    for _ in range(steps):
        choose.choice(ACTIONS)(choose)
        await asyncio.sleep(0)


async def tasks(seed):
    # -X dev reports slow callbacks, and on a busy machine any may be slow.
    asyncio.get_running_loop().slow_callback_duration = 600
    choose = random.Random(seed)
    running = [asyncio.create_task(task(seed + number, 15)) for number in range(6)]
    running.append(asyncio.create_task(asyncio.to_thread(work, seed + 6, 10)))
    for each in running:
        await asyncio.sleep(choose.random() * 0.003)
        if choose.random() < 0.4:
            each.cancel()
    for result in await asyncio.gather(*running, return_exceptions=True):
        if result is not None and not isinstance(result, asyncio.CancelledError):
            raise result


# ---- pools, forks, signals -----------------------------------------------------------------------


def use_pool(seed):
    choose = random.Random(seed)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(work, seed + number, 5) for number in range(6)]
        for future in choose.sample(futures, 2):
            future.cancel()
        for future in futures:
            with contextlib.suppress(concurrent.futures.CancelledError):
                future.result()


def fork_and_wait():
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert threading.active_count() == 1
            seen = []
            thread = threading.Thread(target=lambda: (time.sleep(0.001), seen.append(1)))
            thread.start()
            thread.join()
            status = 0 if seen == [1] else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"


def count_signal(number, frame):
    assert threading.current_thread() is threading.main_thread()
    tally["signals"] += 1


def main():
    choose = random.Random(seed)
    signal.signal(signal.SIGALRM, count_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.007)
    steps = int(200 * scale)
    started = 0
    for number in range(10):
        _thread.start_new_thread(reporting, (work, seed * 1000 + number, steps))
        started += 1
    for number in range(3):
        start_native(reporting, (work, seed * 1000 + 50 + number, steps))
        started += 1
    barrier = threading.Barrier(5)
    for number in range(5):
        start = start_native if number % 3 == 2 else _thread.start_new_thread
        start(reporting, (meet, barrier, steps))
        started += 1
    for function, *args in (
        (produce_and_consume, choose),
        (use_pool, seed),
        (lambda: asyncio.run(tasks(seed + 7)),),
        (lambda: asyncio.run(tasks(seed + 70)),),
    ):
        _thread.start_new_thread(reporting, (function, *args))
        started += 1
    for _ in range(3):
        fork_and_wait()
        time.sleep(choose.random() * 0.01)
    asyncio.run(tasks(seed))
    for _ in range(started):
        ended.acquire()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert not problems, problems
    for guarded in (*locks, rlock):
        assert guarded.inside == 0 and guarded.lock.acquire(False), "a lock was left locked"
    for _ in range(3):
        assert semaphore.acquire(False), "a permit is lost"
    assert condition.acquire(False) and not condition._waiters, "somebody still waits"
    assert tally["put"] - tally["got"] == bounded.qsize(), tally
    assert len(gc.get_objects()) > 0 and tally["signals"] > 0
    print(f"seed {seed}: ok")


if __name__ == "__main__":
    main()
