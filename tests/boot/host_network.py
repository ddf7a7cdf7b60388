"""The host's side of user-mode networking: whether it can be had, and a web server for guests."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from xenolith.loader import registry


def needs_user_network() -> None:
    """Skip the test where there is no user-mode networking."""
    if shutil.which("passt") is None and registry.tool("passt") is None:
        pytest.skip("passt is not on this host: install it, or run 'xenolith pull passt'")
    if not any(line.split()[1] == "00000000" for line in Path("/proc/net/route").read_text().splitlines()[1:]):
        pytest.skip("this host has no network, which passt needs")


@contextmanager
def serving(data: bytes) -> Iterator[int]:
    """A web server on the host's loopback, which has this one page; its port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
