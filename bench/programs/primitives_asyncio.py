"""The same primitives as primitives.py, written natively for asyncio: what a coroutine pays.

usage: python primitives_asyncio.py count
"""

import asyncio
import json
import socket
import sys
import time

count = int(sys.argv[1])
results = {}


async def measure(name, operations, awaitable):
    start = time.process_time()
    await awaitable
    results[name] = (time.process_time() - start) / operations * 1e6


async def nothing():
    pass


async def start_join(times):
    for _ in range(times):
        await asyncio.create_task(nothing())


async def start_all_join(times):
    for _ in range(times // 100):
        for task in [asyncio.create_task(nothing()) for _ in range(100)]:
            await task


async def uncontended(times):
    lock = asyncio.Lock()
    for _ in range(times):
        await lock.acquire()
        lock.release()


async def lock_ping_pong(times):
    locks = [asyncio.Lock(), asyncio.Lock()]
    await locks[1].acquire()

    async def player(mine, other):
        for _ in range(times // 2):
            await mine.acquire()
            other.release()

    await asyncio.gather(player(*locks), player(*reversed(locks)))


async def queue_ping_pong(times):
    queues = [asyncio.Queue(), asyncio.Queue()]

    async def player(mine, other):
        for _ in range(times // 2):
            other.put_nowait(await mine.get())

    queues[0].put_nowait(None)
    await asyncio.gather(player(*queues), player(*reversed(queues)))


async def event_ping_pong(times):
    events = [asyncio.Event(), asyncio.Event()]

    async def player(mine, other):
        for _ in range(times // 2):
            await mine.wait()
            mine.clear()
            other.set()

    events[0].set()
    await asyncio.gather(player(*events), player(*reversed(events)))


async def condition_ping_pong(times):
    condition = asyncio.Condition()
    turn = [0]

    async def player(me):
        for _ in range(times // 2):
            async with condition:
                while turn[0] != me:
                    await condition.wait()
                turn[0] = 1 - me
                condition.notify()

    await asyncio.gather(player(0), player(1))


async def socket_ping_pong(times):
    loop = asyncio.get_running_loop()
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)

    async def player(end):
        for _ in range(times // 2):
            await loop.sock_recv(end, 1)
            await loop.sock_sendall(end, b"x")

    ends[0].send(b"x")
    await asyncio.gather(*map(player, ends))


async def sleeps(times):
    async def body():
        for _ in range(times // 2):
            await asyncio.sleep(0)

    await asyncio.gather(body(), body())


async def main():
    await start_join(50)
    await measure("start + join", count // 10, start_join(count // 10))
    await measure("start 100, join 100", count // 10, start_all_join(count // 10))
    await measure("lock, uncontended", count * 10, uncontended(count * 10))
    await measure("lock hand-over", count, lock_ping_pong(count))
    await measure("queue.Queue hand-over", count, queue_ping_pong(count))
    await measure("event hand-over", count, event_ping_pong(count))
    await measure("condition hand-over", count, condition_ping_pong(count))
    await measure("time.sleep(0)", count, sleeps(count))
    await measure("recv, blocking, hand-over", count, socket_ping_pong(count))


asyncio.run(main())
print(json.dumps(results))
