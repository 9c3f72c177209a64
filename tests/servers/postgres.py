"""A private PostgreSQL: user postgres, no password, database postgres, 400 connections."""

from __future__ import annotations

import glob
import signal

from .process import Folder, Server, find_program, free_port


def start() -> Server:
    newest_first = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=len, reverse=True)
    postgres = find_program("postgres", "postgresql", *newest_first)
    initdb = find_program("initdb", "postgresql", *newest_first)
    folder = Folder("postgres")
    data = str(folder.path / "data")
    folder.run([initdb, "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "--locale=C"])
    port = free_port()
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": folder.path,
        "max_connections": 400,
        "superuser_reserved_connections": 3,
        "shared_buffers": "32MB",
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "autovacuum": "off",
        "max_worker_processes": 0,
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    server = Server(folder, [postgres, "-D", data, *options], port)
    server.wait_until(lambda: query(server, "select 1"))
    return server


def query(server: Server, statement: str) -> list[tuple]:
    """Run one statement on a connection of its own."""
    import psycopg2

    connection = psycopg2.connect(
        host=server.host, port=server.port, user="postgres", dbname="postgres", connect_timeout=10
    )
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def stop(server: Server) -> None:
    server.stop(signal.SIGINT)  # "fast": ends its sessions
