"""An ordinary Flask application that asks PostgreSQL, on waitress (a pool of threads) or gevent's server.

usage: python http_flask.py postgres-port [pywsgi]
"""

import sys
import threading

import psycopg2
from flask import Flask

local = threading.local()
app = Flask(__name__)


@app.get("/")
def answer():
    if not hasattr(local, "cursor"):
        local.connection = psycopg2.connect(
            host="127.0.0.1", port=int(sys.argv[1]), user="postgres", dbname="postgres"
        )
        local.connection.autocommit = True
        local.cursor = local.connection.cursor()
    local.cursor.execute("select %s + 1, version()", (41,))
    answer, version = local.cursor.fetchone()
    return {"answer": answer, "version": version}


if sys.argv[2:] == ["pywsgi"]:
    from gevent.pywsgi import WSGIServer

    server = WSGIServer(("127.0.0.1", 0), app, log=None, backlog=1024)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()
else:
    import waitress

    server = waitress.create_server(
        app,
        host="127.0.0.1",
        port=0,
        threads=100,
        connection_limit=1000,
        backlog=1024,
        asyncore_use_poll=True,
        clear_untrusted_proxy_headers=True,
    )
    print(server.effective_port, flush=True)
    server.run()
