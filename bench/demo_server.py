"""The demo's web server: a small site whose every page takes 200 ms. Prints its port, then serves.

Plain asyncio, so that one thread serves any number of slow requests at once.
"""

import asyncio
import sys

DELAY = 0.2  # seconds
SECTIONS = 20
PAGES = 15  # in each section


def page(path: str) -> str:
    """A front page with links to sections, sections with links to pages."""
    if path == "/":
        links = [f"/section{number}" for number in range(SECTIONS)]
    elif path.startswith("/section") and path.count("/") == 1:
        links = [f"{path}/page{number}" for number in range(PAGES)]
    else:
        links = ["/"]
    return "".join(f'<a href="{link}">{link}</a>\n' for link in links)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(DELAY)
        body = page(head.split()[1].decode("latin-1"))
        writer.write(
            f"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n\r\n{body}".encode()
        )
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The demo holds our standard input: its end is ours too.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(main())
