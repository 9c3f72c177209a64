"""Short queries from 100 threads or tasks: psycopg2 (libpq, C), PyMySQL, MySQLdb (C).

The same unmodified threaded program under each peer; asyncpg and SQLAlchemy's asyncio face beside
them. The client has one CPU, the private database the other. Queries a second, and the client's CPU
us for each query.
"""

from __future__ import annotations

import os

import harness
from servers import mariadb, postgres
from servers.process import Missing

METRICS = {"rate": "queries/s", "cpu": "client CPU us/query"}


def main() -> None:
    args = harness.options(__doc__)
    bench = harness.Benchmark(
        "db",
        "short queries, 100 connections at once",
        args,
        "psycopg2-binary",
        "PyMySQL",
        "mysqlclient",
        "gevent",
        "eventlet",
        "psycogreen",
        "asyncpg",
        "SQLAlchemy",
        "greenletio",
    )
    queries = 4_000 if bench.quick else 20_000
    tasks = 20 if bench.quick else 100

    def case(command: list[str], cpu: int | None = harness.SERVER_CPU, **env: str):
        def once():
            got = harness.finished(command, cpu, harness.plain_environment(**env))
            return {
                "rate": queries / got["seconds"],
                "cpu": got["cpu_seconds"] / queries * 1e6,
            }

        return once

    def threaded(launcher: str, driver: str, port: int, **env: str):
        return case(harness.python(launcher, "db_threads.py", driver, port, tasks, queries), **env)

    def asynchronous(library: str, port: int):
        return case(harness.python("plain", "db_async.py", library, port, tasks, queries))

    def common(driver: str, port: int):
        cases = {
            "portalpatch": threaded("portalpatch", driver, port),
            "portalpatch, on Trio": threaded("portalpatch trio", driver, port),
            "native threads": threaded("plain", driver, port),
            "native threads, not pinned": case(
                harness.python("plain", "db_threads.py", driver, port, tasks, queries), None
            ),
        }
        if bench.present("gevent", "gevent"):
            cases["gevent, patched"] = threaded("gevent", driver, port)
        if bench.present("eventlet", "eventlet"):
            cases["eventlet, patched"] = threaded("eventlet", driver, port, EVENTLET_HUB="epolls")
        return cases

    # The servers inherit this process's CPU; the client programs are pinned to the other.
    os.sched_setaffinity(0, {harness.LOAD_CPU})
    if bench.present("psycopg2", "psycopg2"):
        try:
            server = postgres.start()
        except Missing as why:
            bench.missing("PostgreSQL", str(why))
        else:
            try:
                cases = common("psycopg2", server.port)
                # libpq blocks gevent and eventlet: each is shown with its documented remedy as well
                if bench.present("gevent + psycogreen", "gevent", "psycogreen"):
                    cases["gevent + psycogreen"] = threaded(
                        "gevent psycogreen", "psycopg2", server.port
                    )
                if bench.present("greenletio", "greenletio"):
                    cases["greenletio, patched"] = threaded("greenletio", "psycopg2", server.port)
                if bench.present("asyncpg", "asyncpg"):
                    cases["asyncpg"] = asynchronous("asyncpg", server.port)
                    if bench.present("uvloop", "uvloop"):
                        cases["asyncpg, uvloop"] = asynchronous("asyncpg-uvloop", server.port)
                if bench.present("SQLAlchemy asyncio", "sqlalchemy", "asyncpg"):
                    cases["SQLAlchemy asyncio, asyncpg"] = asynchronous("sqlalchemy", server.port)
                group = bench.measure("psycopg2, PostgreSQL", METRICS, cases)
            finally:
                postgres.stop(server)
            if not args.only:

                def throughput(peer: str, limit: float) -> None:
                    figure = group.ratio("rate", "portalpatch", peer)
                    bench.target(f"psycopg2: throughput over {peer}", figure, limit, "at least")

                throughput("gevent + psycogreen", 1.3)
                throughput("native threads", 1.3)
                throughput("asyncpg", 0.7)
    drivers = {"pymysql": "pymysql", "mysqldb": "MySQLdb"}
    drivers = {name: module for name, module in drivers.items() if bench.present(name, module)}
    if drivers and bench.present("pymysql", "pymysql"):
        try:
            server = mariadb.start()
        except Missing as why:
            bench.missing("MariaDB", str(why))
        else:
            try:
                for driver, module in drivers.items():
                    cases = common(driver, server.port)
                    bench.measure(f"{module}, MariaDB", METRICS, cases)
            finally:
                server.stop()
    bench.finish()


if __name__ == "__main__":
    main()
