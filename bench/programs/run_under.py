"""Runs an unmodified program under a peer, at the peer's documented settings.

usage: python run_under.py gevent|gevent+psycogreen|eventlet|greenletio program.py [arguments]
"""

import contextlib
import runpy
import sys

peer, program = sys.argv[1:3]
if peer.startswith("gevent"):
    from gevent import monkey

    monkey.patch_all()
    if peer == "gevent+psycogreen":
        from psycogreen.gevent import patch_psycopg

        patch_psycopg()
elif peer == "eventlet":
    import eventlet

    eventlet.monkey_patch()
elif peer == "greenletio":
    import greenletio
    from greenletio.cli import main

    with contextlib.suppress(ImportError):
        greenletio.patch_psycopg2()
    sys.argv[1:] = sys.argv[2:]
    sys.exit(main())
else:
    sys.exit(f"unknown peer {peer}")

sys.argv[:] = sys.argv[2:]
runpy.run_path(program, run_name="__main__")
