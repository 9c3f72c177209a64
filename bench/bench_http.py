"""A web service that asks PostgreSQL at each request: http.server, Flask on waitress; psycopg2.

The same unmodified programs under each peer; gevent's own WSGI server, and FastAPI with asyncpg
beside them. 100 kept-alive connections; the service has one CPU, the load and the database the other.
"""

from __future__ import annotations

import os

import harness
from servers import postgres
from servers.process import Missing

METRICS = {"cpu": "CPU us/request", "rate": "requests/s", "p50": "p50 us", "p99": "p99 us"}
CONNECTIONS = 100


def main() -> None:
    args = harness.options(__doc__)
    bench = harness.Benchmark(
        "http",
        "a web service that asks PostgreSQL",
        args,
        "Flask",
        "waitress",
        "psycopg2-binary",
        "gevent",
        "psycogreen",
        "fastapi",
        "uvicorn",
        "httptools",
        "uvloop",
        "asyncpg",
    )
    if not bench.present("psycopg2", "psycopg2"):
        bench.finish()
        return
    client = harness.compile_c("load_client.c")
    os.sched_setaffinity(0, {harness.LOAD_CPU})  # the database inherits it
    try:
        database = postgres.start()
    except Missing as why:
        bench.missing("PostgreSQL", str(why))
        bench.finish()
        return
    warm, seconds = (0.3, 0.5) if bench.quick else (1, 3)

    def case(launcher: str, program: str, *words: str, pin: bool = True):
        command = harness.python(launcher, program, database.port, *words)
        server = (command, harness.plain_environment(), pin)
        return lambda: harness.load(server, client, CONNECTIONS, 0, warm, seconds, "/")

    def group(title: str, program: str, more) -> harness.Group:
        cases = {
            "portalpatch": case("portalpatch", program),
            "portalpatch, on Trio": case("portalpatch trio", program),
            "native threads": case("plain", program),
            "native threads, not pinned": case("plain", program, pin=False),
        }
        if bench.present("gevent + psycogreen", "gevent", "psycogreen"):
            cases["gevent + psycogreen"] = case("gevent psycogreen", program)
        return bench.measure(title, METRICS, {**cases, **more})

    more = {}
    if bench.present("FastAPI + asyncpg", "fastapi", "uvicorn", "asyncpg"):
        more["FastAPI, uvicorn, asyncpg"] = case("plain", "http_fastapi.py")
    measured = {}
    try:
        measured["http.server"] = group("http.server, psycopg2", "http_server.py", more)
        if bench.present("Flask on waitress", "flask", "waitress"):
            if bench.present("gevent + psycogreen", "gevent", "psycogreen"):
                more["gevent pywsgi + psycogreen"] = case(
                    "gevent psycogreen", "http_flask.py", "pywsgi"
                )
            measured["Flask"] = group("Flask on waitress, psycopg2", "http_flask.py", more)
    finally:
        postgres.stop(database)
    if not args.only:
        for title, figures in measured.items():
            for peer in ("native threads", "gevent + psycogreen", "FastAPI, uvicorn, asyncpg"):
                ratio = figures.ratio("rate", "portalpatch", peer)
                bench.note(f"{title}: requests/s over {peer}: {ratio:.2f}")
    bench.finish()


if __name__ == "__main__":
    main()
