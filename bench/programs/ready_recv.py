"""CPU us of a send and the recv that finds its byte, in plain Python.

usage: python ready_recv.py count
"""

import json
import socket
import sys
import time

count = int(sys.argv[1])
here, there = socket.socketpair()
start = time.process_time()
for _ in range(count):
    there.send(b"x")
    here.recv(1)
print(json.dumps({"us": (time.process_time() - start) / count * 1e6}))
