"""An ordinary threaded crawler: 200 threads share a list of pages, one session each.

usage: python crawl_threads.py requests|urllib3|pycurl site pages threads [ca-file]
Prints one line of JSON: seconds and CPU seconds.
"""

import json
import sys
import threading
import time

library, site, pages, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ca_file = sys.argv[5] if len(sys.argv) > 5 else None
wanted = 1000  # bytes: every page is longer

if library == "requests":
    import requests

    def make_fetch():
        session = requests.Session()
        session.verify = ca_file
        return lambda url: len(session.get(url).content)

elif library == "urllib3":
    import urllib3

    pool = urllib3.PoolManager(maxsize=threads, ca_certs=ca_file)

    def make_fetch():
        return lambda url: len(pool.request("GET", url).data)

else:
    import io

    import pycurl

    def make_fetch():
        handle = pycurl.Curl()
        handle.setopt(pycurl.NOSIGNAL, 1)
        if ca_file:
            handle.setopt(pycurl.CAINFO, ca_file)

        def fetch(url):
            body = io.BytesIO()
            handle.setopt(pycurl.URL, url)
            handle.setopt(pycurl.WRITEDATA, body)
            handle.perform()
            return len(body.getvalue())

        return fetch


def crawl(numbers):
    fetch = make_fetch()
    for number in numbers:
        if fetch(f"{site}/page{number % 20}.html") < wanted:
            raise SystemExit("a short page")
        done.append(number)


done = []
start, cpu = time.perf_counter(), time.process_time()
crawlers = [
    threading.Thread(target=crawl, args=(range(first, pages, threads),)) for first in range(threads)
]
for crawler in crawlers:
    crawler.start()
for crawler in crawlers:
    crawler.join()
seconds = time.perf_counter() - start
if len(done) != pages:
    sys.exit(f"{len(done)} pages of {pages}")
print(json.dumps({"seconds": seconds, "cpu_seconds": time.process_time() - cpu}))
