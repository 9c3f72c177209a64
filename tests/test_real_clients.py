"""C clients, unmodified, in tasks of one OS thread: their calls overlap at the server.

Each client's server is a barrier: it lets nobody go on before all have come. So a program that ends
has overlapped fully, however slow the machine; one whose calls do not overlap never ends.
"""

from __future__ import annotations

import itertools

import pytest
from programs import MODES
from servers import mariadb, postgres

PROGRAM = """\
import sys
{imports}

address, key, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
extra = sys.argv[4:]
results = []
native = set()

def call(number):
{call}

async def handler(number):
    results.append(call(number))
    with open("/proc/thread-self/stat") as stat:
        native.add(stat.read().split()[0])

{run}
print(len(results), set(results), len(native))
"""

RUN = {
    "asyncio": """
import asyncio

async def main():
    await asyncio.gather(*[handler(number) for number in range(count)])

asyncio.run(main())
""",
    "trio": """
import trio

async def main():
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(handler, number)

trio.run(main)
""",
}

HOSTS_AND_MODES = [
    *[("asyncio", mode) for mode in MODES],
    *[("trio", mode) for mode in ("cli", "patch_all")],
]

keys = (f"key{number}" for number in itertools.count())


@pytest.fixture(params=HOSTS_AND_MODES, ids="-".join)
def overlap(request, run_app):
    """overlap(imports, call, count, address, *extra): run it; all `count` calls say "together"."""
    host, mode = request.param

    def run(imports: str, call: str, count: int, address: object, *extra: object) -> None:
        body = "\n".join(f"    {line}" for line in call.strip("\n").splitlines())
        source = PROGRAM.format(imports=imports, call=body, run=RUN[host])
        key = next(keys)
        result = run_app(source, str(address), key, str(count), *map(str, extra), mode=mode)
        assert result.check().out == f"{count} {{'together'}} 1\n"
        assert result.err == ""

    return run


# ---- databases -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_barrier(postgres_server):
    """wait_for_all(key, n): notes the caller's arrival, ends when there are n. Rows stay."""
    postgres.query(postgres_server, "create table arrived (key text)")
    postgres.query(
        postgres_server,
        """
        create procedure wait_for_all(wanted text, n int) language plpgsql as $$
        begin
            insert into arrived values (wanted);
            commit;
            while (select count(*) from arrived where key = wanted) < n loop
                perform pg_sleep(0.02);
                commit;
            end loop;
        end $$
        """,
    )
    return postgres_server


def test_psycopg_3_with_its_c_build(overlap, postgres_barrier):
    overlap(
        "import psycopg\nassert psycopg.pq.__impl__ in ('c', 'binary'), psycopg.pq.__impl__",
        """
with psycopg.connect(
    f"host=127.0.0.1 port={address} user=postgres client_encoding=utf8", autocommit=True
) as connection:
    connection.execute(f"call wait_for_all('{key}', {count})")
    return connection.execute("select %s::text", ["together"]).fetchone()[0]
""",
        40,
        postgres_barrier.port,
    )


def test_psycopg2(overlap, postgres_barrier):
    overlap(
        "import psycopg2",
        """
connection = psycopg2.connect(host="127.0.0.1", port=int(address), user="postgres")
connection.autocommit = True
cursor = connection.cursor()
cursor.execute(f"call wait_for_all('{key}', {count})")
cursor.execute("select 'together'")
row = cursor.fetchone()
connection.close()
return row[0]
""",
        40,
        postgres_barrier.port,
    )


@pytest.fixture(scope="session")
def mariadb_barrier(mariadb_server):
    mariadb.query(mariadb_server, "create database barrier")
    mariadb.query(mariadb_server, "create table barrier.arrived (name varchar(80)) engine = memory")
    mariadb.query(
        mariadb_server,
        """
        create procedure barrier.wait_for_all(wanted varchar(80), n int)
        begin
            insert into barrier.arrived values (wanted);
            while (select count(*) from barrier.arrived where name = wanted) < n do
                do sleep(0.02);
            end while;
            select 'together';
        end
        """,
    )
    return mariadb_server


