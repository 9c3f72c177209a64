"""A timeout ends a call that waits inside a C library: the Python code around it sees the host's own
cancellation and nothing of the library's, which is left as the library itself decides.

No call here would end by itself before the test's hard limit: it is the timeout that ends it.
"""

from __future__ import annotations

import sys
import time

import pytest
from servers import mariadb, postgres

PROGRAM = """\
import asyncio, gc, os, sys, time, weakref
{imports}

address = sys.argv[1]
seen = set()

{client}

def block(thing):
    try:
        wait(thing)
    except BaseException as error:
        seen.add(type(error).__name__)  # nearest to the call
        raise
    print("not reached")

{host}

def count(what):
    return len(os.listdir(f"/proc/self/{{what}}"))

async def once():
    thing = make()
    await time_out(thing)
    state = after(thing)
    thing.close()
    return weakref.ref(thing), state

async def main():
    await once()  # whatever is made at the first use is there now
    await pause()
    gc.collect()
    fds, threads = count("fd"), count("task")
    ended = [await once() for _ in range(3)]
    await pause()
    gc.collect()
    print(seen, {{state for _, state in ended}})
    print("kept", sum(reference() is not None for reference, _ in ended), "objects,",
          count("fd") - fds, "fds,", count("task") - threads, "threads")

{run}
"""

# asyncio.timeout came with 3.11; wait_for runs the call in a task of its own.
ASYNCIO_TIMEOUT = """
async def time_out(thing):
    try:
        async with asyncio.timeout(0.3):
            block(thing)
    except TimeoutError:
        seen.add("TimeoutError")
"""
ASYNCIO_WAIT_FOR = """
async def time_out(thing):
    async def call():
        block(thing)
    try:
        await asyncio.wait_for(call(), 0.3)
    except asyncio.TimeoutError:
        seen.add("TimeoutError")
"""
ASYNCIO_PAUSE = """
async def pause():
    await asyncio.sleep(0)
"""
TRIO = """
import trio

async def time_out(thing):
    try:
        with trio.fail_after(0.3):
            block(thing)
    except trio.TooSlowError:
        seen.add("TooSlowError")
    with trio.move_on_after(0) as scope:
        time.sleep(60)
    assert scope.cancelled_caught

async def pause():
    await trio.sleep(0)
"""
HOSTS = {
    "wait_for": (ASYNCIO_WAIT_FOR + ASYNCIO_PAUSE, "asyncio.run(main())"),
    "timeout": (ASYNCIO_TIMEOUT + ASYNCIO_PAUSE, "asyncio.run(main())"),
    "trio": (TRIO, "trio.run(main)"),
}
if sys.version_info < (3, 11):
    del HOSTS["timeout"]
SEEN = {
    "wait_for": {"CancelledError", "TimeoutError"},
    "timeout": {"CancelledError", "TimeoutError"},
    "trio": {"Cancelled", "TooSlowError"},
}
HOSTS_AND_MODES = [*((host, "cli") for host in HOSTS), ("wait_for", "patch_all")]


@pytest.fixture(params=HOSTS_AND_MODES, ids="-".join)
def time_out(request, run_app):
    """time_out(imports, client, address, states): run it; what `after` says is one of `states`."""
    host, mode = request.param

    def run(imports: str, client: str, address: object, state: str) -> None:
        functions, start = HOSTS[host]
        source = PROGRAM.format(imports=imports, client=client, host=functions, run=start)
        result = run_app(source, str(address), mode=mode, limit=40)
        first, second = result.check().out.splitlines()
        assert (eval(first.split("} {")[0] + "}"), second) == (
            SEEN[host],
            "kept 0 objects, 0 fds, 0 threads",
        )
        assert first.endswith("} " + repr({state}))
        assert result.err == ""

    run.host = host
    return run


def until_none(count, seconds: float = 40) -> None:
    """`count()` comes to 0 in the end."""
    deadline = time.monotonic() + seconds
    while left := count():
        assert time.monotonic() < deadline, f"{left} left"
        time.sleep(0.05)


def test_psycopg2(time_out, postgres_server):
    """libpq would keep the connection and take the query's answer for the next one's: its stream is
    shut down, which psycopg2 finds out as it does with any lost server."""
    time_out(
        "import psycopg2",
        """
def make():
    return psycopg2.connect(
        f"host=127.0.0.1 port={address} user=postgres options='-c client_connection_check_interval=100'"
    )

def wait(connection):
    connection.cursor().execute("select pg_sleep(600)")

def after(connection):
    assert connection.closed == 0
    try:
        connection.cursor().execute("select 1")
    except psycopg2.OperationalError as error:
        assert connection.closed == 2
        return str(error).split(chr(10))[0]
""",
        postgres_server.port,
        "server closed the connection unexpectedly",
    )
    no_sleep_is_left(postgres_server)


