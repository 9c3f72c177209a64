"""Async libraries used from synchronous functions in portals, each as it is and with every task patched.

SQLAlchemy with aiosqlite, anyio on both hosts, httpx: their own greenlets, task groups, cancel scopes
and worker threads meet the portal's.
"""

from __future__ import annotations

import sys

import pytest

COMMON = """
import asyncio, logging, sys, threading, time
logging.getLogger("asyncio").setLevel(logging.ERROR)
import portalpatch
from portalpatch import async_context, async_iter, await_, ensure_portal, with_portal_run_sync

def block(seconds=0.002):  # parks where libc is caught
    if portalpatch.is_patched():
        time.sleep(seconds)
"""

SQLALCHEMY = """
from sqlalchemy import Integer, String, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.util import await_only, greenlet_spawn

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(30))

def in_plain_functions(engine):
    with async_context(engine.begin()) as connection:
        await_(connection.run_sync(Base.metadata.drop_all))
        await_(connection.run_sync(Base.metadata.create_all))
    with async_context(AsyncSession(engine)) as session:
        session.add_all([User(name="ada"), User(name="grace")])
        await_(session.commit())
        block()
        names = [user.name for user in await_(session.scalars(select(User).order_by(User.id)))]
        await_(session.rollback())
        try:
            with async_context(session.begin()):
                session.add(User(name="lost"))
                await_(session.flush())
                raise KeyError("rolled back")
        except KeyError as error:
            names.append(str(error))
        rows = await_(session.stream(select(User.name)))
        return names, sorted(row.name for row in async_iter(rows))

def inside_run_sync(connection):  # in SQLAlchemy's greenlet, in a portal: await_ works there too
    await_(asyncio.sleep(0))
    block()
    before = connection.execute(text("select count(*) from users")).scalar()
    return before, await_(answer()), await_only(answer())

async def answer():
    await asyncio.sleep(0)
    return 42

async def main():
    engine = create_async_engine("sqlite+aiosqlite://")
    await ensure_portal()
    print(in_plain_functions(engine))
    print(await with_portal_run_sync(in_plain_functions, engine))
    async with engine.connect() as connection:
        print(await connection.run_sync(inside_run_sync))
        print(await_(connection.run_sync(inside_run_sync)))
    def spawned():
        return await_only(greenlet_spawn(lambda: (await_(answer()), await_only(answer()))))
    print(await greenlet_spawn(spawned))
    async def cancelled():
        await ensure_portal()
        with async_context(engine.connect()) as connection:
            await_(connection.execute(text("select 1")))
            await_(asyncio.sleep(60))
    task = asyncio.ensure_future(cancelled())
    await asyncio.sleep(0.02)
    task.cancel()
    print(await asyncio.gather(task, return_exceptions=True))
    await_(engine.dispose())

asyncio.run(main())
"""

ROWS = "(['ada', 'grace', \"'rolled back'\"], ['ada', 'grace'])"