def test_mysqldb(overlap, mariadb_barrier):
    overlap(
        "import MySQLdb",
        """
connection = MySQLdb.connect(
    host="127.0.0.1", port=int(address), user="root", database="barrier", autocommit=True
)
cursor = connection.cursor()
cursor.execute("call wait_for_all(%s, %s)", (key, count))
row = cursor.fetchone()
connection.close()
return row[0]
""",
        40,
        mariadb_barrier.port,
    )


def test_redis_with_hiredis(overlap, redis_server):
    overlap(
        "import hiredis, redis\nassert redis.utils.HIREDIS_AVAILABLE",
        """
client = redis.Redis(port=int(address), decode_responses=True)
if client.incr(f"{key}-came") == count:
    client.rpush(f"{key}-go", *["together"] * count)
answer = client.blpop(f"{key}-go", timeout=0)[1]
client.close()
return answer
""",
        60,
        redis_server.port,
    )


def test_python_ldap(overlap, ldap_server):
    overlap(
        "import ldap",
        """
connection = ldap.initialize(f"ldap://127.0.0.1:{address}")
entries = connection.search_s(f"cn={count},ou={key},dc=test", ldap.SCOPE_BASE)
connection.unbind_s()
return entries[0][1]["cn"][0].decode()
""",
        12,
        ldap_server.port,
    )


# ---- TLS, HTTP -------------------------------------------------------------------------------

RECEIVE = """
with socket.create_connection(("127.0.0.1", int(address)), timeout={timeout}) as plain:
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        assert connection.gettimeout() == {timeout}
        connection.sendall(
            f"GET /hold?key={{key}}&n={{count}}&limit=60 HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n".encode()
        )
        answer = b""
        while piece := connection.recv(100):
            answer += piece
return "together" if answer.startswith(b"HTTP/1.1 200") else answer
"""


@pytest.mark.parametrize("timeout", [None, 60.0], ids=["blocking", "timeout"])
def test_ssl_sockets(overlap, counting_tls_server, timeout):
    overlap(
        "import socket, ssl\ncontext = ssl.create_default_context(cafile=sys.argv[4])",
        RECEIVE.format(timeout=timeout),
        40,
        counting_tls_server.port,
        counting_tls_server.certificate,
    )


PERFORM = """
curl = pycurl.Curl()
body = io.BytesIO()
curl.setopt(pycurl.URL, f"{address}/hold?key={key}&n={count}&limit=60")
curl.setopt(pycurl.WRITEDATA, body)
if extra:
    curl.setopt(pycurl.CAINFO, extra[0])
curl.perform()
status = curl.getinfo(pycurl.RESPONSE_CODE)
curl.close()
return "together" if status == 200 else status
"""


def test_pycurl(overlap, counting_server):
    url = f"http://127.0.0.1:{counting_server.port}"
    overlap("import io, pycurl", PERFORM, 60, url)


def test_pycurl_over_tls(overlap, counting_tls_server):
    url = f"https://127.0.0.1:{counting_tls_server.port}"
    overlap("import io, pycurl", PERFORM, 30, url, counting_tls_server.certificate)


# ---- SSH -------------------------------------------------------------------------------------

# Each session's shell, a process of the server, counts the files that all of them have made.
BARRIER = "cd {folder} && mkdir -p $0 && : >$0/$$ && until [ $(ls $0 | wc -l) -ge $1 ]; do sleep 0.05; done; echo together"


def test_paramiko(overlap, ssh_server):
    command = BARRIER.format(folder=ssh_server.folder.path)
    overlap(
        "import logging, paramiko, shlex",
        """
client = paramiko.SSHClient()
client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
client.connect(
    "127.0.0.1", int(address), extra[0], key_filename=extra[1], allow_agent=False, look_for_keys=False
)
_, output, _ = client.exec_command(f"sh -c {shlex.quote(extra[2])} {key} {count}")
text = output.read().decode().strip()
client.close()
return text
""",
        8,
        ssh_server.port,
        ssh_server.user,
        ssh_server.client_key,
        command,
    )
