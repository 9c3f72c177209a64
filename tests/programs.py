"""Running programs, plainly and under portalpatch: what conftest.py's `start_program` and `run_app`
stand on. Apart from conftest.py, of which there are several, so that tests can import it."""

from __future__ import annotations

MODES = ("cli", "patch_all", "preload", "no-preload")
