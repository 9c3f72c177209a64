"""Fixtures of all tests: private servers, and `run_app`: a script run in a process of its own.

Where CI=true a skipped test fails the session (see `pytest_sessionfinish`). No test outlives
HARD_LIMIT: its stacks are dumped and the run ends.
"""

from __future__ import annotations

import faulthandler
import os
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from programs import Completed, command_for, end_session_of, finish, sanitizer_environment
from servers import counting, git, mariadb, nginx, postgres, redis, slapd, sshd, tls
from servers.process import Missing, Server, clean_environment

# seconds for one test, its fixtures included
HARD_LIMIT = 240 if "SANITIZER_PRELOAD" not in os.environ else 1200
IN_CI = os.environ.get("CI") == "true"


# ---- the session -----------------------------------------------------------------------------


def pytest_configure(config):
    config.real_stderr = os.fdopen(os.dup(2), "w")  # capturing is suspended just now


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    faulthandler.dump_traceback_later(HARD_LIMIT, exit=True, file=item.config.real_stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if IN_CI and skipped and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(f"CI: {len(skipped)} skipped, which counts as failed", red=True)


# ---- programs --------------------------------------------------------------------------------


@pytest.fixture
def start_program(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """start_program(source_or_path, *args, mode=, flags=, options=, env=) -> Popen with text pipes.

    `source_or_path` is Python source (dedented) when it has a newline, else a path or one of -m,
    -c, - as Python takes them. With mode "patch_all" the source gets a first line that calls it.
    """
    started: list[subprocess.Popen] = []

    def start(
        source_or_path: str | Path,
        *args: str,
        mode: str = "cli",
        flags: Sequence[str] = (),
        options: Sequence[str] = (),
        env: dict[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.Popen:
        program = str(source_or_path)
        if "\n" in program:
            source = textwrap.dedent(program)
            if mode == "patch_all":
                source = f"import portalpatch; portalpatch.patch_all()\n{source}"
            program = str(tmp_path / "app.py")
            Path(program).write_text(source)
        command, extra = command_for(mode, [program, *args], flags, options)
        process = subprocess.Popen(
            command,
            env={
                **clean_environment(),
                "PYTHONFAULTHANDLER": "1",
                **extra,
                **(env or {}),
                **sanitizer_environment(),
            },
            cwd=cwd or tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            end_session_of(process)
            process.communicate()


@pytest.fixture
def run_app(start_program: Callable[..., subprocess.Popen]) -> Callable[..., Completed]:
    """run_app(source_or_path, *args, stdin=None, limit=60, **as start_program) -> Completed."""

    def run(
        source_or_path: str | Path,
        *args: str,
        stdin: str | None = None,
        limit: float = 60,
        **how: object,
    ) -> Completed:
        process = start_program(source_or_path, *args, **how)
        return finish(process, limit, stdin)

    return run


# ---- servers ---------------------------------------------------------------------------------


def serve(start: Callable[[], Server], stop: Callable[[Server], None]) -> Iterator[Server]:
    try:
        server = start()
    except Missing as missing:
        if IN_CI:
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    try:
        yield server
    finally:
        stop(server)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    yield from serve(postgres.start, postgres.stop)


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[Server]:
    yield from serve(mariadb.start, Server.stop)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    yield from serve(redis.start, Server.stop)


@pytest.fixture(scope="session")
def counting_server() -> Iterator[Server]:
    """Holds requests until enough are there at once: see servers/counting.py."""
    yield from serve(counting.start, Server.stop)


@pytest.fixture(scope="session")
def counting_tls_server() -> Iterator[Server]:
    """The same over TLS; `certificate` is the path of what to trust."""
    yield from serve(lambda: counting.start(tls=True), Server.stop)


@pytest.fixture(scope="session")
def ssh_server() -> Iterator[Server]:
    """`user` may log in with the key at `client_key`: see servers/sshd.py."""
    yield from serve(sshd.start, Server.stop)


@pytest.fixture(scope="session")
def ldap_server() -> Iterator[Server]:
    """Holds searches until enough are there at once: see servers/slapd.py."""
    yield from serve(slapd.start, slapd.stop)


@pytest.fixture(scope="session")
def nginx_server(counting_server: Server) -> Iterator[Server]:
    """Static pages, and the counting server behind /backend/."""
    yield from serve(lambda: nginx.start(counting_server.port), Server.stop)


@pytest.fixture(scope="session")
def tls_server() -> Iterator[Server]:
    """HTTPS: /page.txt, and certificate.pem in its folder."""
    yield from serve(tls.start, Server.stop)


@pytest.fixture(scope="session")
def git_server() -> Iterator[Server]:
    """A git daemon with repository.git."""
    yield from serve(git.start, Server.stop)
