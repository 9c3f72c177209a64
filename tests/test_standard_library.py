"""What the standard library builds on threads and blocking calls: as in plain Python, all green."""

from __future__ import annotations

import os

import pytest
from test_locks import same  # noqa: F401

# Each is run by as many threads; they can only end when all of them are there at once.
TOGETHER = """
import threading
def together(count, function):
    results = [None] * count
    def run(number):
        results[number] = function(number)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return results
"""


def test_threading_servers_serve_clients_that_wait_for_each_other(same):
    same(f"""{TOGETHER}
import socket, socketserver
barrier = threading.Barrier(20)
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        barrier.wait()
        self.wfile.write(line.upper())
for kind, address in (
    (socketserver.ThreadingTCPServer, ("127.0.0.1", 0)),
    (socketserver.ThreadingUnixStreamServer, "\\0portalpatch-test-%d" % __import__("os").getpid()),
):
    kind.daemon_threads = True
    kind.request_queue_size = 50
    with kind(address, Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        def ask(number):
            with socket.socket(server.address_family) as client:
                client.connect(server.server_address)
                client.sendall(b"line %d\\n" % number)
                return client.makefile("rb").readline()
        print(together(20, ask))
        server.shutdown()
""")


def test_http_xmlrpc_and_wsgi_servers_in_threads(same):
    same(f"""{TOGETHER}
import http.client, http.server, socketserver, urllib.request, wsgiref.simple_server, xmlrpc.client
import xmlrpc.server
barrier = threading.Barrier(10)

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        barrier.wait()
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass

class Calls(socketserver.ThreadingMixIn, xmlrpc.server.SimpleXMLRPCServer): pass
class Wsgi(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer): pass
class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *args): pass

def application(environ, start_response):
    barrier.wait()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]

def add(one, other):
    barrier.wait()
    return one + other

def serve(server):
    server.request_queue_size = 50
    server.socket.listen(50)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return f"http://127.0.0.1:{{server.server_address[1]}}/"

pages = serve(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page))
print(together(10, lambda n: urllib.request.urlopen(f"{{pages}}{{n}}").read()))
rpc = Calls(("127.0.0.1", 0), logRequests=False)
rpc.register_function(add)
calls = serve(rpc)
print(together(10, lambda n: xmlrpc.client.ServerProxy(calls).add(n, n)))
wsgi = wsgiref.simple_server.make_server("127.0.0.1", 0, application, Wsgi, Quiet)
address = serve(wsgi)
print(together(10, lambda n: urllib.request.urlopen(f"{{address}}{{n}}").read()))
""")


def test_shell_commands_wait_for_each_other(same, tmp_path):
    """Both ends of each FIFO are opened by a command of another thread's."""
    for number in range(3):
        os.mkfifo(tmp_path / f"fifo{number}")
    same(f"""{TOGETHER}
import os, subprocess
where = {str(tmp_path)!r}
def run(number):
    fifo = f"{{where}}/fifo{{number // 2}}"
    if number % 2:
        with os.popen(f"cat {{fifo}}") as pipe:
            return pipe.read()
    return os.system(f"sleep 0.0{{number}}; echo from {{number}} > {{fifo}}; exit 3") >> 8
print(together(6, run))
def talk(number):
    pipes = {{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}}
    echoed = subprocess.Popen(["cat"], **pipes).communicate(b"x" * 300000)[0]
    process = subprocess.Popen(["sh", "-c", "sleep 0.2; head -c 300000 /dev/zero"], **pipes)
    try:
        process.communicate(timeout=0.01)
    except subprocess.TimeoutExpired as error:
        return len(echoed), len(process.communicate()[0]), process.returncode
print(together(5, talk))
""")


def test_terminals(same):
    same("""
import os, pty, sys, threading, time
pid, master = pty.fork()
if pid == 0:
    print("got", input("question? "))
    os._exit(0)
answering = threading.Timer(0.05, os.write, (master, b"answer\\n"))
answering.start()
seen = b""
while True:
    try:
        seen += os.read(master, 100)
    except OSError:  # the other side has been closed
        break
print(seen.split(), os.waitpid(pid, 0)[1])
output = []
def read(fd):
    data = os.read(fd, 1000)
    output.append(data)
    return data
sys.stdin = open(os.devnull)
print(pty.spawn([sys.executable, "-c", "print('spawned')"], read), b"".join(output).split())
""")


def test_schedulers_and_timers(same):
    same("""
import sched, threading, time
events = []
def run(name):
    scheduler = sched.scheduler(time.monotonic, time.sleep)
    for delay in (0.15, 0.05):
        scheduler.enter(delay, 1, events.append, (f"{name} {delay}",))
    dropped = scheduler.enter(0.01, 1, events.append, ("no",))
    scheduler.cancel(dropped)
    scheduler.run()
threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(sorted(events[:3]), sorted(events[3:]))
""")


