"""Small pages from a private nginx, 200 at once, plain and over TLS: requests, urllib3, pycurl.

The same unmodified threaded crawler under each peer; aiohttp and httpx beside it. The crawler has
one CPU, nginx the other. Pages a second, and the crawler's CPU us for each page.
"""

from __future__ import annotations

import os
import subprocess

import harness
from servers.process import Folder, Missing, Server, find_program, free_port

METRICS = {"rate": "pages/s", "cpu": "CPU us/page"}
AT_ONCE = 200
PAGES = {"requests": 2_000, "urllib3": 2_000, "pycurl": 20_000}  # pycurl's 2,000 take 0.1 s
CONFIGURATION = """
daemon off;
worker_processes 1;
user root;
error_log {folder}/error.log warn;
pid {folder}/pid;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type text/html;
    keepalive_requests 100000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    root {folder}/pages;
    server {{ listen 127.0.0.1:{plain} backlog=4096; }}
    server {{
        listen 127.0.0.1:{tls} ssl backlog=4096;
        ssl_certificate {folder}/cert.pem;
        ssl_certificate_key {folder}/key.pem;
        ssl_session_cache off;
    }}
}}
"""


def start_nginx() -> tuple[Server, str, str, str]:
    """The server, its plain and TLS sites, and the file that vouches for its certificate."""
    program = find_program("nginx", "nginx-light")
    openssl = find_program("openssl", "openssl")
    folder = Folder()
    (folder.path / "pages").mkdir()
    for number in range(20):
        page = folder.path / "pages" / f"page{number}.html"
        page.write_text(f"<p>page {number}</p>\n" * 80)
    certificate = folder.path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(folder.path / "key.pem"), "-out", str(certificate)]
    subprocess.run(
        [openssl, "req", "-x509", *key, *files, "-days", "2", *subject],
        check=True,
        capture_output=True,
    )
    plain, tls = free_port(), free_port()
    configuration = folder.path / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder.path, plain=plain, tls=tls))
    server = Server(folder, [program, "-e", "stderr", "-c", str(configuration)], plain)
    server.wait_until(server.accepts)
    return server, f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{tls}", str(certificate)


def main() -> None:
    args = harness.options(__doc__)
    bench = harness.Benchmark(
        "crawl",
        "small pages from nginx, 200 at once",
        args,
        "requests",
        "urllib3",
        "pycurl",
        "aiohttp",
        "httpx",
        "gevent",
        "eventlet",
    )
    harness.raise_open_files()
    os.sched_setaffinity(0, {harness.LOAD_CPU})  # nginx inherits it
    try:
        server, plain_site, tls_site, certificate = start_nginx()
    except Missing as why:
        bench.missing("nginx", str(why))
        bench.finish()
        return

    def case(command: list[str], pages: int, cpu: int | None = harness.SERVER_CPU):
        env = harness.plain_environment(EVENTLET_HUB="epolls")

        def once():
            got = harness.finished(command, cpu, env)
            return {"rate": pages / got["seconds"], "cpu": got["cpu_seconds"] / pages * 1e6}

        return once

    launchers = {
        "portalpatch": "portalpatch",
        "portalpatch, on Trio": "portalpatch trio",
        "native threads": "plain",
    }
    if bench.present("gevent", "gevent"):
        launchers["gevent, patched"] = "gevent"
    if bench.present("eventlet", "eventlet"):
        launchers["eventlet, patched"] = "eventlet"
    libraries = [name for name in ("requests", "urllib3", "pycurl") if bench.present(name, name)]
    native = ("aiohttp",) if bench.quick else ("aiohttp", "httpx")
    native = [name for name in native if bench.present(name, name)]
    try:
        for scheme, site, more in (
            ("plain", plain_site, []),
            ("TLS", tls_site, [certificate]),
        ):
            if bench.quick and scheme == "TLS":
                libraries = libraries[:1]
            for library in libraries:
                pages = 200 if bench.quick else PAGES[library]
                words = [library, site, pages, AT_ONCE, *more]
                cases = {
                    name: case(harness.python(launcher, "crawl_threads.py", *words), pages)
                    for name, launcher in launchers.items()
                }
                cases["native threads, not pinned"] = case(
                    harness.python("plain", "crawl_threads.py", *words), pages, None
                )
                if library == "requests":
                    for name in native:
                        words = [name, site, pages, AT_ONCE, *more]
                        cases[f"{name}, async"] = case(
                            harness.python("plain", "crawl_async.py", *words), pages
                        )
                group = bench.measure(f"{library}, {scheme}", METRICS, cases)
                if args.only:
                    continue
                over_gevent = group.ratio("rate", "portalpatch", "gevent, patched")
                over_threads = group.ratio("rate", "portalpatch", "native threads")
                what = f"{library}, {scheme}: pages/s over"
                if library == "requests":
                    limit = 1.1 if scheme == "plain" else 1.2
                    bench.target(f"{what} gevent's", over_gevent, limit, "at least")
                else:
                    bench.note(f"{what} gevent's: {over_gevent:.2f}")
                bench.target(f"{what} native threads'", over_threads, 1.0, "at least")
    finally:
        server.stop()
    bench.finish()


if __name__ == "__main__":
    main()
