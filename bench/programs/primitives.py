"""Times the primitives of `threading`, `queue`, `time` and `select`, whoever implements them.

usage: python primitives.py count
Prints one line of JSON: CPU microseconds for each operation, this process, all threads.
"""

import json
import queue
import select
import socket
import sys
import threading
import time

count = int(sys.argv[1])
results = {}


def measure(name, operations, function, *args):
    start = time.process_time()
    function(*args)
    results[name] = (time.process_time() - start) / operations * 1e6


def start_join(times):
    for _ in range(times):
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()


def start_all_join(times):
    for _ in range(times // 100):
        threads = [threading.Thread(target=int) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def in_two_threads(first, second):
    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def uncontended(times):
    acquire, release = lock.acquire, lock.release
    for _ in range(times):
        acquire()
        release()


def lock_ping_pong(times):
    locks = [threading.Lock(), threading.Lock()]
    locks[1].acquire()

    def player(mine, other):
        for _ in range(times // 2):
            mine.acquire()
            other.release()

    in_two_threads(lambda: player(*locks), lambda: player(*reversed(locks)))


def queue_ping_pong(make, times):
    queues = [make(), make()]

    def player(mine, other):
        for _ in range(times // 2):
            other.put(mine.get())

    queues[0].put(None)
    in_two_threads(lambda: player(*queues), lambda: player(*reversed(queues)))


def event_ping_pong(times):
    events = [threading.Event(), threading.Event()]

    def player(mine, other):
        for _ in range(times // 2):
            mine.wait()
            mine.clear()
            other.set()

    events[0].set()
    in_two_threads(lambda: player(*events), lambda: player(*reversed(events)))


def condition_ping_pong(times):
    condition = threading.Condition()
    turn = [0]

    def player(me):
        for _ in range(times // 2):
            with condition:
                while turn[0] != me:
                    condition.wait()
                turn[0] = 1 - me
                condition.notify()

    in_two_threads(lambda: player(0), lambda: player(1))


def socket_ping_pong(times):
    ends = socket.socketpair()

    def player(end):
        for _ in range(times // 2):
            end.recv(1)
            end.send(b"x")

    ends[0].send(b"x")
    in_two_threads(lambda: player(ends[0]), lambda: player(ends[1]))
    for end in ends:
        end.close()


def sleeps(times):
    def body():
        for _ in range(times // 2):
            time.sleep(0)

    in_two_threads(body, body)


def selects(pairs, times):
    """poll() on one readable and many silent sockets, while another thread makes it readable."""
    silent = [pair[0] for pair in pairs]
    here, there = socket.socketpair()
    back, forth = socket.socketpair()
    poll = select.poll()
    for end in [*silent, here]:
        poll.register(end, select.POLLIN)

    def waiting():
        for _ in range(times):
            poll.poll()
            here.recv(1)
            forth.send(b"x")

    def waking():
        for _ in range(times):
            there.send(b"x")
            back.recv(1)

    in_two_threads(waiting, waking)
    for end in (here, there, back, forth):
        end.close()


lock = threading.Lock()
start_join(50)  # what is made once is not counted
measure("start + join", count // 10, start_join, count // 10)
measure("start 100, join 100", count // 10, start_all_join, count // 10)
measure("lock, uncontended", count * 10, uncontended, count * 10)
measure("lock hand-over", count, lock_ping_pong, count)
measure("queue.Queue hand-over", count, queue_ping_pong, queue.Queue, count)
measure("queue.SimpleQueue hand-over", count, queue_ping_pong, queue.SimpleQueue, count)
measure("event hand-over", count, event_ping_pong, count)
measure("condition hand-over", count, condition_ping_pong, count)
measure("time.sleep(0)", count, sleeps, count)
measure("recv, blocking, hand-over", count, socket_ping_pong, count)
if hasattr(select, "poll"):
    many = [socket.socketpair() for _ in range(1000)]
    measure("poll() on 1,000 sockets", count // 50, selects, many, count // 50)
print(json.dumps(results))
