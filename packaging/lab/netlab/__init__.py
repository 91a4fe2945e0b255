"""A test bed of network namespaces: a client, a proxy host and backends with real servers.

It knows nothing of the product it is a bed for. Tests, the demonstration and ``make lab`` build on it::

    with Lab() as lab:
        print(lab.curl("http://10.90.2.11:8080/"))
"""

from netlab.clients import EchoResult, ask_udp, connect, echo_tcp, http_connection
from netlab.lab import HTTP_PORT, TCP_PORT, UDP_PORT, Backend, Lab, lab_namespaces, remove_lab
from netlab.namespace import CommandError, Namespace, namespace_names
from netlab.process import Process
from netlab.wait import PATIENCE, wait_for

__all__ = [
    "HTTP_PORT",
    "PATIENCE",
    "TCP_PORT",
    "UDP_PORT",
    "Backend",
    "CommandError",
    "EchoResult",
    "Lab",
    "Namespace",
    "Process",
    "ask_udp",
    "connect",
    "echo_tcp",
    "http_connection",
    "lab_namespaces",
    "namespace_names",
    "remove_lab",
    "wait_for",
]
