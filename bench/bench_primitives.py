"""Threads, locks, queues, events, sleeps: CPU us for each operation, the same unmodified program.

A hand-over is one wake-up of one thread by another (half a ping-pong). The asyncio column is the
same work written natively with coroutines.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import harness

SYSCALLS = """
import socket, time
here, there = socket.socketpair()
here.setblocking(False)
import select
poller = select.epoll()
poller.register(here, select.EPOLLIN)
start = time.process_time()
for _ in range({count}):
    try:
        here.recv(1)
    except BlockingIOError:
        pass
    there.send(b"x")
    poller.poll(0)
    here.recv(1)
print((time.process_time() - start) / {count} * 1e6)
"""


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
    bare = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "syscalls.py")
        program.write_text(SYSCALLS.format(count=count))
        for _ in range(bench.rounds):
            command = harness.pinned([harness.sys.executable, str(program)], harness.SERVER_CPU)
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            bare.append(json.loads(run.stdout))
    bench.target(
        "park and resume of a recv, us over the bare system calls (recv, send, epoll_wait, recv)",
        group.median("portalpatch", "recv, blocking, hand-over") - statistics.median(bare),
        1.5,
    )
    bench.finish()


if __name__ == "__main__":
    main()
