"""A private MariaDB: user root, no password, 400 connections."""

from __future__ import annotations

from .process import Folder, Server, find_program, free_port


def start() -> Server:
    mariadbd = find_program("mariadbd", "mariadb-server")
    install = find_program("mariadb-install-db", "mariadb-server")
    folder = Folder("mysql")
    data = f"--datadir={folder.path / 'data'}"
    small = [
        "--innodb-buffer-pool-size=16M",
        "--innodb-log-file-size=8M",
        "--innodb-fast-shutdown=2",
    ]
    folder.run([install, "--no-defaults", data, "--skip-test-db", "--skip-name-resolve", *small])
    port = free_port()
    server = Server(
        folder,
        [
            mariadbd, "--no-defaults", data, *small, f"--port={port}", "--bind-address=127.0.0.1",
            f"--socket={folder.path / 'socket'}", f"--pid-file={folder.path / 'pid'}",
            "--max-connections=400", "--skip-grant-tables", "--skip-networking=0",
            "--skip-name-resolve", "--thread-handling=one-thread-per-connection",
        ],
        port,
    )  # fmt: skip
    server.wait_until(lambda: query(server, "select 1"))
    return server


def query(server: Server, statement: str) -> list[tuple]:
    import pymysql

    connection = pymysql.connect(
        host=server.host, port=server.port, user="root", connect_timeout=10
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())
    finally:
        connection.close()
