"""The same queries from 100 asyncio tasks, with libraries written for asyncio.

usage: python db_async.py asyncpg|asyncpg-uvloop|sqlalchemy port tasks queries
"""

import asyncio
import json
import sys
import time

library, port, tasks, queries = sys.argv[1], *map(int, sys.argv[2:])


async def with_asyncpg():
    import asyncpg

    connections = [
        await asyncpg.connect(host="127.0.0.1", port=port, user="postgres", database="postgres")
        for _ in range(tasks)
    ]

    async def work(connection, times):
        for number in range(times):
            if await connection.fetchval("select $1::int + 1", number) != number + 1:
                raise SystemExit("wrong answer")

    return connections, work


async def with_sqlalchemy():
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(
        f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres",
        pool_size=tasks,
        isolation_level="AUTOCOMMIT",
    )
    connections = [await engine.connect() for _ in range(tasks)]
    statement = text("select cast(:n as int) + 1")

    async def work(connection, times):
        for number in range(times):
            if (await connection.execute(statement, {"n": number})).scalar() != number + 1:
                raise SystemExit("wrong answer")

    return connections, work


async def main():
    prepare = with_sqlalchemy if library == "sqlalchemy" else with_asyncpg
    connections, work = await prepare()
    await asyncio.gather(*[work(connection, 2) for connection in connections])
    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*[work(connection, queries // tasks) for connection in connections])
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "cpu_seconds": time.process_time() - cpu}), flush=True)


if library.endswith("uvloop"):
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
