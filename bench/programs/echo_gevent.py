"""The echo server as gevent's documentation writes one: a StreamServer. Prints its port."""

from gevent.server import StreamServer


def serve(connection, address):
    while data := connection.recv(16384):
        connection.sendall(data)
    connection.close()


server = StreamServer(("127.0.0.1", 0), serve, backlog=4096)
server.start()
print(server.server_port, flush=True)
server.serve_forever()
