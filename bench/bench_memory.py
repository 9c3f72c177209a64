"""Resident memory of a parked green thread: 10,000 of them in time.sleep, beside gevent's greenlets.

Each case runs in a process of its own, started by this one. Figure: growth of resident memory
divided by the number of threads. Target: under 10 KiB.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

TARGET_KIB = 10.0

CASE = """
import sys
if sys.argv[1] == "gevent":
    from gevent import monkey
    monkey.patch_all()
import threading, time

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4

def body():
    time.sleep(seconds)

def start(n):
    threads = [threading.Thread(target=body) for _ in range(n)]
    for t in threads:
        t.start()
    time.sleep(0.05)
    return threads

count = int(sys.argv[2])
seconds = 0.1
for t in start(50):  # what is made once is not counted
    t.join()
seconds = 8.0
before = resident()
threads = start(count)
time.sleep(0.5)
print((resident() - before) / count)
for t in threads:
    t.join()
"""


def measure(name: str, count: int) -> float:
    command = [sys.executable, "-m", "portalpatch"] if name == "portalpatch" else [sys.executable]
    run = subprocess.run(
        [*command, "-c", CASE, name, str(count)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    return float(run.stdout)


def main() -> None:
    count = 2_000 if "--quick" in sys.argv else 10_000
    ours = measure("portalpatch", count)
    verdict = "met" if ours < TARGET_KIB else "missed"
    print(f"{count:,} green threads in time.sleep, resident KiB each")
    print(f"portalpatch  {ours:6.2f}  (target under {TARGET_KIB:.0f}: {verdict})")
    if importlib.util.find_spec("gevent"):
        theirs = measure("gevent", count)
        print(f"gevent       {theirs:6.2f}  (portalpatch / gevent = {ours / theirs:.2f})")
    else:
        print("gevent       missing: pip install gevent")
    print(f"native       {measure('native threads', min(count, 2_000)):6.2f}")


if __name__ == "__main__":
    main()
