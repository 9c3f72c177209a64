"""A private OpenLDAP server that holds searches until enough of them are there at once.

slapd hands every search below dc=test to a program behind a unix socket (slapd-sock(5)): to this
file, run as one. A search of base `cn=N,ou=K,dc=test` is answered when N of key K have come; until
then its operation is open in slapd.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import defaultdict

CONFIGURATION = """
include /etc/ldap/schema/core.schema
modulepath /usr/lib/ldap
moduleload back_sock
pidfile {folder}/pid
threads 64
database sock
suffix "dc=test"
socketpath {folder}/barrier
"""

came: defaultdict[str, int] = defaultdict(int)
changed: defaultdict[str, asyncio.Condition] = defaultdict(asyncio.Condition)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = (await reader.readuntil(b"\n\n")).decode()
    kind, *lines = request.splitlines()
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    if kind == "SEARCH":
        base = fields["base"]
        parts = dict(part.split("=", 1) for part in base.split(","))
        condition = changed[parts["ou"]]
        async with condition:
            came[parts["ou"]] += 1
            condition.notify_all()
            await condition.wait_for(lambda: came[parts["ou"]] >= int(parts["cn"]))
        writer.write(f"dn: {base}\nobjectClass: device\ncn: together\n\n".encode())
    if kind != "UNBIND":
        writer.write(b"RESULT\ncode: 0\n\n")
        await writer.drain()
    writer.close()


async def main(path: str) -> None:
    async with await asyncio.start_unix_server(answer, path) as server:
        await server.serve_forever()


def start():
    from .process import Folder, Server, clean_environment, find_program, free_port

    program = find_program("slapd", "slapd")
    folder = Folder()
    port = free_port()
    configuration = folder.path / "slapd.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder.path))
    barrier = subprocess.Popen(
        [sys.executable, "-I", os.path.abspath(__file__), str(folder.path / "barrier")],
        env=clean_environment(),
    )
    server = Server(
        folder, [program, "-d", "0", "-h", f"ldap://127.0.0.1:{port}", "-f", str(configuration)], port
    )  # fmt: skip
    server.barrier = barrier
    server.wait_until(server.accepts)
    server.wait_until(lambda: os.stat(folder.path / "barrier"))
    return server


def stop(server) -> None:
    server.barrier.kill()
    server.barrier.wait(10)
    server.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
