"""Green threads, native threads, tasks, locks, queues, cancellations and forks, mixed by a seed."""

from __future__ import annotations

import pytest

PROGRAM = """
import _thread, asyncio, os, queue, random, sys, threading, time
from portalpatch import _core

start_native = _core.original(_thread.start_new_thread)
seed = int(sys.argv[1])
locks, rlock, semaphore = [threading.Lock() for _ in range(4)], threading.RLock(), threading.Semaphore(2)
condition, messages, ended = threading.Condition(), queue.SimpleQueue(), threading.Semaphore(0)

def work(seed, steps, worker=True):
    choose = random.Random(seed)
    try:
        for _ in range(steps):
            what = choose.randrange(8)
            if what < 3:
                with locks[choose.randrange(4)]:
                    if choose.random() < 0.3:
                        time.sleep(choose.random() * 0.001)
            elif what == 3:
                with rlock, rlock:
                    time.sleep(0)
            elif what == 4:
                messages.put(1)
                messages.get()
            elif what == 5:
                lock = locks[choose.randrange(4)]
                if lock.acquire(timeout=choose.random() * 0.002):
                    lock.release()
            elif what == 6:
                with semaphore:
                    time.sleep(0)
            else:
                with condition:
                    condition.notify()
                    condition.wait(choose.random() * 0.002)
    finally:
        if worker:
            ended.release()

async def task(seed):
    work(seed, 30, worker=False)
    await asyncio.sleep(0)

async def main(seed):
    choose = random.Random(seed)
    tasks = [asyncio.create_task(task(seed + number)) for number in range(6)]
    for each in tasks:
        await asyncio.sleep(choose.random() * 0.004)
        if choose.random() < 0.4:
            each.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError), result

for number in range(12):
    _thread.start_new_thread(work, (seed * 100 + number, 60))
for number in range(3):
    start_native(work, (seed * 100 + 50 + number, 60))
loops = [threading.Thread(target=lambda: asyncio.run(main(seed + 7))) for _ in range(2)]
[thread.start() for thread in loops]
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        thread = threading.Thread(target=time.sleep, args=(0.001,))
        thread.start()
        thread.join()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    time.sleep(0.005)
asyncio.run(main(seed))
[thread.join() for thread in loops]
for _ in range(15):
    ended.acquire()
print([lock.locked() for lock in locks], rlock.acquire(False), messages.qsize())
"""


@pytest.mark.parametrize("seed", range(5))
def test_everything_mixed_ends_with_all_locks_free(run_app, seed):
    flags = ["-X", "dev", "-W", "ignore"]
    out = run_app(PROGRAM, str(seed), mode="cli", flags=flags).check().out
    assert out == "[False, False, False, False] True 0\n"
