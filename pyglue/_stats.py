"""`Statistics`, the immutable record `portalpatch.statistics()` returns, and its table."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """What portalpatch has done in this process so far. Counts start at `patch_all()`."""

    waits_by_call: Mapping[str, int]
    """Parked waits, by the libc function or the green lock that waited."""
    passed_by_call: Mapping[str, int]
    """Calls made where they could have parked that had no need to, by libc function."""
    blocked_by_call: Mapping[str, int]
    """Calls that did not park since their library, on the list of the mutex guard, held a mutex."""
    direct_resumes: int
    """Waits that ended with a switch from the hub, no task being woken ."""
    task_resumes: int
    """Waits that ended through the host loop's own wake-up of a task."""
    offloads: int
    """C calls run on a native worker thread while the caller was parked."""
    switches: int
    """Greenlet switches made for any of the above."""
    green_threads_started: int
    """`threading.Thread`s (and `_thread.start_new_thread`s) that became green threads."""
    portals: int
    """Portals made: one for each task that could wait from synchronous code."""
    longest_run: float
    """Seconds: the longest time that code ran without waiting, so that nothing else could."""
    hooked_objects: int
    """Loaded objects in which GOT slots are rewritten; 0 when the library was preloaded."""
    hooked_slots: int
    """Rewritten GOT slots in all of them."""
    preloaded: bool
    """Whether the library came by LD_PRELOAD."""


def format_table(statistics: Statistics) -> str:
    """A readable table of `statistics`, several lines, ending in a newline."""
    rows = [
        ("green threads started", f"{statistics.green_threads_started:,}"),
        ("portals made", f"{statistics.portals:,}"),
        ("direct resumes", f"{statistics.direct_resumes:,}"),
        ("task resumes", f"{statistics.task_resumes:,}"),
        ("greenlet switches", f"{statistics.switches:,}"),
        ("offloaded calls", f"{statistics.offloads:,}"),
        ("longest run without a wait", f"{statistics.longest_run * 1000:,.1f} ms"),
        (
            "calls caught by",
            "LD_PRELOAD"
            if statistics.preloaded
            else f"{statistics.hooked_slots:,} GOT slots in {statistics.hooked_objects:,} objects",
        ),
    ]
    lines = ["portalpatch statistics"]
    lines += [f"  {label:<28}{value:>16}" for label, value in rows]
    if statistics.blocked_by_call:
        blocked = sum(statistics.blocked_by_call.values())
        calls = ", ".join(sorted(statistics.blocked_by_call))
        lines.append(f"  {'blocked, a mutex was held':<28}{blocked:>16,}  in {calls}")
    names = sorted(
        {name for name, count in statistics.waits_by_call.items() if count}
        | {name for name, count in statistics.passed_by_call.items() if count},
        key=lambda name: (-statistics.waits_by_call.get(name, 0), name),
    )
    if names:
        lines.append(f"  {'call':<28}{'waits':>16}{'passed through':>18}")
    for name in names:
        waits = statistics.waits_by_call.get(name, 0)
        passed = statistics.passed_by_call.get(name, 0)
        lines.append(f"  {name:<28}{waits:>16,}{passed:>18,}")
    return "\n".join(lines) + "\n"


_wanted = False


def print_at_exit(wanted: bool = True) -> None:
    """Have this process write its table to fd 2 as it ends, or not. Asking again changes nothing."""
    global _wanted
    if wanted and not _wanted:
        atexit.register(print_statistics)
    elif _wanted and not wanted:
        atexit.unregister(print_statistics)
    _wanted = wanted


def print_statistics() -> None:
    """Write the table to fd 2 now, past whatever `sys.stderr` is by this time."""
    import portalpatch

    text = format_table(portalpatch.statistics()).encode()
    try:
        while text:
            text = text[os.write(2, text) :]
    except OSError:
        pass  # stderr is closed: there is nobody to tell
