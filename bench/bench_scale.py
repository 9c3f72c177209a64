"""The cost of one event as idle waiters grow from 10 to 50,000: it must stay flat.

Two threads exchange a byte over a socket pair while the others wait for sockets that stay silent.
"""

from __future__ import annotations

import harness
from bench_idle import cases, note_open_files

METRICS = {"event": "CPU us/event"}


def main() -> None:
    args = harness.options(__doc__)
    bench = harness.Benchmark(
        "scale", "cost of an event beside idle waiters", args, "gevent", "eventlet"
    )
    counts = [10, 5_000] if bench.quick else [10, 1_000, 10_000, 50_000]
    exchanges = 2_000 if bench.quick else 10_000
    note_open_files(bench, counts[-1])
    groups = {}
    for count in counts:
        group = bench.measure(
            f"{count:,} idle waiters", METRICS, cases(bench, "sockets", count, exchanges)
        )
        groups[count] = group
    if not args.only:
        few, many = (
            groups[count].samples["portalpatch"]["event"] for count in (counts[0], counts[-1])
        )
        growth = harness.statistics.median(b / a for a, b in zip(few, many, strict=True))
        what = f"cost of an event beside {counts[-1]:,} waiters over that beside {counts[0]}"
        bench.target(what, growth, 1.2)
    bench.finish()


if __name__ == "__main__":
    main()
