"""Real servers for the backends: HTTP, TCP echo and UDP echo, standard library only. Runs as a program.

    servers.py --at backend1=10.90.2.11,fd90:2::11 --http 8080 --tcp 7000 --udp 7001

Each answers with the name of its backend, so that a client sees where it ended up. Prints ``ready`` once all listen.

HTTP ``GET``: any path gives a line ``NAME ADDRESS:PORT PATH from PEER``; ``/bytes/N`` N bytes at once; ``/slow/N/S``
N bytes spread over S seconds. Both bodies repeat the line ``NAME``. TCP echo: everything back until the end of the
stream. UDP echo: ``NAME PEER PAYLOAD``.
"""

from __future__ import annotations

import argparse
import socket
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = 65536
SLOW_STEP_SEC = 0.05


def text_of(address: tuple[str | int, ...]) -> str:
    """``10.0.0.1:80`` or ``[fd00::1]:80``."""
    return f"[{address[0]}]:{address[1]}" if ":" in str(address[0]) else f"{address[0]}:{address[1]}"


def body_of(name: str, size: int) -> bytes:
    """The body of a download from backend ``name``."""
    line = f"{name}\n".encode()
    return (line * (size // len(line) + 1))[:size]


class Http(BaseHTTPRequestHandler):
    """HTTP/1.1 with keep-alive."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    name: str

    def do_GET(self) -> None:
        """Answer as the module says."""
        match self.path.strip("/").split("/"):
            case ["bytes", size] if size.isdigit():
                self._send(int(size), 0.0)
            case ["slow", size, seconds] if size.isdigit():
                self._send(int(size), float(seconds))
            case _:
                here, peer = text_of(self.connection.getsockname()), text_of(self.client_address)
                self._start(line := f"{self.name} {here} {self.path} from {peer}\n".encode(), len(line))

    def _start(self, first: bytes, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(size))
        self.send_header("X-Backend", self.name)
        self.end_headers()
        self.wfile.write(first)

    def _send(self, size: int, seconds: float) -> None:
        body = body_of(self.name, size)
        steps = max(1, int(seconds / SLOW_STEP_SEC))
        step = max(1, -(-size // steps))
        self._start(body[:step], size)
        for start in range(step, size, step):
            time.sleep(seconds / steps)
            self.wfile.write(body[start : start + step])

    def log_message(self, format: str, *args: object) -> None:  # the base's name for it
        """Say nothing."""


class TcpEcho(socketserver.BaseRequestHandler):
    """Everything back, until the peer ends its side."""

    def handle(self) -> None:
        """One connection."""
        while chunk := self.request.recv(CHUNK):
            self.request.sendall(chunk)


class UdpEcho(socketserver.BaseRequestHandler):
    """One answer for each datagram."""

    name: str

    def handle(self) -> None:
        """One datagram."""
        payload, answering = self.request
        answering.sendto(f"{self.name} {text_of(self.client_address)} ".encode() + payload, self.client_address)


class TcpServer(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512


class UdpServer(socketserver.UDPServer):
    """Takes datagrams of any size."""

    max_packet_size = 65535


class HttpServer(ThreadingHTTPServer):
    """A thread for each connection; no name look-up at start."""

    request_queue_size = 512

    def server_bind(self) -> None:
        """Bind without asking for a host name, for which there is no server in a namespace."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


def start(server_class: type[socketserver.BaseServer], handler: type, name: str, address: str, port: int) -> None:
    """Listen on one address and port and serve in a thread."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = type(server_class.__name__, (server_class,), {"address_family": family})
    server = listening((address, port), type(handler.__name__, (handler,), {"name": name}))
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> None:
    """Start what the command line asks for, and serve until ended by a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--at", action="append", required=True, metavar="NAME=ADDRESS,...")
    parser.add_argument("--http", type=int, action="append", default=[], metavar="PORT")
    parser.add_argument("--tcp", type=int, action="append", default=[], metavar="PORT")
    parser.add_argument("--udp", type=int, action="append", default=[], metavar="PORT")
    options = parser.parse_args()
    kinds: list[tuple[type[socketserver.BaseServer], type, list[int]]] = [
        (HttpServer, Http, options.http),
        (TcpServer, TcpEcho, options.tcp),
        (UdpServer, UdpEcho, options.udp),
    ]
    for name, _, addresses in (at.partition("=") for at in options.at):
        for address in addresses.split(","):
            for server_class, handler, ports in kinds:
                for port in ports:
                    start(server_class, handler, name, address, port)
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
