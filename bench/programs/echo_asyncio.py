"""The echo server on asyncio, or with a second word `uvloop` on uvloop. Prints its port.

usage: python echo_asyncio.py streams|protocol|buffered [uvloop]
"""

import asyncio
import sys


async def serve_streams(reader, writer):
    while data := await reader.read(16384):
        writer.write(data)
        await writer.drain()
    writer.close()


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    def connection_made(self, transport):
        self.transport = transport
        self.buffer = memoryview(bytearray(16384))

    def get_buffer(self, hint):
        return self.buffer

    def buffer_updated(self, size):
        self.transport.write(self.buffer[:size].tobytes())


async def main():
    if sys.argv[1] == "streams":
        server = await asyncio.start_server(serve_streams, "127.0.0.1", 0, backlog=4096)
    else:
        protocol = Echo if sys.argv[1] == "protocol" else BufferedEcho
        loop = asyncio.get_running_loop()
        server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if sys.argv[2:] == ["uvloop"]:
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
