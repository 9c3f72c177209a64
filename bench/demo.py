"""`make demo`: the same unmodified crawler, plain and under portalpatch, against the same server.

For each run: what it printed, its time, the most OS threads it had (sampled in /proc), and for
portalpatch its statistics.
"""

import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT = 120  # seconds for one run


def threads_of(pid: int) -> int:
    """OS threads of a process right now; 0 once it has ended."""
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("Threads:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def run(command: list[str]) -> tuple[float, int, str, str]:
    """Run a command to its end: seconds, peak OS threads, standard output, standard error."""
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, threads_of(process.pid))
        if time.monotonic() - start > LIMIT:
            process.kill()
        time.sleep(0.002)
    seconds = time.monotonic() - start
    out, err = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}\n{out}{err}")
    return seconds, peak, out, err


def main() -> None:
    server = subprocess.Popen(
        [sys.executable, os.path.join(HERE, "demo_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        site = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        crawler = ["demo_crawler.py", site]
        print(f"a server on {site} answers each request after 200 ms\n")
        print("$ python demo_crawler.py          (one OS thread a page)")
        plain_seconds, plain_threads, plain_out, _ = run([sys.executable, *crawler])
        print(plain_out)
        print("$ python -m portalpatch --stats demo_crawler.py")
        patched = [sys.executable, "-m", "portalpatch", "--stats", *crawler]
        patched_seconds, patched_threads, patched_out, statistics = run(patched)
        print(patched_out)
        print(statistics)
        print(f"{'':<14}{'time':>10}{'OS threads at peak':>22}")
        print(f"{'plain':<14}{plain_seconds:>8.2f} s{plain_threads:>22}")
        print(f"{'portalpatch':<14}{patched_seconds:>8.2f} s{patched_threads:>22}")
        if patched_out != plain_out:
            sys.exit("the two runs did not do the same work")
    finally:
        server.stdin.close()
        server.wait(10)


main()
