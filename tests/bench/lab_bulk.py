"""A bulk sender and its receiver, each a program of its own.

lab_bulk.py serve PORT              send to everybody who connects, as long as they take it
lab_bulk.py measure IP PORT SECONDS print how many bytes came in how many seconds, as JSON
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

CHUNK = 1 << 18
WARM_UP_SEC = 0.15


def serve(port: int) -> None:
    """Never returns."""
    listening = socket.create_server(("", port), backlog=64)
    print("ready", flush=True)
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=_send, args=(connection,), daemon=True).start()


def _send(connection: socket.socket) -> None:
    data = bytes(CHUNK)
    try:
        while True:
            connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        connection.close()  # the other side has enough


def measure(ip: str, port: int, seconds: float) -> dict[str, float]:
    """Receive for so long, after a warm-up. ``total``: bytes in all, ``bytes`` and ``seconds`` without the warm-up."""
    with socket.create_connection((ip, port), timeout=5) as connection:
        buffer = bytearray(CHUNK)
        start = begin = time.perf_counter()
        total = counted = 0
        while (now := time.perf_counter()) < start + WARM_UP_SEC + seconds:
            if now < start + WARM_UP_SEC:
                begin, counted = now, total
            total += connection.recv_into(buffer)
        return {"bytes": total - counted, "seconds": now - begin, "total": total}


def main() -> None:
    what, *words = sys.argv[1:]
    if what == "serve":
        serve(int(words[0]))
    else:
        print(json.dumps(measure(words[0], int(words[1]), float(words[2]))))


if __name__ == "__main__":
    main()