def test_selectors_with_thousands_of_fds(same):
    same("""
import os, resource, select, selectors, socket, threading
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192) if hard > 0 else 8192, hard))
pairs = [socket.socketpair() for _ in range(1500)]
for kind in (selectors.PollSelector, selectors.EpollSelector):
    with kind() as selector:
        for number, (one, _) in enumerate(pairs):
            selector.register(one, selectors.EVENT_READ, number)
        def send():
            for number in range(0, 1500, 100):
                pairs[number][1].send(b"x")
        threading.Timer(0.02, send).start()
        seen = []
        while len(seen) < 15:
            for key, _ in selector.select():
                key.fileobj.recv(1)
                seen.append(key.data)
        print(sorted(seen))
low = [one for one, _ in pairs if one.fileno() < 1000]
threading.Timer(0.02, pairs[7][1].send, (b"y",)).start()
readable, writable, _ = select.select(low, low[:3], [])
print(len(writable))
try:
    select.select([5000], [], [])
except (OSError, ValueError) as error:
    print(type(error).__name__, error)
""")


PROCESSES = """
import concurrent.futures, multiprocessing, sys, threading, time
from multiprocessing import shared_memory

def fill(name, at, value):
    block = shared_memory.SharedMemory(name)
    block.buf[at] = value
    block.close()
    return at

def main(context):
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        block = shared_memory.SharedMemory(create=True, size=16)
        ticks, over = [], threading.Event()
        def tick():
            while not over.is_set():
                ticks.append(1)
                time.sleep(0.001)
        threading.Thread(target=tick).start()
        futures = [pool.submit(fill, block.name, at, at * at) for at in range(10)]
        print(sorted(done.result() for done in concurrent.futures.as_completed(futures)))
        print(bytes(block.buf[:10]), list(pool.map(abs, [-1, -2])))
        over.set()
        print(len(ticks) > 1)
        block.close()
        block.unlink()
        try:
            pool.submit(divmod, 1, 0).result()
        except ZeroDivisionError as error:
            print(error)

if __name__ == "__main__":
    main(multiprocessing.get_context(sys.argv[1]))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_process_pools_and_shared_memory(run_app, method):
    flags = ["-W", "ignore::DeprecationWarning"]
    plain, patched = (
        run_app(PROCESSES, method, mode=mode, flags=flags).check() for mode in ("plain", "cli")
    )
    assert (patched.out, patched.err) == (plain.out, plain.err)


def test_waiting_for_signals_in_a_thread(same):
    same("""
import os, signal, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print(signal.sigtimedwait([signal.SIGUSR1], 0.01))
threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
print(signal.sigtimedwait([signal.SIGUSR1], 30).si_signo == signal.SIGUSR1)
print(threading.stack_size(), threading.stack_size(1 << 20), threading.stack_size())
thread = threading.Thread(target=print, args=("ran",))
thread.start()
thread.join()
""")


def test_only_the_main_thread_installs_handlers(same):
    same("""
import asyncio, signal, threading
def attempt(function, *args, **kwargs):
    try:
        print(function(*args, **kwargs))
    except Exception as error:
        print(type(error).__name__, error)
def install():
    attempt(signal.signal, signal.SIGUSR1, print)
    attempt(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
    attempt(signal.signal, 9999, print)
    attempt(signal.set_wakeup_fd, -1)
    attempt(signal.set_wakeup_fd, -1, warn_on_full_buffer=False)
    async def main():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
    attempt(lambda: asyncio.run(main()))
for _ in range(2):
    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
attempt(signal.signal, signal.SIGUSR1, signal.SIG_IGN)
attempt(signal.set_wakeup_fd, -1)
attempt(signal.set_wakeup_fd)
""")


def test_trio_in_several_threads_at_once(same):
    pytest.importorskip("trio")
    same(f"""{TOGETHER}
import time, trio
barrier = threading.Barrier(5)
async def main(number):
    seen = []
    async def job(name):
        await trio.sleep(0.001)
        seen.append(name)
    def work():  # a worker thread
        barrier.wait()
        trio.from_thread.run_sync(seen.append, "sync")
        trio.from_thread.run(job, "from thread")
        return number
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, "task")
        seen.append(await trio.to_thread.run_sync(work))
    return sorted(map(str, seen))
print(together(5, lambda number: trio.run(main, number)))
""")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio_threads(same, backend):
    pytest.importorskip("anyio")
    pytest.importorskip(backend)
    same(f"""{TOGETHER}
import anyio, anyio.from_thread, anyio.to_thread, time
async def main():
    def work(number):
        time.sleep(0.01)
        return anyio.from_thread.run(add, number)
    async def add(number):
        await anyio.sleep(0.001)
        return number + 1
    print([await anyio.to_thread.run_sync(work, number) for number in range(3)])
anyio.run(main, backend={backend!r})
with anyio.from_thread.start_blocking_portal({backend!r}) as portal:
    print(together(5, lambda number: portal.call(anyio.sleep, 0.01)))
""")
