"""Requests over the unix socket as bytes, without the client."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any


def raw(path: Path, request: bytes) -> tuple[int, Any]:
    """Send bytes, read until the server closes; status and JSON of the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else body


def post(path: Path, where: str, body: bytes) -> tuple[int, Any]:
    head = f"POST {where} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return raw(path, head.encode() + body)


def get(path: Path, where: str) -> tuple[int, Any]:
    return raw(path, f"GET {where} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
