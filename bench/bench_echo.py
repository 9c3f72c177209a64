"""An unmodified thread-per-connection echo server under portalpatch, beside its peers.

The server has one CPU, a C epoll client the other. Server CPU us for each request (the figure that
the load client's own speed does not touch), requests a second, and latency.
"""

from __future__ import annotations

from collections.abc import Callable

import harness

METRICS = {"cpu": "CPU us/request", "rate": "requests/s", "p50": "p50 us", "p99": "p99 us"}
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 24), "MALLOC_TRIM_THRESHOLD_": str(1 << 26)}


def servers(bench: harness.Benchmark) -> dict[str, tuple[list[str], dict[str, str], bool]]:
    """Every server: its command, environment, and whether it is pinned to one CPU."""

    def plain(launcher: str, *words: str, pin: bool = True, **env: str):
        return harness.python(launcher, *words), harness.plain_environment(**env), pin

    found = {
        "portalpatch": plain("portalpatch", "echo_threads.py"),
        "portalpatch, on Trio": plain("portalpatch trio", "echo_threads.py"),
        "native threads": plain("plain", "echo_threads.py"),
        "native threads, not pinned": plain("plain", "echo_threads.py", pin=False),
        "C epoll (the ceiling)": (
            [harness.compile_c("echo_server.c")],
            harness.plain_environment(),
            True,
        ),
        "asyncio streams": plain("plain", "echo_asyncio.py", "streams"),
        "asyncio streams, malloc tuned": plain("plain", "echo_asyncio.py", "streams", **TUNED),
        "asyncio protocol": plain("plain", "echo_asyncio.py", "protocol"),
        "asyncio protocol, malloc tuned": plain("plain", "echo_asyncio.py", "protocol", **TUNED),
        "asyncio buffered protocol": plain("plain", "echo_asyncio.py", "buffered"),
    }
    if bench.present("uvloop", "uvloop"):
        found["uvloop protocol"] = plain("plain", "echo_asyncio.py", "protocol", "uvloop")
        found["uvloop streams"] = plain("plain", "echo_asyncio.py", "streams", "uvloop")
    if bench.present("gevent", "gevent"):
        found["gevent, patched"] = plain("gevent", "echo_threads.py")
        found["gevent StreamServer"] = plain("plain", "echo_gevent.py")
    if bench.present("eventlet", "eventlet"):
        found["eventlet, patched"] = plain("eventlet", "echo_threads.py", EVENTLET_HUB="epolls")
        found["eventlet GreenPool"] = plain("plain", "echo_eventlet.py", EVENTLET_HUB="epolls")
        found["eventlet, on asyncio"] = plain("eventlet", "echo_threads.py", EVENTLET_HUB="asyncio")
    if bench.present("greenletio", "greenletio"):
        found["greenletio, patched"] = plain("greenletio", "echo_threads.py")
    if bench.present("Trio", "trio"):
        found["Trio streams"] = plain("plain", "echo_trio.py")
    return found


def main() -> None:
    args = harness.options(__doc__)
    bench = harness.Benchmark(
        "echo",
        "unmodified thread-per-connection echo server",
        args,
        "gevent",
        "eventlet",
        "greenletio",
        "uvloop",
        "trio",
    )
    harness.raise_open_files()
    client = harness.compile_c("load_client.c")
    all_servers = servers(bench)
    if bench.quick:
        loads = [(100, 64, 0.1, 0.3)]
    else:
        loads = [(1, 64, 0.1, 0.3), (100, 64, 0.2, 0.7), (1000, 64, 0.3, 0.8)]
        loads += [(5000, 64, 0.5, 1), (100, 16384, 0.2, 0.7)]

    for connections, size, warm, seconds in loads:
        shown = "64 bytes" if size == 64 else f"{size // 1024} KiB"
        plural = "s" if connections > 1 else ""

        def case(server) -> Callable[[], harness.Sample]:
            return lambda: harness.load(server, client, connections, size, warm, seconds)  # noqa: B023

        group = bench.measure(
            f"{connections:,} connection{plural}, {shown}",
            METRICS,
            {name: case(server) for name, server in all_servers.items()},
        )
        if args.only or size != 64 or connections not in (100, 1000):
            continue
        at = f"at {connections:,} connections"
        ours, gevent = "portalpatch", "gevent, patched"
        bench.target(f"{at}: CPU over gevent's", group.ratio("cpu", ours, gevent), 0.62)
        threads = group.ratio("cpu", ours, "native threads")
        bench.target(f"{at}: CPU over native threads' (pinned)", threads, 1.0)
        ceiling = group.ratio("cpu", ours, "C epoll (the ceiling)")
        bench.target(f"{at}: CPU over the C ceiling's", ceiling, 1.45)
        trio = group.ratio("cpu", "portalpatch, on Trio", gevent)
        bench.target(f"{at}: CPU on Trio over gevent's", trio, 1.0)
        if connections == 1000:
            bench.target(f"{at}: p99 over gevent's", group.ratio("p99", ours, gevent), 0.5)
    bench.finish()


if __name__ == "__main__":
    main()