def test_psycopg_3_with_its_c_build(time_out, postgres_server):
    """Its own wait is left by the cancellation itself; it knows that the query goes on."""
    time_out(
        "import psycopg\nassert psycopg.pq.__impl__ in ('c', 'binary')",
        """
def make():
    return psycopg.connect(
        f"host=127.0.0.1 port={address} user=postgres client_encoding=utf8 "
        "options='-c client_connection_check_interval=100'"
    )

def wait(connection):
    connection.execute("select pg_sleep(600)")

def after(connection):
    try:
        connection.rollback()
    except psycopg.OperationalError as error:
        return str(error)
""",
        postgres_server.port,
        "sending query failed: another command is already in progress",
    )
    no_sleep_is_left(postgres_server)


def no_sleep_is_left(server):
    until_none(
        lambda: postgres.query(
            server,
            "select count(*) from pg_stat_activity where query like 'select pg_sleep(6%' "
            "and state = 'active'",
        )[0][0]
    )


def test_mysqldb(time_out, mariadb_server):
    """libmariadb gives a connection up whose poll() failed. MariaDB looks every 5 s who is gone."""
    time_out(
        "import MySQLdb",
        """
def make():
    return MySQLdb.connect(host="127.0.0.1", port=int(address), user="root")

def wait(connection):
    connection.cursor().execute("select sleep(600)")

def after(connection):
    try:
        connection.cursor().execute("select 1")
    except MySQLdb.OperationalError as error:
        return str(error.args[0])
""",
        mariadb_server.port,
        "2006",
    )
    if time_out.host == "trio":
        until_none(
            lambda: mariadb.query(
                mariadb_server,
                "select count(*) from information_schema.processlist where info like 'select sleep(6%'",
            )[0][0]
        )


def test_pycurl(time_out, counting_server):
    time_out(
        "import io, pycurl",
        """
def make():
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, f"http://127.0.0.1:{address}/sleep?seconds=600")
    return curl

def wait(curl):
    curl.perform()

def after(curl):
    body = io.BytesIO()
    curl.setopt(pycurl.URL, f"http://127.0.0.1:{address}/sleep?seconds=0")
    curl.setopt(pycurl.WRITEDATA, body)
    curl.perform()
    return body.getvalue().decode()
""",
        counting_server.port,
        "slept",
    )


def test_redis_with_hiredis(time_out, redis_server):
    time_out(
        "import redis",
        """
def make():
    return redis.Redis(port=int(address), decode_responses=True)

def wait(client):
    client.blpop("never", timeout=0)

def after(client):
    return client.echo("usable")
""",
        redis_server.port,
        "usable",
    )


@pytest.mark.parametrize("tracer", ["settrace", "setprofile"])
def test_a_programs_own_tracer_goes_on_after_a_cancellation(run_app, postgres_server, tracer):
    source = """
    import asyncio, sys, psycopg2
    events = []

    def trace(frame, event, argument):
        if event == "exception" and frame.f_code is block.__code__:
            events.append(argument[0].__name__)
        return trace

    def block(connection):
        connection.cursor().execute("select pg_sleep(600)")

    async def main():
        for _ in range(2):
            connection = psycopg2.connect(f"host=127.0.0.1 port={sys.argv[1]} user=postgres "
                                          "options='-c client_connection_check_interval=100'")
            async def call():
                block(connection)
            try:
                await asyncio.wait_for(call(), 0.2)
            except asyncio.TimeoutError:
                events.append("timed out")
            connection.close()
        events.append(getattr(sys, sys.argv[2].replace("set", "get"))() is trace)

    getattr(sys, sys.argv[2])(trace)
    asyncio.run(main())
    print(events)
    """
    done = run_app(source, str(postgres_server.port), tracer)
    # From 3.12 on the interpreter tells sys.settrace()'s function before any other tool.
    seen = "CancelledError" if sys.version_info < (3, 12) else "DatabaseError"
    once = [seen, "timed out"] if tracer == "settrace" else ["timed out"]
    assert done.check().out == f"{[*once, *once, True]}\n"
