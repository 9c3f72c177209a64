"""Who goes on first: lines of control in the order their events came, and none of them kept waiting.

The starvation tests never end where one side starves the other: the script's time limit fails them.
"""

from __future__ import annotations

import pytest
from test_locks import green  # noqa: F401

LINES = 200  # more than one call of epoll_wait reports at first

ORDER = f"""
    import random, socket, time
    pairs = [socket.socketpair() for _ in range({LINES})]
    order = list(range({LINES}))
    random.Random(7).shuffle(order)
    served = []

    def serve(number):
        for _ in range(3):
            pairs[number][0].recv(1)
            served.append(number)

    def send():
        time.sleep(0.01)  # the kernel has forgotten the events of the round before
        for number in order:
            pairs[number][1].send(b"x")
"""


def test_threads_go_on_in_the_order_their_bytes_came(green):
    out = green(
        ORDER
        + """
    import threading
    threads = [threading.Thread(target=serve, args=(number,)) for number in range(len(pairs))]
    [thread.start() for thread in threads]
    for _ in range(3):
        send()
        while len(served) < len(pairs):
            time.sleep(0)
        print(served == order)
        served.clear()
    """
    )
    assert out == "True\n" * 3


def test_tasks_go_on_in_the_order_their_bytes_came(green):
    out = green(
        ORDER
        + """
    import asyncio

    async def task(number):
        serve(number)

    async def main():
        tasks = [asyncio.create_task(task(number)) for number in range(len(pairs))]
        await asyncio.sleep(0)
        for _ in range(3):
            send()
            while len(served) < len(pairs):
                await asyncio.sleep(0)
            print(served == order)
            served.clear()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    """
    )
    assert out == "True\n" * 3


BUSY = """
    import asyncio, socket, threading
    kept = []

    def talk(end, over):
        while not over:
            end.recv(1)
            end.send(b"x")
        end.send(b"x")  # the other one may wait for it

    def pairs_talk(count, over):
        threads = []
        for _ in range(count):
            ends = socket.socketpair()
            kept.append(ends)
            ends[0].send(b"x")
            threads += [threading.Thread(target=talk, args=(end, over), daemon=True) for end in ends]
        [thread.start() for thread in threads]
"""


@pytest.mark.parametrize("what", ["callbacks", "timers", "tasks"])
def test_busy_threads_do_not_starve_the_loop(green, what):
    out = green(
        BUSY
        + f"""
    async def main():
        over, loop, what = [], asyncio.get_running_loop(), "{what}"
        pairs_talk(50, over)
        done = loop.create_future()

        def again(left):
            if not left:
                done.set_result(None)
            elif what == "callbacks":
                loop.call_soon(again, left - 1)
            else:
                loop.call_later(0.001, again, left - 1)

        if what == "tasks":
            for _ in range(200):
                await asyncio.create_task(asyncio.sleep(0))
        else:
            again(50)
            await done
        over.append(True)
        print("ended")

    asyncio.run(main())
    """,
        limit=60,
    )
    assert out == "ended\n"


def test_a_busy_loop_does_not_starve_threads(green):
    out = green(
        """
    import asyncio, socket, threading

    async def main():
        loop, over = asyncio.get_running_loop(), []
        ends = socket.socketpair()

        def play(end):
            for _ in range(200):
                end.recv(1)
                end.send(b"x")
            over.append(end)

        def spin():
            if len(over) < 2:
                loop.call_soon(spin)

        threads = [threading.Thread(target=play, args=(end,)) for end in ends]
        [thread.start() for thread in threads]
        ends[0].send(b"x")
        spin()
        while len(over) < 2:
            await asyncio.sleep(0)
        print("ended")

    asyncio.run(main())
    """,
        limit=60,
    )
    assert out == "ended\n"


COMPUTING = """
    import socket, threading, time
    over, slices = [], []

    def compute(number):
        while not over:
            if slices[-1:] != [number]:
                slices.append(number)  # another went on meanwhile

    computing = [threading.Thread(target=compute, args=(number,)) for number in range(8)]
    [thread.start() for thread in computing]
    while len(set(slices)) < len(computing):
        time.sleep(0)
    del slices[:-1]
"""


@pytest.mark.parametrize("wait", ["time.sleep(0)", "ends[0].send(b'x'), ends[0].recv(1)"])
def test_who_waits_goes_on_before_all_but_one_of_those_who_compute(green, wait):
    out = green(
        COMPUTING
        + f"""
    ends = socket.socketpair()

    def echo():
        while answer := ends[1].recv(1):
            ends[1].send(answer)

    echoing = threading.Thread(target=echo)
    echoing.start()
    for _ in range(20):
        {wait}
    over.append(True)
    ends[0].close()
    [thread.join() for thread in [*computing, echoing]]
    print(len(slices) <= 3 * 20)  # a slice each time they wait or wake; all 8 would be 160
    """,
        limit=60,
    )
    assert out == "True\n"


def test_those_who_compute_take_turns(green):
    out = green(
        COMPUTING
        + """
    for _ in range(3):
        while len(set(slices)) < len(computing):
            time.sleep(0)
        del slices[:-1]
    over.append(True)
    [thread.join() for thread in computing]
    print("ended")
    """,
        limit=60,
    )
    assert out == "ended\n"


def test_busy_threads_do_not_starve_one_that_computes(green):
    out = green(
        BUSY
        + """
    over = []
    pairs_talk(50, over)

    def compute():
        for number in range(1_000_000):
            pass
        over.append(True)

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    print("ended")
    """,
        limit=60,
    )
    assert out == "ended\n"
