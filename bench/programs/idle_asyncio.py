"""The same with asyncio's own tasks: see idle.py.

usage: python idle_asyncio.py sockets|sleep count exchanges [seconds]
"""

import asyncio
import json
import os
import resource
import socket
import sys
import time

kind, count, exchanges = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 0.5
resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2)


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1024


async def sleeper():
    await asyncio.sleep(600)


def open_files():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500


async def receiver(end):
    await asyncio.get_running_loop().sock_recv(end, 1)


async def exchange(times):
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    ends[0].send(b"x")
    loop = asyncio.get_running_loop()

    async def player(end):
        for _ in range(times // 2):
            await loop.sock_recv(end, 1)
            await loop.sock_sendall(end, b"x")

    start = time.process_time()
    await asyncio.gather(*map(player, ends))
    return (time.process_time() - start) / times * 1e6


async def main():
    await exchange(100)
    silent = min(count, open_files()) if kind == "sockets" else 0
    sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(silent)]
    for end in sockets:
        end.setblocking(False)
    before, cpu = resident(), time.process_time()
    tasks = [asyncio.create_task(receiver(end)) for end in sockets]
    tasks += [asyncio.create_task(sleeper()) for _ in range(count - silent)]
    await asyncio.sleep(0.1)
    cpu_start = (time.process_time() - cpu) / count * 1e6
    kib = (resident() - before) / count
    cpu = time.process_time()
    await asyncio.sleep(seconds)
    cpu_idle = (time.process_time() - cpu) * 1000
    event = min([await exchange(exchanges) for _ in range(3)]) if exchanges else 0
    result = {"kib": kib, "start": cpu_start, "idle": cpu_idle, "event": event}
    print(json.dumps(result), flush=True)
    os._exit(0)


asyncio.run(main())
