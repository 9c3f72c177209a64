"""The echo server as eventlet's documentation writes one. Prints its port."""

import eventlet


def serve(connection):
    while data := connection.recv(16384):
        connection.sendall(data)
    connection.close()


listener = eventlet.listen(("127.0.0.1", 0), backlog=4096)
print(listener.getsockname()[1], flush=True)
pool = eventlet.GreenPool(10_000)
while True:
    connection, _ = listener.accept()
    pool.spawn_n(serve, connection)
