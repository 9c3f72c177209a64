"""A private HTTPS server, OpenSSL's own: the files of its folder, one connection at a time."""

from __future__ import annotations

from .process import Folder, Server, find_program, free_port


def start() -> Server:
    openssl = find_program("openssl", "openssl")
    folder = Folder()
    folder.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", "key.pem", "-out", "certificate.pem",
        ]
    )  # fmt: skip
    (folder.path / "page.txt").write_text("".join(f"line {n}\n" for n in range(20_000)))
    port = free_port()
    command = [openssl, "s_server", "-accept", f"127.0.0.1:{port}", "-key", "key.pem"]
    server = Server(folder, [*command, "-cert", "certificate.pem", "-quiet", "-WWW"], port)
    server.wait_until(server.accepts)
    return server
