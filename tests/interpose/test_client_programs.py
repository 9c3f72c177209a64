"""Clients that know nothing of us, against private servers, say under the C portal what they say plain.

Each runs three times: plain, parked, and parked with its standard streams as well. Its output bytes,
its exit status and the files it leaves must be the same, and parked its calls must really have taken that path.
"""

import dataclasses
import hashlib
import os
import pathlib
import subprocess

import pytest

SQL = """
select count(*), sum(n) from generate_series(1, 20000) n;
select n, repeat(chr(65 + n % 26), 3000) from generate_series(1, 500) n;
select pg_sleep(0.1);
create temporary table t (n int, word text);
\\copy t from program 'seq 1 3000 | sed s/$/,word/' with (format csv)
select count(*), max(n) from t;
\\copy (select * from t order by n) to stdout
select 1 / 0;
select 'after the error';
"""

MYSQL = """
select count(*) from information_schema.engines where engine = 'InnoDB';
select sleep(0.1);
select repeat('x', 300000);
with recursive n as (select 1 as i union all select i + 1 from n where i < 900)
    select i, repeat(char(65 + i % 26), 500) from n;
select 'before the error';
select * from no.such_table;
"""

REDIS = "\n".join(
    [
        "flushall",
        *(f"set key:{n} {'v' * n}" for n in range(300)),
        *(f"get key:{n}" for n in range(300)),
        "eval 'local t = {} for i = 1, 5000 do t[i] = i end return t' 0",
        "blpop nothing 0.1",
        "no-such-command",
        "debug sleep 0.05",
        "dbsize",
    ]
)


@dataclasses.dataclass(frozen=True)
class Said:
    status: int
    output: bytes
    errors: bytes
    files: dict[str, str]


