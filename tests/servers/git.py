"""A private git daemon: one repository, `repository.git`, with a history of its own."""

from __future__ import annotations

from .process import Folder, Server, find_program, free_port


def start() -> Server:
    git = find_program("git", "git")
    folder = Folder()
    files = folder.path / "files"
    repository = folder.path / "repository.git"
    me = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    folder.run([git, "init", "-q", "-b", "main", str(files)])
    for number in range(5):
        for name in range(40):
            text = "".join(f"{number} {name} {line}\n" for line in range(200))
            (files / f"file{name}").write_text(text)
        folder.run([git, "-C", str(files), "add", "."])
        folder.run([git, *me, "-C", str(files), "commit", "-q", "-m", f"commit {number}"])
    folder.run([git, "clone", "-q", "--bare", str(files), str(repository)])
    folder.run([git, "-C", str(repository), "update-server-info"])
    port = free_port()
    server = Server(
        folder,
        [
            git, "daemon", "--listen=127.0.0.1", f"--port={port}", f"--base-path={folder.path}",
            "--export-all", "--reuseaddr", str(folder.path),
        ],
        port,
    )  # fmt: skip
    server.wait_until(server.accepts)
    return server
