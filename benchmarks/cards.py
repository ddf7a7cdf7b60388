"""Network cards of a control domain, at user-mode networking: our models against QEMU's own under Xen."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks import console, peer, programs
from benchmarks.common import Metric, Report, contend
from benchmarks.console import RunFailed
from benchmarks.devices import durations
from benchmarks.meter import Meter

_FETCH = Metric("fetching by HTTP", "MiB/s", more_is_better=True)
_ROUND_TRIPS = Metric("200 round trips of TCP", "s")
_FETCH_WORK = Metric("processor time of fetching", "s")
_ROUND_TRIPS_WORK = Metric("processor time of round trips", "s")
_METRICS = (_FETCH, _FETCH_WORK, _ROUND_TRIPS, _ROUND_TRIPS_WORK)
_MIB = 24
"""What is fetched, as guest/measure.sh has it."""
_SECONDS = 180
_PEER_SECONDS = 600
_OURS = {"virtio-net": "virtio-net,user", "e1000e": "e1000e,user"}
_QEMUS = {"virtio-net": "virtio-net-pci,disable-legacy=on,netdev=net", "e1000e": "e1000e,netdev=net"}


def run(runs: int) -> Report:
    """Has a control domain fetch from the host and talk to it, `runs` times with each card on each side."""
    pairs = tuple((f"{peer.XENOLITH} {model}", f"{peer.XEN}, {model}") for model in _OURS)
    report = Report("cards", "How fast are dom0's network cards?", _METRICS, pairs)
    contend(report, _OURS, _xenolith, _qemu, runs)
    report.notes.append("behind the card are passt here and QEMU's libslirp there")
    return report


def _xenolith(model: str) -> Mapping[str, float]:
    with _host() as words:
        return _figures(peer.xenolith_linux("boot", programs.card_ramdisk(), words, "--device", _OURS[model]), _SECONDS)


def _qemu(model: str) -> Mapping[str, float]:
    with _host() as words:
        command = peer.xen_command(programs.card_ramdisk(), words)
        return _figures([*command, "-netdev", "user,id=net", "-device", _QEMUS[model]], _PEER_SECONDS)


def _figures(command: list[str], limit: float) -> Mapping[str, float]:
    meter = Meter()
    session = console.run(command, timeout=limit, watch=meter.look)
    seconds = durations(session)
    if missing := {"fetch", "round trips"} - seconds.keys():
        session.find(f"BEGIN {min(missing)}")
        raise RunFailed(f"'{min(missing)}' did not end")
    begun = {part: session.when(f"BEGIN {part}") for part in seconds}
    work = {part: meter.at(begun[part] + seconds[part]) - meter.at(begun[part]) for part in seconds}
    return {
        _FETCH.name: _MIB / seconds["fetch"],
        _FETCH_WORK.name: work["fetch"],
        _ROUND_TRIPS.name: seconds["round trips"],
        _ROUND_TRIPS_WORK.name: work["round trips"],
    }


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(_MIB << 20))
        self.end_headers()
        self.wfile.write(bytes(_MIB << 20))

    def log_message(self, *words: object) -> None: ...


class _Echo(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


@contextlib.contextmanager
def _host() -> Iterator[str]:
    """Servers on the host's loopback, and the words that tell a guest of them."""
    local = ("127.0.0.1", 0)
    with ThreadingHTTPServer(local, _Page) as pages, socketserver.ThreadingTCPServer(local, _Echo) as echo:
        for server in (pages, echo):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"measure=card ports={pages.server_address[1]},{echo.server_address[1]} end"
        for server in (pages, echo):
            server.shutdown()
