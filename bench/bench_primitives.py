"""Threads, locks, queues, events, sleeps: CPU us for each operation, the same unmodified program.

A hand-over is one wake-up of one thread by another (half a ping-pong). The asyncio column is the
same work written natively with coroutines.
"""

from __future__ import annotations

import statistics
import subprocess

import harness


def bare_us(count: int) -> float:
    """CPU us of send, recv that finds nothing, epoll_wait, recv: what a hand-over needs at least."""
    command = harness.pinned([harness.compile_c("bare_wait.c"), str(count)], harness.SERVER_CPU)
    wait = subprocess.run(command, check=True, capture_output=True, text=True)
    ready = harness.finished(harness.python("plain", "ready_recv.py", count))
    return float(wait.stdout) / 1000 + ready["us"]


def main() -> None:
    args = harness.options(__doc__)
    bench = harness.Benchmark(
        "primitives", "threads, locks, queues, events, CPU us each", args, "gevent", "eventlet"
    )
    harness.raise_open_files()
    count = 3_000 if bench.quick else 40_000
    peers = {
        "portalpatch": harness.python("portalpatch", "primitives.py", count),
        "native threads": harness.python("plain", "primitives.py", count),
        "asyncio, native": harness.python("plain", "primitives_asyncio.py", count),
    }
    if not bench.quick:
        trio = harness.python("portalpatch trio", "primitives.py", count)
        peers = {"portalpatch": peers.pop("portalpatch"), "portalpatch, on Trio": trio, **peers}
    if bench.present("gevent", "gevent"):
        peers["gevent, patched"] = harness.python("gevent", "primitives.py", count)
    if bench.present("eventlet", "eventlet"):
        peers["eventlet, patched"] = harness.python("eventlet", "primitives.py", count)

    def case(name: str):
        env = harness.plain_environment(EVENTLET_HUB="epolls")
        return lambda: harness.finished(peers[name], env=env)

    operations = [
        "start + join",
        "start 100, join 100",
        "lock, uncontended",
        "lock hand-over",
        "queue.Queue hand-over",
        "queue.SimpleQueue hand-over",
        "event hand-over",
        "condition hand-over",
        "time.sleep(0)",
        "recv, blocking, hand-over",
        "poll() on 1,000 sockets",
    ]
    group = bench.measure(
        "us for each operation",
        {operation: operation for operation in operations},
        {name: case(name) for name in peers},
        transposed=True,
    )
    if args.only:
        bench.finish()
        return

    def faster(operation: str, limit: float) -> None:
        figure = group.ratio(operation, "gevent, patched", "portalpatch")
        bench.target(f"{operation}: times faster than gevent", figure, limit, "at least")

    faster("start + join", 1.5)
    faster("lock hand-over", 2)
    faster("queue.Queue hand-over", 2)
    faster("queue.SimpleQueue hand-over", 2)
    bench.target(
        "lock, uncontended, over the native lock",
        group.ratio("lock, uncontended", "portalpatch", "native threads"),
        1.0,
    )
    bare = statistics.median(bare_us(count) for _ in range(bench.rounds))
    bench.note(f"send, recv that finds nothing, epoll_wait, recv: {bare:.2f} us")
    bench.target(
        "park and resume of a recv, us over these bare system calls",
        group.median("portalpatch", "recv, blocking, hand-over") - bare,
        1.5,
    )
    bench.finish()


if __name__ == "__main__":
    main()
