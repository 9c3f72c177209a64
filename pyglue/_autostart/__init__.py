"""What runs inside a Python that starts under portalpatch, before the program does.

`sitecustomize.py` is found through PYTHONPATH, `boot.py` is run in the program's place where the
interpreter's flags (-I, -E, -S) rule that out; both use `start.py`.
"""
