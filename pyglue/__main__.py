"""`python -m portalpatch`: see _cli.py."""

import os
import sys

safe = sys.flags.isolated or getattr(sys.flags, "safe_path", False)
try:
    put_there = ([""], [os.getcwd()])
except OSError:  # the folder is gone
    put_there = ([""], [])
if not safe and sys.path[:1] in put_there:
    del sys.path[0]  # -m put it there: a json.py beside the user's program is none of ours

from portalpatch._cli import main  # noqa: E402 (after sys.path is put right)

if __name__ == "__main__":
    sys.exit(main())
