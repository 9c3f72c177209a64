"""An HTTP server that holds requests until enough of them are there at once.

GET /hold?key=K&n=N&limit=S   answers when N requests with key K are being held, 200; or after
                              S seconds (default 20) with 503. The body is the most held so far.
GET /peak?key=K               the most that were ever held at once.
GET /sleep?seconds=S          answers after S seconds.

So overlap is proved where it happens, by counting, and never by a clock. `start()` runs this file as
a process of its own, on plain Python; with TLS it has a certificate of its own, `server.certificate`.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections import defaultdict
from urllib.parse import parse_qs, urlsplit

held: defaultdict[str, int] = defaultdict(int)
peak: defaultdict[str, int] = defaultdict(int)
changed: defaultdict[str, asyncio.Condition] = defaultdict(asyncio.Condition)


async def answer(target: str) -> tuple[int, str]:
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    key = query.get("key", "")
    if parts.path == "/sleep":
        await asyncio.sleep(float(query["seconds"]))
        return 200, "slept"
    if parts.path == "/peak":
        return 200, str(peak[key])
    if parts.path != "/hold":
        return 404, "no such page"
    wanted = int(query.get("n", "1"))
    condition = changed[key]
    async with condition:
        held[key] += 1
        peak[key] = max(peak[key], held[key])
        condition.notify_all()
        try:
            # peak, not held: those that came early may have left when the last one looks
            await asyncio.wait_for(
                condition.wait_for(lambda: peak[key] >= wanted), float(query.get("limit", "20"))
            )
            return 200, str(peak[key])
        except asyncio.TimeoutError:
            return 503, str(peak[key])
        finally:
            held[key] -= 1


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            request, *headers = head.decode("latin-1").split("\r\n")
            status, body = await answer(request.split()[1])
            keep = not any(line.lower() == "connection: close" for line in headers)
            if request.endswith("HTTP/1.0"):
                keep = False
            writer.write(
                f"HTTP/1.1 {status} x\r\nContent-Type: text/plain\r\n"
                f"Content-Length: {len(body)}\r\n"
                f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n{body}".encode()
            )
            await writer.drain()
            if not keep:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2])
    server = await asyncio.start_server(
        serve, "127.0.0.1", int(sys.argv[1]), backlog=1024, ssl=context
    )
    async with server:
        await server.serve_forever()


def start(tls: bool = False):
    from .process import Folder, Server, find_program, free_port

    port = free_port()
    folder = Folder()
    command = [sys.executable, "-I", os.path.abspath(__file__), str(port)]
    certificate = folder.path / "certificate.pem"
    if tls:
        folder.run(
            [
                find_program("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes",
                "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                "-keyout", str(certificate), "-out", "certificate.crt",
            ]
        )  # fmt: skip
        with open(certificate, "a") as together:
            together.write((folder.path / "certificate.crt").read_text())
        command.append(str(certificate))
    server = Server(folder, command, port)
    server.certificate = certificate
    server.wait_until(server.accepts)
    return server


if __name__ == "__main__":
    asyncio.run(main())
