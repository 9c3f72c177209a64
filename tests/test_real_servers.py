"""Unmodified requests, urllib, redis and PyMySQL programs against real servers, and Python's own
programs (`-m http.server`, `-m pip`). Overlap is counted in the server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
import zipfile

import pytest
from programs import MODES, command_for, finish
from servers import mariadb
from servers.process import clean_environment, free_port

HOLD = """\
import sys, threading
{imports}

url, key, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
statuses = []
native = set()

def fetch(url):
    {fetch}

def work(number):
    statuses.append(fetch(f"{{url}}/hold?key={{key}}&n={{count}}&limit=30"))
    with open("/proc/thread-self/stat") as stat:
        native.add(stat.read().split()[0])

threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(set(statuses)), len(statuses), len(native))
"""

CLIENTS = {
    "requests": ("import requests", "return requests.get(url).status_code"),
    "urllib": (
        "import urllib.request",
        "with urllib.request.urlopen(url, timeout=60) as answer: return answer.status",
    ),
    "http.client": (
        "import http.client, urllib.parse",
        "parts = urllib.parse.urlsplit(url); c = http.client.HTTPConnection(parts.netloc); "
        "c.request('GET', f'{parts.path}?{parts.query}'); return c.getresponse().status",
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("client", CLIENTS)
def test_http_clients_overlap(run_app, counting_server, client, mode):
    imports, fetch = CLIENTS[client]
    url = f"http://127.0.0.1:{counting_server.port}"
    source = HOLD.format(imports=imports, fetch=fetch)
    result = run_app(source, url, f"{client}-{mode}", "80", mode=mode)
    assert result.check().out == "[200] 80 1\n"


@pytest.mark.parametrize("host", ["asyncio", "trio"])
def test_requests_through_nginx_overlap(run_app, nginx_server, host):
    imports, fetch = CLIENTS["requests"]
    url = f"http://127.0.0.1:{nginx_server.port}/backend"
    result = run_app(
        HOLD.format(imports=imports, fetch=fetch), url, f"nginx-{host}", "120",
        options=["--host", host],
    )  # fmt: skip
    assert result.check().out == "[200] 120 1\n"


def test_requests_session_fetches_pages_from_nginx(run_app, nginx_server):
    source = """
    import sys, requests
    from concurrent.futures import ThreadPoolExecutor
    session = requests.Session()
    def fetch(number):
        return session.get(f"{sys.argv[1]}/page{number % 20}.html").text == (
            f"<p>page {number % 20}</p>\\n" * 50)
    with ThreadPoolExecutor(40) as pool:
        print(sum(pool.map(fetch, range(400))))
    """
    result = run_app(source, f"http://127.0.0.1:{nginx_server.port}")
    assert result.check().out == "400\n"


def test_redis_blocking_pops_overlap(run_app, redis_server):
    source = """
    import sys, threading, redis
    port = int(sys.argv[1])
    got = []
    def consume():
        client = redis.Redis(port=port)
        got.append(int(client.blpop("queue", timeout=20)[1]))
        client.close()
    threads = [threading.Thread(target=consume) for _ in range(100)]
    for thread in threads: thread.start()
    control = redis.Redis(port=port)
    while control.info("clients")["blocked_clients"] < 100:
        pass
    print("all blocked at once")
    for number in range(100):
        control.rpush("queue", number)
    for thread in threads: thread.join()
    print(sorted(got) == list(range(100)))
    """
    for options in ([], ["--host", "trio"], ["--no-preload"]):
        result = run_app(source, str(redis_server.port), options=options)
        assert result.check().out == "all blocked at once\nTrue\n"


def test_redis_publish_subscribe_and_pipeline(run_app, redis_server):
    source = """
    import sys, threading, redis
    client = redis.Redis(port=int(sys.argv[1]), decode_responses=True)
    subscriber = client.pubsub()
    subscriber.subscribe("news")
    subscriber.get_message(timeout=5)
    heard = []
    def listen():
        for message in subscriber.listen():
            heard.append(message["data"])
            if message["data"] == "9":
                return
    thread = threading.Thread(target=listen)
    thread.start()
    with client.pipeline() as pipeline:
        for number in range(10):
            pipeline.publish("news", number)
        pipeline.execute()
    thread.join()
    print(",".join(heard))
    """
    assert run_app(source, str(redis_server.port)).check().out == "0,1,2,3,4,5,6,7,8,9\n"


MYSQL = """
import sys, threading, pymysql
results = []
def work(number):
    connection = pymysql.connect(host="127.0.0.1", port=int(sys.argv[1]), user="root")
    with connection.cursor() as cursor:
        cursor.execute("select %s from gate.t", (number,))
        results.append(cursor.fetchone()[0])
    connection.close()
