"""A private nginx: static pages (/page0.html ...), and /backend/... passed on to another port."""

from __future__ import annotations

from .process import Folder, Server, find_program, free_port

CONFIGURATION = """
daemon off;
worker_processes 1;
user root;
error_log {folder}/error.log warn;
pid {folder}/pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type text/html;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {folder}/pages;
        location /backend/ {{
            proxy_pass http://127.0.0.1:{backend}/;
            proxy_http_version 1.1;
            proxy_read_timeout 120s;
        }}
    }}
}}
"""


def start(backend_port: int) -> Server:
    program = find_program("nginx", "nginx-light")
    folder = Folder()
    pages = folder.path / "pages"
    pages.mkdir()
    for number in range(20):
        (pages / f"page{number}.html").write_text(f"<p>page {number}</p>\n" * 50)
    port = free_port()
    configuration = folder.path / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(folder=folder.path, port=port, backend=backend_port)
    )
    server = Server(folder, [program, "-e", "stderr", "-c", str(configuration)], port)
    server.wait_until(server.accepts)
    return server
