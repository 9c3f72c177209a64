"""faulthandler's dumps show green threads: every one by its ident, in CPython's format."""

from __future__ import annotations

import re
import signal

import pytest

# Threads that wait in each way there is to have C code between Python frames, or none.
PROGRAM = """
import faulthandler, os, signal, socket, sys, threading, time
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
held = threading.Lock()
held.acquire()
def wait_for_line():
    client.makefile("rb").readline()
def wait_for_lock():
    sorted([1], key=lambda _: held.acquire())
def wait_in_generator():
    def numbers():
        yield from sorted([1], key=lambda _: time.sleep(600))
    max(numbers())
def sleep():
    time.sleep(600)
bodies = wait_for_line, wait_for_lock, wait_in_generator, sleep
threads = [threading.Thread(target=body, name=body.__name__, daemon=True) for body in bodies]
for thread in threads:
    thread.start()
time.sleep(0.05)
def say_idents():
    for thread in [*threads, threading.current_thread(), threading.main_thread()]:
        print(f"0x{thread.ident:016x}", *stack(thread.ident), sep=" < ", flush=True)
def stack(ident):
    names, frame = [], sys._current_frames()[ident]
    while frame:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names
def body():
    say_idents()
    dump()
def run():
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    print("end", flush=True)
"""

DUMPS = {
    "dump_traceback": "faulthandler.dump_traceback()",
    "registered": "faulthandler.register(signal.SIGUSR1); os.kill(os.getpid(), signal.SIGUSR1)",
    "later": """
    faulthandler.dump_traceback_later(0.2)
    import ctypes
    ctypes.PyDLL(None).usleep(500_000)""",
    "fatal": "faulthandler.enable(); faulthandler._sigsegv()",
    "abort": "os.abort()",  # run_app's programs begin with faulthandler enabled
}


def threads_in(text: str) -> dict[str, list[str]]:
    """The names of the functions on each thread's stack, by the hexadecimal ident."""
    found: dict[str, list[str]] = {}
    for block in re.split(r"(?m)^(?:Current t|T)hread ", text)[1:]:
        ident, lines = block.split(" ", 1)
        assert ident not in found, text
        found[ident] = re.findall(r'(?m)^  File ".*", line \d+ in (\S+)', lines)
    return found


@pytest.mark.parametrize("mode", ["cli", "patch_all"])
@pytest.mark.parametrize("how", DUMPS)
def test_dumps_show_every_green_thread(run_app, mode, how):
    done = run_app(f"{PROGRAM}\ndef dump(): {DUMPS[how]}\nrun()\n", mode=mode)
    dies = {"fatal": signal.SIGSEGV, "abort": signal.SIGABRT}
    assert done.status == -dies.get(how, 0)
    assert done.out.endswith("end\n") == (how not in dies)
    said = dict(line.split(" < ", 1) for line in done.out.splitlines() if " < " in line)
    shown = threads_in(done.err)
    assert set(shown) == set(said)
    for ident, stack in said.items():
        names = stack.split(" < ")
        if names[0] == "stack":  # the one that executes has gone on since
            assert shown[ident][-4:] == ["body", *names[3:]][-4:]
        elif ident != list(said)[-1]:  # the main one has, too
            assert shown[ident] == names
    if how in ("dump_traceback", "registered", "fatal", "abort"):
        executing = list(said)[-2]
        assert f"Current thread {executing} (most recent call first):" in done.err
    if how == "fatal":
        assert done.err.startswith("Fatal Python error: Segmentation fault\n\nCurrent thread ")


def test_dump_while_the_last_to_run_has_ended(run_app):
    """The hub polls on a stack without Python frames then; the main thread's is elsewhere."""
    done = run_app(
        f"""{PROGRAM}
faulthandler.dump_traceback_later(0.3)
threading.Thread(target=time.sleep, args=(0.05,)).start()
def park():
    time.sleep(0.6)
park()
say_idents()
""",
        mode="cli",
    ).check()
    shown = threads_in(done.err)
    said = [line.split(" < ") for line in done.out.splitlines()]
    assert {ident: names for ident, *names in said[:4]}.items() <= shown.items()
    assert shown[said[-1][0]] == ["park", "<module>"]
    assert len(shown) == 5