threads = [threading.Thread(target=work, args=(n,)) for n in range(100)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(results) == list(range(100)))
"""


@pytest.mark.parametrize("mode", ["cli", "patch_all"])
def test_pymysql_queries_overlap(start_program, mariadb_server, mode):
    """MariaDB lets none of the queries go on before it has seen all of them wait."""
    import pymysql

    mariadb.query(mariadb_server, "create or replace database gate")
    mariadb.query(mariadb_server, "create table gate.t as select 1")
    gate = pymysql.connect(host="127.0.0.1", port=mariadb_server.port, user="root")
    count = (
        "select count(*) from information_schema.processlist "
        "where info like 'select % from gate.t' and state like 'Waiting for%'"
    )
    with gate, gate.cursor() as cursor:
        cursor.execute("lock tables gate.t write")
        process = start_program(MYSQL, str(mariadb_server.port), mode=mode)
        deadline = time.monotonic() + 60
        peak = 0
        while peak < 100 and process.poll() is None and time.monotonic() < deadline:
            peak = max(peak, mariadb.query(mariadb_server, count)[0][0])
        cursor.execute("unlock tables")
    result = finish(process, 30)
    assert (result.status, result.out, result.err) == (0, "True\n", "")
    assert peak == 100


# ---- Python's own programs -------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--no-preload"], ["--host", "trio"]], ids=" ".join)
def test_http_server_module_serves_many_at_once(tmp_path, options):
    (tmp_path / "page.txt").write_text("hello\n" * 1000)
    port = free_port()
    command, extra = command_for(
        "cli", ["-m", "http.server", "--bind", "127.0.0.1", str(port)], options=options
    )
    server = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**clean_environment(), **extra},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}/page.txt"
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.05)
        # The server is threaded: connections that say nothing must not hold up the others.
        import socket

        idle = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(4)]
        for _ in range(20):
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert answer.read() == b"hello\n" * 1000
        with open(f"/proc/{server.pid}/status") as status:
            threads = int(status.read().split("Threads:")[1].split()[0])
        for connection in idle:
            connection.close()
        assert threads <= 2  # one for Python; a resolver's worker may linger
        server.send_signal(2)
        assert server.wait(10) == 0  # http.server catches KeyboardInterrupt
    finally:
        server.kill()
        server.wait(10)


def make_wheel(folder) -> None:
    """A tiny pure-Python wheel, so that pip has something to download."""
    info = "tinypackage-1.0.dist-info"
    with zipfile.ZipFile(folder / "tinypackage-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinypackage.py", "value = 1\n")
        name = "Name: tinypackage\nVersion: 1.0\n"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\n{name}")
        tag = "Root-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: tests\n{tag}")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize("mode", ["cli", "preload", "no-preload"])
def test_pip_download_over_http(run_app, tmp_path, mode):
    """pip with its threads, subprocess-free, from an index served by a plain http.server."""
    index = tmp_path / "index" / "tinypackage"
    index.mkdir(parents=True)
    make_wheel(index)
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)],
        cwd=tmp_path / "index",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.5)
        result = run_app(
            "-m", "pip", "--isolated", "--disable-pip-version-check", "download", "--no-deps",
            "--no-cache-dir", "--index-url", f"http://127.0.0.1:{port}/", "--retries", "5",
            "-d", str(tmp_path / "out"), "tinypackage",
            mode=mode,
            env={"PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "*"},
        )  # fmt: skip
        result.check()
    finally:
        server.kill()
        server.wait(10)
    assert os.listdir(tmp_path / "out") == ["tinypackage-1.0-py3-none-any.whl"]


def test_10000_sleeping_green_threads(run_app):
    source = """
    import threading, time
    count = 0
    start = threading.Event()
    def work():
        global count
        start.wait()
        time.sleep(1)
        count += 1
    threads = [threading.Thread(target=work) for _ in range(10_000)]
    for thread in threads: thread.start()
    start.set()
    for thread in threads: thread.join()
    print(count, open("/proc/self/status").read().split("Threads:")[1].split()[0])
    """
    assert run_app(source, limit=120).check().out == "10000 1\n"
