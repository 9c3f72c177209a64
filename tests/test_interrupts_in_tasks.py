"""Signals while a loop is idle and one of its tasks is inside a blocking call: as in plain Python, where the
thread is blocked in that call, what a handler raises is raised there, and the loop goes on."""

from __future__ import annotations

import pytest

COMMON = """
import asyncio, os, queue, select, signal, socket, subprocess, sys, threading, time
one, other = socket.socketpair()
held = threading.Lock()
held.acquire()
def send_from_thread():
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
def send_from_outside():
    command = f"sleep 0.05; kill -INT {os.getpid()}"
    subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL)
def poll():
    poller = select.poll()
    poller.register(other, select.POLLIN)
    poller.poll(60_000)
BLOCKING = {
    "sleep": lambda: time.sleep(60),
    "recv": lambda: other.recv(1),
    "select": lambda: select.select([other], [], [], 60),
    "poll": poll,
    "lock": held.acquire,
    "event": threading.Event().wait,
    "queue": queue.Queue().get,
    "simple queue": queue.SimpleQueue().get,
    "child": subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE).wait,
}
"""

ASYNCIO = """
async def cell(send, call):
    try:
        send()
        call()
    except KeyboardInterrupt:
        print("interrupted", end=" ")
    await asyncio.sleep(0)
    return "goes on"
loop = asyncio.new_event_loop()
for name, call in BLOCKING.items():
    for send in send_from_thread, send_from_outside:
        print(name, loop.run_until_complete(cell(send, call)))
"""

TRIO = """
import trio
async def child(send, call):
    try:
        send()
        call()
    except KeyboardInterrupt:
        print("interrupted", end=" ")
    await trio.lowlevel.checkpoint()
    print("goes on")
async def main(send):
    for name in "sleep", "recv", "event":
        print(name, end=" ")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, send, BLOCKING[name])
for send in send_from_thread, send_from_outside:
    trio.run(main, send)
"""

# Natively there is no second task to speak of while the first one blocks.
THE_FIRST_ONE = """
async def other_task():
    other.recv(1)
async def main():
    task = asyncio.create_task(other_task())
    try:
        send_from_outside()
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted")
    one.send(b"x")
    await task
asyncio.new_event_loop().run_until_complete(main())
"""

GOES_ON = """
def handler(number, frame):
    print(frame.f_code.co_name)
    one.send(b"x")
signal.signal(signal.SIGINT, handler)
async def main():
    send_from_outside()
    print(other.recv(1))
asyncio.new_event_loop().run_until_complete(main())
"""

# Tasks that are left behind take no signals.
LEFT_BEHIND = """
async def blocked():
    loop.call_soon(loop.stop)
    if not PATCHED:
        await asyncio.sleep(60)
    time.sleep(60)
PATCHED = "portalpatch" in sys.modules and sys.modules["portalpatch"].is_patched()
loop = asyncio.new_event_loop()
task = loop.create_task(blocked())
loop.run_forever()
async def main():
    try:
        send_from_outside()
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted")
asyncio.new_event_loop().run_until_complete(main())
try:
    send_from_outside()
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
os._exit(0)
"""

PROGRAMS = {
    "asyncio": ASYNCIO,
    "trio": TRIO,
    "the task that blocked first": THE_FIRST_ONE,
    "a handler that raises nothing": GOES_ON,
    "tasks of a loop that runs no more": LEFT_BEHIND,
}


@pytest.mark.parametrize("mode", ["cli", "no-preload"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_interrupt_is_raised_in_the_blocked_call(run_app, mode, name):
    source = COMMON + PROGRAMS[name]
    plain = run_app(source, mode="plain").check()
    patched = run_app(source, mode=mode).check()
    assert (patched.out, patched.err) == (plain.out, plain.err)
    assert plain.out
