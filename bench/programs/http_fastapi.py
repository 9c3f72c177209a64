"""The same service written for asyncio: FastAPI on uvicorn, asyncpg's pool.

usage: python http_fastapi.py postgres-port
"""

import contextlib
import socket
import sys

import asyncpg
import uvicorn
from fastapi import FastAPI


@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.pool = await asyncpg.create_pool(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        user="postgres",
        database="postgres",
        min_size=100,
        max_size=100,
    )
    print(listener.getsockname()[1], flush=True)
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def answer():
    async with app.state.pool.acquire() as connection:
        row = await connection.fetchrow("select $1::int + 1 as answer, version()", 41)
    return {"answer": row["answer"], "version": row["version"]}


listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
config = uvicorn.Config(app, log_level="error", access_log=False)  # uvloop, httptools if installed
uvicorn.Server(config).run(sockets=[listener])
