"""An ordinary echo server: one thread a connection, blocking sockets. Prints its port."""

import socket
import threading


def serve(connection):
    with connection:
        while data := connection.recv(16384):
            connection.sendall(data)


listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