def test_chained_handlers_are_called_each_time(run_app):
    done = run_app(
        f"""{PROGRAM}
signal.signal(signal.SIGUSR1, lambda *_: print("handler", flush=True))
faulthandler.register(signal.SIGUSR1, chain=True)
for _ in range(3):
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.01)
print(faulthandler.unregister(signal.SIGUSR1))
os.kill(os.getpid(), signal.SIGUSR1)
time.sleep(0.01)
""",
        mode="cli",
    ).check()
    assert done.out.split() == ["handler"] * 3 + ["True", "handler"]
    assert done.err.count("in wait_for_lock\n") == 3


def test_unpatching_gives_faulthandler_its_signals_back(run_app):
    done = run_app(
        f"""
import portalpatch
portalpatch.patch_all()
{PROGRAM}
faulthandler.register(signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR1)
portalpatch.unpatch_all()
print("unpatched", file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.SIGUSR1)
faulthandler.dump_traceback()
os._exit(0)
""",
        mode="plain",
    ).check()
    before, after = done.err.split("unpatched")
    assert len(threads_in(before)) == 5
    assert "wait_for_lock" not in after
    assert after.count("Current thread") == 2


# Without green threads everything is CPython's.
NO_THREADS = """
import faulthandler, io, os, signal, sys, tempfile, time
faulthandler.enable(all_threads=True)
faulthandler.register(signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR1)
faulthandler.dump_traceback(all_threads=False)
faulthandler.dump_traceback()
with tempfile.TemporaryFile() as file:
    faulthandler.dump_traceback(file)
    faulthandler.dump_traceback_later(0.1, repeat=True, file=file)
    while os.pread(file.fileno(), 10000, 0).count(b"Timeout") < 2: time.sleep(0.01)
    faulthandler.cancel_dump_traceback_later()
    file.seek(0)
    print(*file.read().decode().split("Timeout")[:3], sep="Timeout")
for function, args in (
    (faulthandler.dump_traceback_later, (0,)),
    (faulthandler.dump_traceback_later, (-1,)),
    (faulthandler.dump_traceback_later, ("1",)),
    (faulthandler.dump_traceback_later, (1e30,)),
    (faulthandler.dump_traceback_later, (float("nan"),)),
    (faulthandler.dump_traceback_later, (1, False, io.StringIO())),
    (faulthandler.dump_traceback, (io.StringIO(),)),
    (faulthandler.dump_traceback, (-1,)),
    (faulthandler.register, (9999,)),
    (faulthandler.register, (signal.SIGSEGV,)),
    (faulthandler.enable, ("x",)),
):
    try:
        print(function(*args))
    except Exception as error:
        print(type(error).__name__, error)
print(faulthandler.unregister(signal.SIGUSR1), faulthandler.is_enabled())
sys.stdout.flush()
faulthandler.dump_traceback_later(3661.5)
faulthandler.dump_traceback_later(0.05, exit=True)
time.sleep(60)
"""


def test_bytes_are_cpythons_where_no_green_thread_is(run_app):
    ident = re.compile(r"0x[0-9a-f]{16}")
    outcomes = []
    for mode in ("plain", "cli"):
        done = run_app(NO_THREADS, mode=mode)
        texts = [re.sub(r"\[.*?\] |\(_sre.*", "", text) for text in (done.out, done.err)]
        outcomes.append((done.status, *(ident.sub("IDENT", text) for text in texts)))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == 1


def test_more_threads_than_cpython_shows(run_app):
    done = run_app(
        """
import faulthandler, threading, time
for _ in range(150):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
faulthandler.dump_traceback()
""",
        mode="cli",
    ).check()
    assert done.err.count("most recent call first") == 101
    assert done.err.endswith("\n\n...\n")


def test_a_dump_to_a_full_pipe_parks_nobody(run_app):
    """A signal handler must not wait in the hub."""
    done = run_app(
        f"""{PROGRAM}
import subprocess
reader, writer = os.pipe()
reading = subprocess.Popen(["sh", "-c", "sleep 0.3; wc -c"], stdin=reader)
os.write(writer, bytes(65536 - 100))
faulthandler.register(signal.SIGUSR1, file=writer)
ran = []
threading.Thread(target=lambda: (time.sleep(0), ran.append(1))).start()
before = len(ran)
os.kill(os.getpid(), signal.SIGUSR1)
print(len(ran) - before, flush=True)
os.close(writer); os.close(reader)
""",
        mode="cli",
    ).check()
    assert done.out.startswith("0\n")