class Client:
    """Runs commands in a new folder each, in one way: plain or parked."""

    def __init__(self, folder: pathlib.Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.counts = folder.parent / f"{folder.name}.counts"
        folder.mkdir()

    def run(self, command: list[str], text: str = "", **environment: str) -> Said:
        done = subprocess.run(
            command,
            input=text.encode(),
            env={
                **self.environment,
                "PORTALPATCH_C_PORTAL_COUNTS": str(self.counts),
                "HOME": str(self.folder),
                "LC_ALL": "C",
                **environment,
            },
            cwd=self.folder,
            capture_output=True,
            timeout=100,
        )
        files = {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and ".git" not in path.parts
        }
        return Said(done.returncode, done.stdout, done.stderr, files)

    def calls(self) -> tuple[int, int]:
        """How many calls went through the parking path without a wait, and with one."""
        lines = self.counts.read_text().splitlines() if self.counts.exists() else []
        passed, parked = zip((0, 0), *(map(int, line.split()) for line in lines), strict=True)
        return sum(passed), sum(parked)


@pytest.fixture
def as_plain(parking: dict[str, str], tmp_path: pathlib.Path):
    """as_plain(use): use(client) says the same plain and parked; returns what it said.

    status: what it must exit with. errors: whether standard error must be the same too. waits: it
    certainly has to wait for something (a server on loopback may be quicker than a first look).
    """

    def check(use, status: int = 0, errors: bool = True, waits: bool = False) -> Said:
        plain = use(Client(tmp_path / "plain", dict(os.environ)))
        assert plain.status == status, plain
        ways = {
            "parked": parking,
            "parked-stdio": {**parking, "PORTALPATCH_STDIO": "1"},
        }
        for name, environment in ways.items():
            client = Client(tmp_path / name, environment)
            said = use(client)
            if not errors:
                said = dataclasses.replace(said, errors=plain.errors)
            assert said == plain, name
            passed, parked = client.calls()
            assert passed + parked > 0, f"{name}: it was not in the parking path"
            assert parked > 0 or not waits, f"{name}: nothing parked"
        return plain

    return check


def test_psql(as_plain, postgres_server) -> None:
    command = ["psql", "-X", "-h", "127.0.0.1", "-p", str(postgres_server.port), "-U", "postgres"]

    def use(client: Client) -> Said:
        return client.run([*command, "-v", "ON_ERROR_STOP=0", "postgres"], SQL)

    said = as_plain(use, waits=True)
    assert b"after the error" in said.output


def test_psql_over_a_unix_socket(as_plain, postgres_server) -> None:
    where = ["-h", str(postgres_server.folder.path), "-p", str(postgres_server.port)]
    command = ["psql", "-X", "-At", *where, "-U", "postgres", "-c", "select pg_sleep(0.1), 7"]
    said = as_plain(lambda client: client.run(command), waits=True)
    assert said.output == b"|7\n"


def test_mysql(as_plain, mariadb_server) -> None:
    where = ["-h", "127.0.0.1", "-P", str(mariadb_server.port), "-u", "root"]

    def use(client: Client) -> Said:
        return client.run(["mysql", "--no-defaults", *where], MYSQL)

    said = as_plain(use, status=1, waits=True)
    assert b"no.such_table" in said.errors


def test_redis_cli(as_plain, redis_server) -> None:
    command = ["redis-cli", "-p", str(redis_server.port)]
    said = as_plain(lambda client: client.run(command, REDIS), waits=True)
    assert b"\n300\n" in said.output


def test_redis_cli_pipe(as_plain, redis_server) -> None:
    """Raw protocol in bulk, both ways at once."""
    text = "".join(f"SET bulk:{n} {'x' * 200}\r\n" for n in range(5000))
    command = ["redis-cli", "-p", str(redis_server.port), "--pipe"]
    assert b"replies: 5000" in as_plain(lambda client: client.run(command, text)).output


def test_curl(as_plain, nginx_server) -> None:
    base = f"http://127.0.0.1:{nginx_server.port}"

    def use(client: Client) -> Said:
        pages = [f"{base}/page{n}.html" for n in range(20)]
        slow = f"{base}/backend/sleep?seconds=0.1"
        return client.run(["curl", "-sS", "-o", "kept", *pages, slow])

    assert as_plain(use, waits=True).output.endswith(b"slept")


def test_curl_in_parallel(as_plain, nginx_server) -> None:
    base = f"http://127.0.0.1:{nginx_server.port}"
    command = ["curl", "-sS", "-Z", "--parallel-max", "8", f"{base}/page[0-19].html", "-o", "got#1"]
    command += [f"{base}/backend/sleep?seconds=0.1", "-o", "slow"]
    said = as_plain(lambda client: client.run(command), errors=False, waits=True)
    assert len(said.files) == 21


def test_curl_fails_as_plain(as_plain, nginx_server) -> None:
    base = f"http://127.0.0.1:{nginx_server.port}"
    late = ["curl", "-s", "--max-time", "0.3", f"{base}/backend/sleep?seconds=10"]
    as_plain(lambda client: client.run(late), status=28, waits=True)


def test_curl_tls(as_plain, tls_server) -> None:
    certificate = str(tls_server.folder.path / "certificate.pem")
    page = f"https://localhost:{tls_server.port}/page.txt"
    said = as_plain(lambda client: client.run(["curl", "-sS", "--cacert", certificate, page]))
    assert said.output.endswith(b"line 19999\n")


def test_wget(as_plain, nginx_server, tls_server) -> None:
    base = f"http://127.0.0.1:{nginx_server.port}"
    trust = f"--ca-certificate={tls_server.folder.path / 'certificate.pem'}"
    pages = [f"{base}/page{n}.html" for n in range(5)]
    pages += [f"https://localhost:{tls_server.port}/page.txt", f"{base}/nowhere"]
    said = as_plain(lambda client: client.run(["wget", "-nv", trust, *pages]), 8, errors=False)
    assert len(said.files) == 6


def test_openssl_s_client(as_plain, tls_server) -> None:
    trust = str(tls_server.folder.path / "certificate.pem")
    where = ["-connect", f"localhost:{tls_server.port}", "-CAfile", trust]
    request = "GET /page.txt HTTP/1.0\r\n\r\n"
    said = as_plain(lambda client: client.run(["openssl", "s_client", "-quiet", *where], request))
    assert said.output.endswith(b"line 19999\n")


def ssh_options(server) -> list[str]:
    options = {
        "Port": server.port,
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "no",
        "LogLevel": "ERROR",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["-F", "none", "-i", str(server.client_key), *words]


def ssh(server, *rest: str) -> list[str]:
    return ["ssh", *ssh_options(server), f"{server.user}@127.0.0.1", *rest]


def test_ssh(as_plain, ssh_server) -> None:
    """A command with input, much output on both streams, and an exit status."""
    script = "read line; echo heard $line; seq 1 50000; seq 1 3000 >&2; sleep 0.1; exit 7"
    said = as_plain(lambda client: client.run(ssh(ssh_server, script), "words\n"), 7, waits=True)
    assert said.output.startswith(b"heard words\n1\n")
    assert said.output.endswith(b"50000\n")


def test_ssh_moves_much_both_ways(as_plain, ssh_server) -> None:
    text = "0123456789abcdef" * 50_000
    said = as_plain(lambda client: client.run(ssh(ssh_server, "cat"), text))
    assert said.output == text.encode()


def test_scp_and_sftp(as_plain, ssh_server) -> None:
    options = ssh_options(ssh_server)

    def use(client: Client) -> Said:
        (client.folder / "sent").write_bytes(bytes(range(256)) * 3000)
        where = f"{ssh_server.user}@127.0.0.1:{client.folder}"
        client.run(["scp", "-q", *options, "sent", f"{where}/by-scp"])
        batch = f"get sent by-sftp\nls -1 {ssh_server.client_key}\n"
        return client.run(["sftp", "-q", *options, "-b", "-", where], batch)

    said = as_plain(use, errors=False)
    assert len(set(said.files.values())) == 1 and len(said.files) == 3


@pytest.mark.parametrize("way", ["daemon", "ssh", "file"])
def test_git_clone(as_plain, git_server, ssh_server, way: str) -> None:
    repository = git_server.folder.path / "repository.git"
    url = {
        "daemon": f"git://127.0.0.1:{git_server.port}/repository.git",
        "ssh": f"ssh://{ssh_server.user}@127.0.0.1{repository}",
        "file": f"file://{repository}",
    }[way]

    def use(client: Client) -> Said:
        by_ssh = {"GIT_SSH_COMMAND": " ".join(["ssh", *ssh_options(ssh_server)])}
        cloned = client.run(["git", "clone", "-q", url, "clone"], **by_ssh)
        assert cloned.status == 0, cloned
        checks = "git fsck --full && git log --format=%H && git fetch -q && git status --short"
        return client.run(["sh", "-c", f"cd clone && {checks}"], **by_ssh)

    said = as_plain(use)
    assert len(said.files) == 40


BASH = r"""
words() { while read -r n; do echo "$1$n"; done; }
seq 1 2000 | words a | words b | sort | md5sum
exec 5<>/dev/tcp/127.0.0.1/$PORT
printf 'GET /page7.html HTTP/1.0\r\n\r\n' >&5; cat <&5 | tail -n 3; exec 5>&-
for i in 1 2 3 4 5; do (sleep 0.0$i; exit $i) & done
total=0; for job in $(jobs -p); do wait $job; total=$((total + $?)); done; echo total $total
wait -n 2>/dev/null; echo none left $?
coproc up { tr a-z A-Z; }
echo whisper >&${up[1]}; eval "exec ${up[1]}>&-"; cat <&${up[0]}; wait $up_PID
read -t 0.1 line < <(sleep 0.3); echo timed out $(( $? > 128 ))
mkfifo pipe; (for i in 1 2 3; do echo fifo $i; sleep 0.01; done > pipe) & while read l; do echo "$l"; done < pipe
trap 'echo usr1' USR1; (sleep 0.05; kill -USR1 $$) & wait $!; wait
timeout 0.1 sleep 5; echo timeout $?
flock lock -c 'sleep 0.1' & sleep 0.02; flock lock echo locked; wait
yes | head -n 1000 | wc -l; echo "${PIPESTATUS[@]}"
{ ( ulimit -c 0; kill -SEGV $BASHPID ); } 2>/dev/null; echo killed $?
exit 9
"""


def test_bash(as_plain, nginx_server) -> None:
    port = str(nginx_server.port)
    said = as_plain(lambda client: client.run(["bash"], BASH, PORT=port), 9, waits=True)
    assert b"total 15" in said.output
