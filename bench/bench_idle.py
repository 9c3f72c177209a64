"""What waiting costs: memory and CPU of 1 to 50,000 idle connections and sleeping threads."""

from __future__ import annotations

import resource

import harness

METRICS = {"kib": "resident KiB each", "start": "CPU us to start one", "idle": "CPU ms in 0.5 s"}
NATIVE_MOST = 10_000  # OS threads: more is unkind to the rest of the machine


def cases(bench: harness.Benchmark, kind: str, count: int, exchanges: int):
    """One program for each peer that can hold `count` waiters."""

    def case(launcher: str, program: str):
        command = harness.python(launcher, program, kind, count, exchanges)
        env = harness.plain_environment(EVENTLET_HUB="epolls")
        return lambda: harness.finished(command, env=env)

    found = {
        "portalpatch": case("portalpatch", "idle.py"),
        "portalpatch, on Trio": case("portalpatch trio", "idle.py"),
    }
    most = 1_000 if bench.quick else NATIVE_MOST
    if count <= most:
        found["native threads"] = case("plain", "idle.py")
    else:
        bench.missing(f"native threads, {count:,}", f"not tried beyond {most:,} OS threads")
    if bench.present("gevent", "gevent"):
        found["gevent, patched"] = case("gevent", "idle.py")
    if bench.present("eventlet", "eventlet") and not bench.quick:
        found["eventlet, patched"] = case("eventlet", "idle.py")
    found["asyncio, native"] = case("plain", "idle_asyncio.py")
    return found


def note_open_files(bench: harness.Benchmark, most: int) -> None:
    """Say so where the system's limit leaves fewer silent sockets than waiters."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 500
    if allowed < most:
        bench.note(f"the limit of open files: beyond {allowed:,} silent sockets, the rest sleep")


def main() -> None:
    args = harness.options(__doc__)
    bench = harness.Benchmark(
        "idle", "idle connections and sleeping threads", args, "gevent", "eventlet"
    )
    counts = [1_000] if bench.quick else [1, 1_000, 10_000, 50_000]
    note_open_files(bench, counts[-1])
    for kind, title in (("sockets", "in recv on a silent socket"), ("sleep", "in time.sleep")):
        for count in counts:
            plural = "s" if count > 1 else ""
            group = bench.measure(
                f"{count:,} thread{plural} {title}",
                METRICS,
                cases(bench, kind, count, 0),
                rounds=min(bench.rounds, 3),
            )
            if args.only or count == 1:
                continue
            what = f"{count:,} {title}, KiB for each green thread"
            bench.target(what, group.median("portalpatch", "kib"), 10)
            bench.target(
                f"{what}, over gevent's", group.ratio("kib", "portalpatch", "gevent, patched"), 1
            )
    bench.finish()


if __name__ == "__main__":
    main()
