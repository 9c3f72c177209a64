"""A private OpenSSH server: own host key, one key that may log in, as the user who runs the tests.

`server.client_key` is the path of that key; `server.user` the name to log in as. Where we are root it
needs the (empty) folder /run/sshd, which Debian makes at boot.
"""

from __future__ import annotations

import os
import pwd

from .process import Folder, Server, find_program, free_port

CONFIGURATION = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile {folder}/pid
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
MaxStartups 200
PrintMotd no
Subsystem sftp internal-sftp
"""


def start() -> Server:
    program = find_program("sshd", "openssh-server")
    keygen = find_program("ssh-keygen", "openssh-client")
    folder = Folder()
    if os.getuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    for name in ("host_key", "client_key"):
        path = str(folder.path / name)
        folder.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", path])
    port = free_port()
    configuration = folder.path / "sshd_config"
    configuration.write_text(CONFIGURATION.format(folder=folder.path, port=port))
    server = Server(folder, [program, "-D", "-e", "-f", str(configuration)], port)
    server.client_key = folder.path / "client_key"
    server.user = pwd.getpwuid(os.getuid()).pw_name
    server.wait_until(server.accepts)
    return server
