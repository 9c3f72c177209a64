"""Runs every cancellation scenario with waits that are blocking calls of libc, under patch_all().

`python parked_twins.py asyncio|uvloop|trio` prints, as JSON, the scenarios that ended differently
from their native twins. Run by test_portal_cancel.py in a process of its own. A body is cancelled
only where its wait lasts until then: how far others have come by a turn of the loop differs.
"""

from __future__ import annotations

import json
import sys

import portalpatch

portalpatch.patch_all()

import asyncio  # noqa: E402

import twins  # noqa: E402


async def compare(host, drivers, outcome, start):
    native, parked = (twins.load(host, mode) for mode in ("native", "park"))
    mismatches = []
    for name in native["BODIES"]:
        waits = False
        for driver in drivers.DRIVERS:
            by_itself = driver in (drivers.drive_to_its_end, drivers.drive_slowly)
            before = driver is drivers.drive_cancel_before_first_step
            if not (by_itself or before or waits):
                continue
            expected, stuck = await outcome(native[name], driver, start)
            result, _ = await outcome(parked[name], driver, start)
            if driver is drivers.drive_slowly:
                waits = stuck
            if result != expected:
                mismatches.append([name, driver.__name__, expected, result])
    return mismatches


async def compare_on_asyncio():
    import asyncio_drivers

    def start(body, log):
        return asyncio.ensure_future(body(log))

    return await compare("asyncio", asyncio_drivers, asyncio_drivers.outcome, start)


async def compare_on_trio():
    import trio_drivers

    async def start(body, log):
        return await body(log)

    return await compare("trio", trio_drivers, trio_drivers.outcome, start)


if sys.argv[1] == "asyncio":
    found = asyncio.run(compare_on_asyncio())
elif sys.argv[1] == "uvloop":
    import uvloop

    found = uvloop.run(compare_on_asyncio())
else:
    import trio

    found = trio.run(compare_on_trio)
print(json.dumps(found))
