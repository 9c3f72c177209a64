"""Start, await and end one server process. Everything here is bounded in time."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class Missing(Exception):
    """A server's program is not on this machine; the message names the Debian package."""


def find_program(name: str, package: str, *folders: str) -> str:
    """The path of a program, looked for in `folders`, PATH and the usual sbin folders."""
    search = os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which(name, path=search)
    if found is None:
        raise Missing(f"{name} not found: install the Debian package {package}")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def clean_environment() -> dict[str, str]:
    """This process's environment without what would change how a child Python or server runs."""
    dropped = ("PYTHON", "PORTALPATCH", "LD_PRELOAD", "PG", "MYSQL")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


class Folder:
    """A short path below /tmp (unix sockets allow 107 bytes), owned by the server's user."""

    def __init__(self, user: str | None = None) -> None:
        self.user = user if user is not None and os.getuid() == 0 else None
        self.path = Path(tempfile.mkdtemp(prefix="portalpatch-", dir="/tmp"))
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            os.chown(self.path, entry.pw_uid, entry.pw_gid)

    def as_user(self, command: Sequence[str]) -> list[str]:
        """`command` run as the folder's user, who servers insist on when we are root."""
        if self.user is None:
            return ["setpriv", "--pdeathsig", "KILL", *command]
        group = str(pwd.getpwnam(self.user).pw_gid)
        return [
            "setpriv", "--reuid", self.user, "--regid", group, "--clear-groups",
            "--pdeathsig", "KILL", *command,
        ]  # fmt: skip

    def run(self, command: Sequence[str], limit: float = 120) -> None:
        """Run a set-up command to its end; its output is in the error where it fails."""
        result = subprocess.run(
            self.as_user(command),
            cwd=self.path,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
        if result.returncode:
            raise RuntimeError(f"{command[0]} exited with {result.returncode}:\n{result.stdout}")

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Server:
    """One running server process. `stop()` ends it, by its pid, and removes its folder."""

    def __init__(self, folder: Folder, command: Sequence[str], port: int) -> None:
        self.folder = folder
        self.host = "127.0.0.1"
        self.port = port
        self.log = folder.path / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                folder.as_user(command),
                cwd=folder.path,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], object], limit: float = 60) -> None:
        """Call `ready` until it raises nothing; the log is in the error where it never does."""
        deadline = time.monotonic() + limit
        while True:
            try:
                ready()
                return
            except Exception as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log = self.log.read_text(errors="replace")
                    self.stop()
                    raise RuntimeError(f"server not ready ({error}); its log:\n{log}") from error
            time.sleep(0.05)

    def accepts(self) -> None:
        """Raise unless the port accepts a connection."""
        socket.create_connection((self.host, self.port), timeout=5).close()

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self.folder.remove()
