"""An ordinary web service on http.server: each request asks PostgreSQL, through psycopg2.

usage: python http_server.py postgres-port
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2

local = threading.local()


def query(number):
    if not hasattr(local, "cursor"):
        local.connection = psycopg2.connect(
            host="127.0.0.1", port=int(sys.argv[1]), user="postgres", dbname="postgres"
        )
        local.connection.autocommit = True
        local.cursor = local.connection.cursor()
    local.cursor.execute("select %s + 1, version()", (number,))
    return local.cursor.fetchone()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one send for head and body

    def do_GET(self):
        answer, version = query(41)
        body = json.dumps({"answer": answer, "version": version}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 1024


server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
