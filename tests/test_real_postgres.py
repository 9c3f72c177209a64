"""Unmodified psycopg2 (libpq, C) against a real PostgreSQL, which itself says what overlapped."""

from __future__ import annotations

import threading

import pytest
from programs import MODES, finish
from servers import postgres

# 200 threads, each a connection of its own. Python runs in one OS thread: each thread notes the id
# of the OS thread it ran in.
THREADS = """\
import sys, threading
import psycopg2

port = int(sys.argv[1])
count = int(sys.argv[2])
results = {}
native = set()

def work(number):
    connection = psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres")
    cursor = connection.cursor()
    cursor.execute("select pg_sleep(0.5), %s * 7 from pg_advisory_xact_lock_shared(7)", (number,))
    results[number] = cursor.fetchone()[1]
    connection.close()
    with open("/proc/thread-self/stat") as stat:
        native.add(stat.read().split()[0])

threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert results == {number: number * 7 for number in range(count)}, results
print(len(results), len(native))
"""


class ActivityGate:
    """Counts in pg_stat_activity the pg_sleep queries that are active at once, from a plain thread.

    The queries first take an advisory lock shared; this holds it until `wanted` of them are there. So
    a slow machine takes longer but counts the same; where they don't overlap the limit ends it.
    """

    def __init__(self, server, wanted: int) -> None:
        self.server = server
        self.wanted = wanted
        self.peak = 0
        self.thread = threading.Thread(target=self.watch)
        self.over = threading.Event()
        self.closed = threading.Event()

    def watch(self) -> None:
        import psycopg2

        connection = psycopg2.connect(
            host=self.server.host, port=self.server.port, user="postgres", dbname="postgres"
        )
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("select pg_advisory_lock(7)")
        self.closed.set()
        while self.peak < self.wanted and not self.over.wait(0.02):
            cursor.execute(
                "select count(*) from pg_stat_activity where state = 'active' "
                "and query like 'select pg_sleep%'"
            )
            self.peak = max(self.peak, cursor.fetchone()[0])
        connection.close()

    def __enter__(self) -> ActivityGate:
        self.thread.start()
        assert self.closed.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(20)


@pytest.mark.parametrize("host", ["asyncio", "trio"])
def test_200_threads_overlap_in_one_os_thread(run_app, postgres_server, host):
    with ActivityGate(postgres_server, 200) as gate:
        result = run_app(
            THREADS, str(postgres_server.port), "200", options=["--host", host], limit=90
        )
    assert result.check().out == "200 1\n"
    assert gate.peak == 200


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "cli"])
def test_threads_overlap_however_portalpatch_came_in(run_app, postgres_server, mode):
    with ActivityGate(postgres_server, 150) as gate:
        result = run_app(THREADS, str(postgres_server.port), "150", mode=mode, limit=90)
    assert result.check().out == "150 1\n"
    assert gate.peak == 150


@pytest.mark.parametrize("mode", ["cli", "patch_all"])
def test_thread_pool_executor_overlaps(run_app, postgres_server, mode):
    source = """
    import concurrent.futures, sys, psycopg2
    def work(number):
        connection = psycopg2.connect(host="127.0.0.1", port=int(sys.argv[1]), user="postgres")
        with connection, connection.cursor() as cursor:
            cursor.execute("select pg_sleep(0.5), %s from pg_advisory_xact_lock_shared(7)", (number,))
            return cursor.fetchone()[1]
    with concurrent.futures.ThreadPoolExecutor(120) as pool:
        print(sum(pool.map(work, range(120))))
    """
    with ActivityGate(postgres_server, 120) as gate:
        result = run_app(source, str(postgres_server.port), mode=mode, limit=90)
    assert result.check().out == f"{sum(range(120))}\n"
    assert gate.peak == 120


def test_error_in_a_query_is_the_same_bytes(run_app, postgres_server):
    source = """
    import sys, psycopg2
    connection = psycopg2.connect(host="127.0.0.1", port=int(sys.argv[1]), user="postgres")
    connection.cursor().execute("select 1 / 0")
    """
    port = str(postgres_server.port)
    plain = run_app(source, port, mode="plain")
    patched = run_app(source, port)
    assert (patched.status, patched.out, patched.err) == (plain.status, plain.out, plain.err)
    assert "DivisionByZero" in plain.err


def test_statement_timeout_and_notify_between_threads(run_app, postgres_server):
    source = """
    import select, sys, threading, time, psycopg2
    def connect():
        connection = psycopg2.connect(host="127.0.0.1", port=int(sys.argv[1]), user="postgres")
        connection.autocommit = True
        return connection
    heard = []
    def listen():
        connection = connect()
        connection.cursor().execute("listen channel")
        ready.set()
        while not connection.notifies:
            assert select.select([connection], [], [], 20)[0]
            connection.poll()
        heard.append(connection.notifies.pop().payload)
    ready = threading.Event()
    listener = threading.Thread(target=listen)
    listener.start()
    ready.wait()
    other = connect()
    other.cursor().execute("notify channel, 'hello'")
    listener.join()
    try:
        other.cursor().execute("set statement_timeout = 200; select pg_sleep(20)")
    except psycopg2.errors.QueryCanceled:
        heard.append("canceled")
    print(heard)
    """
    result = run_app(source, str(postgres_server.port), limit=30)
    assert result.check().out == "['hello', 'canceled']\n"


