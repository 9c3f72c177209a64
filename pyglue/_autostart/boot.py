"""Run as `python -I boot.py program...`: starts portalpatch, then the program as Python would.

Used by the command line where -I, -E or -S keep sitecustomize.py from being found. All of it is in
start.py, because this module's namespace, `__main__`, becomes the program's.
"""

import importlib.util
import os.path

_spec = importlib.util.spec_from_file_location(
    "portalpatch._autostart.start",
    os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py"),
)
_start = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(_start)  # type: ignore[union-attr]
_start.from_boot()
