"""Subinterpreters stay native, and leave the main one's green threads as they are."""

from __future__ import annotations

import pytest

SUBINTERPRETERS = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
"""


@pytest.mark.parametrize("mode", ["cli", "preload", "patch_all"])
def test_green_threads_go_on_when_a_subinterpreter_ends(run_app, mode):
    program = f"""{SUBINTERPRETERS}
import portalpatch, threading, time
portalpatch.patch_all()
number = interpreters.create()
interpreters.run_string(number, "import time; time.sleep(0.001)")
ending = threading.Thread(target=interpreters.destroy, args=(number,))
ending.start()
ending.join()
ended = threading.Event()
def beat():
    while not ended.is_set():  # for ever where a sleep keeps the others from running
        time.sleep(0.001)
beating = threading.Thread(target=beat)
beating.start()
time.sleep(0.005)
ended.set()
beating.join()
print(portalpatch.is_patched())
"""
    assert run_app("-c", program, mode=mode).check().out == "True\n"


def test_it_cannot_be_imported_in_a_subinterpreter(run_app):
    program = f"""{SUBINTERPRETERS}
import time
number = interpreters.create()
interpreters.run_string(number, '''
try:
    import portalpatch
except ImportError as error:
    print(error, flush=True)
''')
interpreters.destroy(number)
time.sleep(0.001)
"""
    completed = run_app("-c", program, mode="cli").check()
    assert completed.out.startswith("module portalpatch._core does not support loading in")
    assert completed.err == ""