ANYIO = """
import anyio, anyio.from_thread, anyio.to_thread

async def value(value):
    await anyio.sleep(0)
    return value

def group_in_plain_function(log):
    with async_context(anyio.create_task_group()) as group:
        group.start_soon(child, group, log, 3)
        group.start_soon(with_portal_run_sync, plain_child, log)
        log.append(await_(group.start(starts)))
        block()

async def starts(task_status):
    await ensure_portal()
    task_status.started(await_(value("started")))

def plain_child(log):
    with anyio.CancelScope(shield=True):
        await_(anyio.sleep(0.001))
    log.append(await_(value("plain")))

async def child(group, log, depth):
    await ensure_portal()
    def plain():
        if depth:
            group.start_soon(child, group, log, depth - 1)
        log.append(await_(value("child")))
    plain()

def streams():
    send, receive = anyio.create_memory_object_stream(1)
    got = []
    with async_context(anyio.create_task_group()) as group:
        def feed():
            with send:
                for i in range(3):
                    await_(send.send(i))
        group.start_soon(with_portal_run_sync, feed)
        with receive:
            got.extend(async_iter(receive))
    return got

def timeouts():
    with anyio.move_on_after(0.01) as scope:
        await_(anyio.sleep(60))
    try:
        with anyio.fail_after(0.01):
            await_(anyio.sleep(60))
    except TimeoutError:
        return scope.cancelled_caught, "timeout"

def groups_error():
    try:
        with async_context(anyio.create_task_group()) as group:
            group.start_soon(fails)
            await_(anyio.sleep(60))
    except BaseException as group:
        return [repr(error) for error in group.exceptions]

async def fails():
    await ensure_portal()
    await_(value(1))
    raise KeyError("child")

def threads():
    def in_thread():
        return anyio.from_thread.run(value, "from thread")
    return await_(anyio.to_thread.run_sync(in_thread))

def locks():
    lock, event, log = anyio.Lock(), anyio.Event(), []
    def first():
        with async_context(lock):
            event.set()
            await_(anyio.sleep(0.001))
            block()
            log.append("first")
    def second():
        await_(event.wait())
        with async_context(lock):
            log.append("second")
    with async_context(anyio.create_task_group()) as group:
        group.start_soon(with_portal_run_sync, second)
        group.start_soon(with_portal_run_sync, first)
    return log

async def main():
    await ensure_portal()
    log = []
    group_in_plain_function(log)
    print(sorted(log))
    print(streams(), timeouts(), groups_error(), threads(), locks())
    print((await with_portal_run_sync(streams)), await_(value("end")))

for backend in "asyncio", "trio":
    anyio.run(main, backend=backend)
"""

ANYIO_LINES = [
    str(["child"] * 4 + ["plain", "started"]),
    "[0, 1, 2] (True, 'timeout') [\"KeyError('child')\"] from thread ['first', 'second']",
    "[0, 1, 2] end",
]

HTTPX = """
import httpx

async def serve(reader, writer):
    await ensure_portal()
    def plain():
        line = await_(reader.readline())
        while await_(reader.readline()) != b"\\r\\n":
            pass
        block()
        body = line.split()[1]
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
        writer.close()
    plain()

def crawl(url):
    with async_context(httpx.AsyncClient(trust_env=False)) as client:
        return [await_(client.get(f"{url}/{i}")).text for i in range(3)]

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1")
    url = "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    pages = await asyncio.gather(*(with_portal_run_sync(crawl, url) for _ in range(3)))
    print(pages)
    server.close()

asyncio.run(main())
"""

RUNNER = """
import contextvars
variable = contextvars.ContextVar("variable", default=0)

async def count():
    await ensure_portal()
    def plain():
        block()
        variable.set(variable.get() + 1)
        return await_(asyncio.sleep(0, variable.get()))
    return plain(), asyncio.get_running_loop()

with asyncio.Runner() as runner:
    (first, loop), (second, same) = runner.run(count()), runner.run(count())
    print(first, second, loop is same is runner.get_loop())
"""

PROGRAMS = {
    "sqlalchemy and aiosqlite": (
        SQLALCHEMY,
        [ROWS, ROWS, "(2, 42, 42)", "(2, 42, 42)", "(42, 42)", "[CancelledError('')]"],
    ),
    "anyio": (ANYIO, ANYIO_LINES * 2),
    "httpx": (HTTPX, ["[['/0', '/1', '/2'], ['/0', '/1', '/2'], ['/0', '/1', '/2']]"]),
}
if sys.version_info >= (3, 11):
    PROGRAMS["asyncio.Runner"] = (RUNNER, ["1 2 True"])


@pytest.mark.parametrize("mode", ["plain", "patch_all", "cli"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_library_works_in_portals(name, mode, run_app):
    source, expected = PROGRAMS[name]
    done = run_app(
        COMMON + source,
        mode=mode,
        flags=["-X", "dev", "-W", "ignore::DeprecationWarning"],
        limit=60,
    )
    done.check()
    assert done.out.splitlines() == expected
    assert done.err == ""
