"""`statistics()` counts the GOT slots that patch_all() hooks; unpatching gives every one back."""

from __future__ import annotations

PROGRAM = """
import sys
import portalpatch
portalpatch.patch_all()
first = portalpatch.statistics()
import _ssl, _socket, select
import time; time.sleep(0.001)
second = portalpatch.statistics()
portalpatch.unpatch_all()
third = portalpatch.statistics()
print(first.preloaded, first.hooked_objects > 0, first.hooked_slots >= first.hooked_objects)
print("_ssl" in sys.modules, second.hooked_objects > first.hooked_objects,
    second.hooked_slots > first.hooked_slots)
print(third.hooked_objects, third.hooked_slots)
"""


def test_statistics_count_what_is_hooked_and_unpatching_restores_it(run_app):
    done = run_app(PROGRAM, mode="plain").check()
    assert done.out == "False True True\nTrue True True\n0 0\n"
