"""Programs that know nothing of us behave under the C portal as plain: output and exit status."""

import os
import pathlib
import subprocess
import sys

import pytest

SHELL = r"""
x=$(for i in 1 2 3; do echo $i; sleep 0.01; done | sort -r | head -2 | tr '\n' ' '); echo "[$x]"
sleep 0.1 & p=$!; wait $p; echo "wait $?"
(exit 3) || echo "status $?"
(sleep 0.05; exit 4) & wait $! || echo "background $?"
coproc cat; echo hello >&${COPROC[1]}; read line <&${COPROC[0]}; echo $line
kill $COPROC_PID; wait $COPROC_PID 2>/dev/null
trap 'echo term' TERM; (sleep 0.05; kill -TERM $$) & wait; wait
diff <(echo a) <(echo a) && echo same
read -t 0.1 v < <(sleep 1) || echo "read timed out"
mkfifo fifo; (echo through the fifo > fifo) & cat fifo
seq 1 20000 | gzip | gunzip | md5sum
exec 5<>/dev/tcp/127.0.0.1/1 2>/dev/null || echo refused
exit 7
"""

PYTHON = r"""
import asyncio, multiprocessing, os, selectors, signal, socket, subprocess, threading, time
server = socket.create_server(("127.0.0.1", 0))
def serve():
    while True:
        c, _ = server.accept()
        threading.Thread(target=lambda c: (c.sendall(c.recv(100).upper()), c.close()), args=(c,)).start()
threading.Thread(target=serve, daemon=True).start()
def ask(n):
    with socket.create_connection(server.getsockname(), timeout=10) as s:
        s.sendall(b"hello %d" % n)
        return s.makefile("rb").read()
print([ask(n) for n in range(20)])
async def ask_async(n):
    r, w = await asyncio.open_connection(*server.getsockname())
    w.write(b"async %d" % n)
    answer = await r.read()
    w.close()
    return answer
async def main():
    print(await asyncio.gather(*(ask_async(n) for n in range(20))))
    p = await asyncio.create_subprocess_shell("sleep 0.05; exit 5")
    print(await p.wait())
asyncio.run(main())
print(subprocess.run(["sh", "-c", "cat; exit 3"], input=b"in", capture_output=True))
signal.signal(signal.SIGALRM, lambda *a: print("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.05)
time.sleep(0.15)
pid = os.fork()
if pid == 0:
    time.sleep(0.05)
    os._exit(9)
print(os.waitpid(pid, 0)[1])
print(os.system("exit 2"), os.popen("echo popen").read())
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, range(-5, 5)))
print(socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)[0][0].name)
"""

MAKE = """
all: a b
a: ; @sleep 0.05; echo a
b: a ; @sleep 0.02; echo b
"""


@pytest.mark.parametrize(
    "command, text",
    [(["bash"], SHELL), ([sys.executable, "-"], PYTHON), (["make", "-s", "-j2", "-f", "-"], MAKE)],
    ids=["bash", "python", "make"],
)
def test_program_is_as_plain(parking, tmp_path, command: list[str], text: str) -> None:
    def run(environment: dict[str, str], folder: pathlib.Path) -> tuple[int, str]:
        folder.mkdir()
        done = subprocess.run(
            command, input=text, env=environment, cwd=folder, capture_output=True, text=True, timeout=100
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    plain = run(dict(os.environ), tmp_path / "plain")
    assert run(parking, tmp_path / "parking") == plain


def test_cpython_tests_are_as_plain(built) -> None:
    """The quick ones; `make conformance-c` runs all that the C portal must pass."""
    pytest.importorskip("test.test_poll", reason="this Python came without its test package")
    script = pathlib.Path(__file__).parent / "conformance.py"
    run = subprocess.run(
        [sys.executable, script, built, "test_poll", "test_select", "test_epoll"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
