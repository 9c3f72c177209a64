"""Found by `site` through PYTHONPATH: starts portalpatch, then makes itself unseen.

See start.py beside this file. `site` ignores an ImportError that names sitecustomize, which is how
"there is no sitecustomize" is said; where there is a real one it takes this module's place.
"""


def _start() -> bool:
    import importlib.util
    import os

    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py")
    spec = importlib.util.spec_from_file_location("portalpatch._autostart.start", path)
    assert spec is not None and spec.loader is not None
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    found: bool = start.from_sitecustomize()
    return found


if not _start():
    raise ImportError("No module named 'sitecustomize'", name="sitecustomize")
