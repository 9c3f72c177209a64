"""Mutexes of C libraries that are held across a blocking call, wanted by a second green thread."""

from __future__ import annotations

import pytest

MUTEX = """
import asyncio, ctypes, threading, time
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)  # PTHREAD_MUTEX_INITIALIZER
log = []

def lock():
    assert libc.pthread_mutex_lock(mutex) == 0

def unlock():
    assert libc.pthread_mutex_unlock(mutex) == 0

def hold(seconds):
    lock()
    log.append("locked")
    time.sleep(seconds)
    log.append("unlocks")
    unlock()
"""


def test_second_green_thread_waits_for_the_mutex(run_app):
    done = run_app(
        MUTEX
        + """
threads = [threading.Thread(target=hold, args=(0.02,)) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert log == ["locked", "unlocks"] * 8, log
"""
    ).check()
    assert done.err == ""


def test_others_run_while_a_green_thread_waits_for_the_mutex(run_app):
    run_app(
        MUTEX
        + """
holder = threading.Thread(target=hold, args=(0.2,))
waiter = threading.Thread(target=hold, args=(0,))
holder.start()
waiter.start()
for _ in range(20):
    time.sleep(0.002)
    log.append("ran")
waiter.join()
assert log == ["locked", *["ran"] * 20, "unlocks", "locked", "unlocks"], log
"""
    ).check()


def test_mutex_of_a_native_thread_is_waited_for(run_app):
    run_app(
        MUTEX
        + """
import portalpatch
held = threading.Event()
def holder():
    lock()
    held.set()
    libc.usleep(50_000)
    unlock()
thread = threading.Thread(target=portalpatch.offload, args=(holder,))
thread.start()
held.wait()
lock()
unlock()
thread.join()
"""
    ).check()


def test_cancellation_while_waiting_for_the_mutex_stays_pending(run_app):
    """Who called pthread_mutex_lock does not expect it to fail, so the next wait does."""
    done = run_app(
        MUTEX
        + """
async def holder():
    hold(0.2)

async def waiter():
    try:
        lock()
        log.append("got it")
        unlock()
        time.sleep(60)
    except asyncio.CancelledError:
        log.append("cancelled")
        raise

async def main():
    first = asyncio.create_task(holder())
    second = asyncio.create_task(waiter())
    await asyncio.sleep(0.02)
    second.cancel()
    await asyncio.wait([first, second])
    assert second.cancelled()
    lock()
    unlock()

asyncio.run(main())
print(log)
"""
    ).check()
    assert done.out == "['locked', 'unlocks', 'got it', 'cancelled']\n"


def test_signal_while_waiting_for_the_mutex_is_handled_after_it(run_app):
    done = run_app(
        MUTEX
        + """
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: log.append("handler"))
holder = threading.Thread(target=hold, args=(0.2,))
holder.start()
time.sleep(0.01)
threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
lock()
log.append("got it")
unlock()
holder.join()
print(log)
"""
    ).check()
    assert done.out == "['locked', 'unlocks', 'handler', 'got it']\n"


@pytest.mark.parametrize("mode", ["cli", "no-preload"])
def test_threads_share_one_psycopg2_connection(run_app, postgres_server, mode):
    run_app(
        """
        import psycopg2, sys, threading
        connection = psycopg2.connect(
            host="127.0.0.1", port=sys.argv[1], user="postgres", dbname="postgres")
        counts = []
        def work():
            for _ in range(5):
                with connection.cursor() as cursor:
                    cursor.execute("select 1 from pg_sleep(0.002)")
                    counts.append(cursor.fetchone()[0])
                connection.commit()
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(counts) == 30
        """,
        str(postgres_server.port),
        mode=mode,
    ).check()