def test_interrupt_during_a_query(start_program, postgres_server):
    """libpq's poll() ends with EINTR and is called again: psycopg2 itself never sees Ctrl-C until
    the query is over. The same holds under portalpatch."""
    import signal
    import time

    source = """
    import sys, psycopg2
    connection = psycopg2.connect(host="127.0.0.1", port=int(sys.argv[1]), user="postgres")
    print("ready", flush=True)
    try:
        connection.cursor().execute("select pg_sleep(1.5)")
        print("done", flush=True)
        for _ in range(1000): pass
    except KeyboardInterrupt:
        print("interrupted")
    """
    seen = []
    for mode in ("plain", "cli"):
        process = start_program(source, str(postgres_server.port), mode=mode)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        result = finish(process, 20)
        seen.append((result.status, result.out))
    assert seen[1] == seen[0]


def test_interrupt_of_a_query_in_a_task(run_app, postgres_server):
    """Ctrl-C waits for libpq, and is raised in the task then: its loop goes on."""
    source = """
    import asyncio, os, signal, sys, threading, psycopg2
    connection = psycopg2.connect(host="127.0.0.1", port=int(sys.argv[1]), user="postgres")
    async def cell():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            connection.cursor().execute("select pg_sleep(1)")
        except KeyboardInterrupt:
            print("interrupted")
        await asyncio.sleep(0)
        return "goes on"
    print(asyncio.new_event_loop().run_until_complete(cell()))
    """
    for mode in ("plain", "cli"):
        done = run_app(source, str(postgres_server.port), mode=mode).check()
        assert (done.out, done.err) == ("interrupted\ngoes on\n", "")


def test_an_interrupted_query_sleeps_on(run_app, postgres_server):
    """libpq's poll() parks again after a signal: it used to be woken in vain until the query's end."""
    done = run_app(
        """
    import os, signal, sys, threading, portalpatch, psycopg2
    connection = psycopg2.connect(host="127.0.0.1", port=int(sys.argv[1]), user="postgres")
    signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    before = portalpatch.statistics().waits_by_call.get("poll", 0)
    connection.cursor().execute("select pg_sleep(1)")
    print(portalpatch.statistics().waits_by_call["poll"] - before < 10)
    """,
        str(postgres_server.port),
    ).check()
    assert done.out == "handled\nTrue\n"


# ---- under the program's own loop ------------------------------------------------------------

ASYNCIO = """\
import asyncio, sys, time
import psycopg2, requests

http, port = sys.argv[1:3]
ticks = 0

async def heartbeat():
    global ticks
    while True:
        await asyncio.sleep(0.02)
        ticks += 1

async def handler(number):
    answer = requests.get(f"{http}/hold?key=asyncio-{sys.argv[3]}&n=100&limit=30")
    connection = psycopg2.connect(host="127.0.0.1", port=int(port), user="postgres")
    cursor = connection.cursor()
    cursor.execute("select pg_sleep(0.5), %s from pg_advisory_xact_lock_shared(7)", (number,))
    row = cursor.fetchone()
    connection.close()
    await asyncio.sleep(0.01)
    return answer.status_code, row[1]

async def main():
    beat = asyncio.create_task(heartbeat())
    results = await asyncio.gather(*[handler(number) for number in range(100)])
    beat.cancel()
    assert results == [(200, number) for number in range(100)], results
    print("ok", ticks)

asyncio.run(main())
"""

TRIO = """\
import sys
import psycopg2, requests, trio

http, port = sys.argv[1:3]
ticks = 0
results = {}

async def heartbeat():
    global ticks
    while True:
        await trio.sleep(0.02)
        ticks += 1

async def handler(number):
    answer = requests.get(f"{http}/hold?key=trio-{sys.argv[3]}&n=100&limit=30")
    connection = psycopg2.connect(host="127.0.0.1", port=int(port), user="postgres")
    cursor = connection.cursor()
    cursor.execute("select pg_sleep(0.5), %s from pg_advisory_xact_lock_shared(7)", (number,))
    results[number] = answer.status_code, cursor.fetchone()[1]
    connection.close()
    await trio.sleep(0.01)

async def main():
    async with trio.open_nursery() as outer:
        outer.start_soon(heartbeat)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(handler, number)
        outer.cancel_scope.cancel()
    assert results == {number: (200, number) for number in range(100)}, results
    print("ok", ticks)

trio.run(main)
"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", [ASYNCIO, TRIO], ids=["asyncio", "trio"])
def test_async_handlers_that_block_overlap(run_app, postgres_server, counting_server, source, mode):
    """100 tasks call requests.get and psycopg2 synchronously. The HTTP server answers none before
    all 100 are there; PostgreSQL sees the queries overlap; a heartbeat task goes on meanwhile."""
    url = f"http://127.0.0.1:{counting_server.port}"
    with ActivityGate(postgres_server, 100) as gate:
        result = run_app(source, url, str(postgres_server.port), mode, mode=mode, limit=90)
    assert result.check().out.startswith("ok ")
    assert gate.peak == 100
    assert int(result.out.split()[1]) >= 10  # the queries alone sleep for 25 beats


def test_postgres_fixture_takes_many_connections(postgres_server):
    assert postgres.query(postgres_server, "show max_connections") == [("400",)]
