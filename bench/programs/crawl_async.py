"""The same crawl by 200 asyncio tasks, with libraries written for asyncio.

usage: python crawl_async.py aiohttp|httpx site pages tasks [ca-file]
"""

import asyncio
import json
import ssl
import sys
import time

library, site, pages, tasks = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
context = ssl.create_default_context(cafile=sys.argv[5]) if len(sys.argv) > 5 else None
done = []


async def crawl(fetch):
    async def work(numbers):
        for number in numbers:
            if await fetch(f"{site}/page{number % 20}.html") < 1000:
                raise SystemExit("a short page")
            done.append(number)

    await asyncio.gather(*[work(range(first, pages, tasks)) for first in range(tasks)])


async def main():
    start, cpu = time.perf_counter(), time.process_time()
    if library == "aiohttp":
        import aiohttp

        connector = aiohttp.TCPConnector(limit=tasks, ssl=context or True)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def fetch(url):
                async with session.get(url) as answer:
                    return len(await answer.read())

            await crawl(fetch)
    else:
        import httpx

        limits = httpx.Limits(max_connections=tasks, max_keepalive_connections=tasks)
        verify = context or True
        async with httpx.AsyncClient(limits=limits, verify=verify, timeout=60) as client:

            async def fetch(url):
                return len((await client.get(url)).content)

            await crawl(fetch)
    seconds = time.perf_counter() - start
    if len(done) != pages:
        sys.exit(f"{len(done)} pages of {pages}")
    print(json.dumps({"seconds": seconds, "cpu_seconds": time.process_time() - cpu}))


asyncio.run(main())
