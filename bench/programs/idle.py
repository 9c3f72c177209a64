"""Threads that wait for nothing to happen, and two that exchange bytes beside them.

usage: python idle.py sockets|sleep count exchanges [seconds]
Prints one line of JSON: resident KiB for each waiting thread (the sockets were there before), CPU us
to start one, CPU ms used in `seconds` of doing nothing, CPU us for each event of an exchange. Where
the system allows fewer open files than `count`, the rest of the threads sleep.
"""

import json
import os
import resource
import socket
import sys
import threading
import time

kind, count, exchanges = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 0.5
resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2)
threading.stack_size(256 * 1024)


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1024


def sleeper():
    time.sleep(600)


def open_files():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500


def receiver(end):
    end.recv(1)


def player(end, times):
    for _ in range(times):
        end.recv(1)
        end.send(b"x")


def exchange(times):
    ends = socket.socketpair()
    ends[0].send(b"x")
    threads = [threading.Thread(target=player, args=(end, times // 2)) for end in ends]
    start = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - start) / times * 1e6


exchange(100)
silent = min(count, open_files()) if kind == "sockets" else 0
sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(silent)]
work = [(receiver, (end,)) for end in sockets] + [(sleeper, ())] * (count - silent)
before, cpu = resident(), time.process_time()
threads = [threading.Thread(target=target, args=args, daemon=True) for target, args in work]
for thread in threads:
    thread.start()
time.sleep(0.1)
cpu_start = (time.process_time() - cpu) / count * 1e6
kib = (resident() - before) / count
cpu = time.process_time()
time.sleep(seconds)
cpu_idle = (time.process_time() - cpu) * 1000
event = min(exchange(exchanges) for _ in range(3)) if exchanges else 0
print(json.dumps({"kib": kib, "start": cpu_start, "idle": cpu_idle, "event": event}), flush=True)
os._exit(0)
