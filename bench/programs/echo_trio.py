"""The echo server as Trio's documentation writes one. Prints its port."""

import trio


async def serve(stream):
    async for data in stream:
        await stream.send_all(data)


async def main():
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(
                serve, 0, host="127.0.0.1", backlog=4096, task_status=task_status
            )
        )
        print(listeners[0].socket.getsockname()[1], flush=True)


trio.run(main)
