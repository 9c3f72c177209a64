"""A private Redis, nothing saved."""

from __future__ import annotations

from .process import Folder, Server, find_program, free_port


def start() -> Server:
    program = find_program("redis-server", "redis-server")
    folder = Folder()
    port = free_port()
    server = Server(
        folder,
        [
            program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--dir", str(folder.path), "--maxclients", "2000",
        ],
        port,
    )  # fmt: skip
    server.wait_until(server.accepts)
    return server
