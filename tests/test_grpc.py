"""gRPC, a C core with waits of its own: green threads and tasks overlap in it, and nothing aborts.

The handler lets no call go on before all have come (a barrier): a program that ends has overlapped.
"""

from __future__ import annotations

import pytest
from programs import MODES

PROGRAM = """\
import asyncio, os, signal, sys, threading
from concurrent import futures

os.environ["GRPC_VERBOSITY"] = "NONE"  # it may note that the server stopped before the channel did
import grpc

COUNT = 6
together = threading.Barrier(COUNT)

def hello(request, context):
    together.wait(30)
    return b"hello " + request

def count(request, context):
    yield from (b"1", b"2", b"3")

def never(request, context):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait(30)
    return b""

class Methods(grpc.GenericRpcHandler):
    def service(self, details):
        name = details.method.rpartition("/")[2]
        if name == "count":
            return grpc.unary_stream_rpc_method_handler(count)
        if name in ("hello", "never"):
            return grpc.unary_unary_rpc_method_handler({"hello": hello, "never": never}[name])

def start():
    server = grpc.server(futures.ThreadPoolExecutor(COUNT + 1))
    server.add_generic_rpc_handlers((Methods(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"
"""

BLOCKING = """
server, address = start()
for options in ((), (("SingleThreadedUnaryStream", 1),)):
    with grpc.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary("/test/hello")
        results = []
        threads = [
            threading.Thread(target=lambda n=n: results.append(call(b"%d" % n, timeout=30)))
            for n in range(COUNT)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(sorted(results)[-1], len(results))
        pending = [call.future(b"%d" % n, timeout=30) for n in range(COUNT)]
        print(pending[-1].result())
        print(list(channel.unary_stream("/test/count")(b"", timeout=30)))
        for name, timeout in (("none", 30), ("hello", 0.05)):
            try:
                channel.unary_unary(f"/test/{name}")(b"", timeout=timeout)
            except grpc.RpcError as error:
                print(error.code())
        together.reset()
        try:
            channel.unary_unary("/test/never")(b"")
        except KeyboardInterrupt:
            print("interrupted")
server.stop(0).wait()
"""

TASKS = """
server, address = start()

async def main():
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/test/hello")

        async def handler(number):
            return call(b"%d" % number, timeout=30)  # parks this task

        print(await asyncio.gather(*[handler(number) for number in range(COUNT)]))

asyncio.run(main())
server.stop(0).wait()
"""

AIO = """
import grpc.aio

async def hello(request, context):
    await asyncio.sleep(0.01)
    return b"hello " + request

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Methods(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/test/hello")
        print(await asyncio.gather(*[call(b"%d" % number) for number in range(COUNT)]))
    await server.stop(0)

asyncio.run(main())
"""


@pytest.mark.parametrize("mode", MODES)
def test_blocking_calls_of_green_threads_do_what_they_do_plain(run_app, mode):
    plain = run_app(PROGRAM + BLOCKING, mode="plain").check()
    assert plain.out.count("interrupted") == 2
    patched = run_app(PROGRAM + BLOCKING, mode=mode).check()
    assert (patched.out, patched.err) == (plain.out, plain.err)


@pytest.mark.parametrize("mode", MODES)
def test_blocking_calls_of_tasks_overlap(run_app, mode):
    result = run_app(PROGRAM + TASKS, mode=mode).check()
    assert result.out == f"{[b'hello %d' % number for number in range(6)]}\n"
    assert result.err == ""


@pytest.mark.parametrize("mode", ["plain", *MODES])
def test_grpc_aio(run_app, mode):
    result = run_app(PROGRAM + AIO, mode=mode).check()
    assert result.out == f"{[b'hello %d' % number for number in range(6)]}\n"
    assert result.err == ""
