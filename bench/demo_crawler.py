"""An ordinary crawler: one thread a page, urllib.request, time.sleep. It has never heard of
portalpatch, and bench/demo.py runs it both ways.

usage: python demo_crawler.py http://127.0.0.1:PORT
"""

import re
import sys
import threading
import time
import urllib.request

site = sys.argv[1]
seen = set()
seen_lock = threading.Lock()
size = 0


def crawl(path):
    global size
    with urllib.request.urlopen(site + path) as answer:
        text = answer.read().decode()
    time.sleep(0.05)  # be polite
    with seen_lock:
        size += len(text)
        new = [link for link in re.findall('href="([^"]+)"', text) if link not in seen]
        seen.update(new)
    threads = [threading.Thread(target=crawl, args=(link,)) for link in new]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


seen.add("/")
crawl("/")
print(f"{len(seen)} pages, {size} bytes")
