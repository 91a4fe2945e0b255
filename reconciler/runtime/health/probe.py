"""One check of one address and port, from the network namespace of the calling thread.

A TCP check connects and lets go at once (by RST, so that nothing is left in TIME_WAIT). An HTTP check sends a GET and
reads the status line; what follows it is read for a moment, so that a server that is still writing is not cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import struct
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from reconciler import __version__
from reconciler.config.healthcheck import CheckType, HealthCheck
from reconciler.state.objects import IPAddress

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r?\n")
_LONGEST_STATUS_LINE: Final = 4096
_REST_BYTES: Final = 65536
_REST_SEC: Final = 0.2
_NO_LINGER: Final = struct.pack("ii", 1, 0)


async def probe(ip: IPAddress, port: int, check: HealthCheck) -> str | None:
    """None if the check went well, else why not, in words. Takes little longer than the check's timeout at most."""
    try:
        async with asyncio.timeout(check.timeout_ms / 1000) as deadline:
            if check.type is CheckType.TCP:
                await _tcp(ip, port)
                return None
            return await (_https if check.type is CheckType.HTTPS else _http)(ip, port, check, deadline)
    except TimeoutError:
        return f"no answer within {check.timeout_ms} ms"
    except ssl.SSLCertVerificationError as error:
        return f"certificate: {error.verify_message}"
    except ssl.SSLError as error:
        return f"TLS: {error.reason or error}"
    except OSError as error:
        return (os.strerror(error.errno) if error.errno else str(error)).lower()


def _socket(ip: IPAddress) -> socket.socket:
    made = socket.socket(
        socket.AF_INET if ip.version == 4 else socket.AF_INET6,
        socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    return made


async def _tcp(ip: IPAddress, port: int) -> None:
    with contextlib.closing(_socket(ip)) as client:
        await asyncio.get_running_loop().sock_connect(client, (str(ip), port))


async def _http(ip: IPAddress, port: int, check: HealthCheck, deadline: asyncio.Timeout) -> str | None:
    loop = asyncio.get_running_loop()
    with contextlib.closing(_socket(ip)) as client:
        await loop.sock_connect(client, (str(ip), port))
        await loop.sock_sendall(client, request(ip, port, check))
        content = b""
        while b"\n" not in content and len(content) < _LONGEST_STATUS_LINE:
            more = await loop.sock_recv(client, 4096)
            if not more:
                break
            content += more
        result = judge(content, check)
        deadline.reschedule(loop.time() + _REST_SEC)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_REST_SEC / 2):
                read = len(content)
                while read < _REST_BYTES and (more := await loop.sock_recv(client, _REST_BYTES)):
                    read += len(more)
        return result


async def _https(ip: IPAddress, port: int, check: HealthCheck, _deadline: asyncio.Timeout) -> str | None:
    name = _host_name(check.host) if check.host else str(ip)
    reader, writer = await asyncio.open_connection(
        str(ip), port, ssl=_context(check.verify, check.ca_file), server_hostname=name, limit=_LONGEST_STATUS_LINE
    )
    try:
        writer.write(request(ip, port, check))
        try:
            line = await reader.readline()
        except ValueError:  # longer than any status line
            line = b"?"
        return judge(line, check)
    finally:
        writer.transport.abort()


def _context(verify: bool, ca_file: str | None) -> ssl.SSLContext:
    """Raises :class:`OSError` if the file can't be read, ssl.SSLError if it holds no certificate. One that was
    exchanged counts from the next check on."""
    if ca_file is None:
        return _tls(verify, None, ())
    found = os.stat(ca_file)  # noqa: PTH116  # of thousands of checks
    return _tls(verify, ca_file, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=64)
def _tls(verify: bool, ca_file: str | None, _version: tuple[int, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def request(ip: IPAddress, port: int, check: HealthCheck) -> bytes:
    """What an HTTP check sends."""
    host = check.host
    if host is None:
        address = f"[{ip}]" if ip.version == 6 else str(ip)
        default = 443 if check.type is CheckType.HTTPS else 80
        host = address if port == default else f"{address}:{port}"
    return (
        f"GET {check.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: revproxy/{__version__} (health check)\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n"
    ).encode("ascii")


def judge(content: bytes, check: HealthCheck) -> str | None:
    """What the beginning of an answer says: None if it is one of those expected, else why not."""
    if not content:
        return "connection closed without an answer"
    found = _STATUS_LINE.match(content)
    if found is None:
        return "the answer is no HTTP"
    return None if check.expects(int(found[1])) else f"HTTP status {int(found[1])}"


def _host_name(host: str) -> str:
    """Of a Host header, the part that a certificate is made out to."""
    with contextlib.suppress(ValueError):
        return str(ip_address(host.strip("[]")))
    bare, _, port = host.rpartition(":")
    return bare.strip("[]") if bare and port.isdecimal() else host
