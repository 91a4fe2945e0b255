"""HTTPS checks of real TLS servers: whose certificates are believed, and what is said of the others."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import trustme

from netlab.namespace import Namespace

PROGRAM = """
import asyncio, json, shutil, ssl, sys
from ipaddress import ip_address
from reconciler.config.healthcheck import CheckType, HealthCheck
from reconciler.runtime.health.probe import probe

async def answer(reader, writer):
    await reader.readline()
    writer.write(b"HTTP/1.1 204 No Content\\r\\nConnection: close\\r\\n\\r\\n")
    writer.close()

async def main():
    certificates, cases = json.load(sys.stdin)
    ports, found = {}, []

    def made(host, verify, ca):
        return HealthCheck(CheckType.HTTPS, None, 1000, 5000, 2, 3, "/", ((204, 204),), host, verify, ca)

    for name, file in certificates.items():
        context = None
        if file:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(file)
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        ports[name] = server.sockets[0].getsockname()[1]
    for name, host, verify, ca in cases:
        found.append(await probe(ip_address("127.0.0.1"), ports[name], made(host, verify, ca)))
        if ca and ca.endswith("exchanged.pem"):
            shutil.copyfile(ca.replace("exchanged", "ca"), ca)
    print(json.dumps(found))

asyncio.run(main())
"""


def test_whose_certificates_are_believed(tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    past = datetime.now(UTC) - timedelta(days=1)
    made = {
        "good": ca.issue_cert("www.example.org", "127.0.0.1"),
        "expired": ca.issue_cert("www.example.org", not_after=past),
    }
    files: dict[str, str] = {"plain": ""}
    for name, certificate in made.items():
        files[name] = str(tmp_path / f"{name}.pem")
        certificate.private_key_and_cert_chain_pem.write_to_path(files[name])
    ours, theirs = tmp_path / "ca.pem", tmp_path / "other.pem"
    ca.cert_pem.write_to_path(ours)
    other.cert_pem.write_to_path(theirs)
    exchanged = tmp_path / "exchanged.pem"
    other.cert_pem.write_to_path(exchanged)
    www = "www.example.org"
    expected: list[tuple[tuple[str, str | None, bool, str | None], str | None]] = [
        (("good", www, True, str(ours)), None),
        (("good", f"{www}:8443", True, str(ours)), None),
        (("good", None, True, str(ours)), None),  # made out to the address as well
        (("good", "wrong.example.org", True, str(ours)), "certificate: Hostname mismatch"),
        (("good", www, True, str(theirs)), "certificate: unable to get local issuer certificate"),
        (("good", www, True, None), "certificate: unable to get local issuer certificate"),
        (("good", "wrong.example.org", False, None), None),
        (("expired", www, True, str(ours)), "certificate: certificate has expired"),
        (("expired", www, False, None), None),
        (("good", www, True, str(exchanged)), "certificate: unable to get local issuer certificate"),
        (("good", www, True, str(exchanged)), None),
        (("plain", www, True, str(ours)), "TLS: "),
        (("plain", www, False, None), "TLS: "),
    ]
    namespace = Namespace(f"rptls-{uuid4().hex[:6]}")
    namespace.create()
    try:
        namespace.ip("link set lo up")
        stdin = tmp_path / "stdin"
        stdin.write_text(json.dumps([files, [case for case, _ in expected]]))
        shell = ["sh", "-c", 'exec "$0" -c "$1" < "$2"', sys.executable, PROGRAM, str(stdin)]
        found = json.loads(namespace.run(*shell, timeout_sec=60).stdout)
    finally:
        namespace.delete()
    for (case, wanted), said in zip(expected, found, strict=True):
        assert (said is None) == (wanted is None), (case, said)
        assert said is None or said.startswith(str(wanted)), (case, said)
