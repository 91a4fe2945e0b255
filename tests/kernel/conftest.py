"""The data plane that tests of the programs share, and tests in a network namespace of their own.

Of a test marked ``own_namespace`` only the function runs there, in a thread that ends with it; fixtures are set up and
torn down in the main thread, which never moves.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.kernel import network
from tests.kernel.dataplane import DataPlane, dest
from tests.kernel.flowing import LISTEN, OTHER_TARGET, TARGET


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_namespace: the test runs in a new network namespace with only lo, up")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a marked test in its own namespace."""
    if not pyfuncitem.get_closest_marker("own_namespace"):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    failure: list[BaseException] = []

    def run() -> None:
        try:
            network.enter_new_namespace()
            pyfuncitem.obj(**arguments)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name=pyfuncitem.name)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return True


@pytest.fixture(scope="module")
def _plane() -> Iterator[DataPlane]:
    plane = DataPlane(f"rpdp-{os.getpid()}")
    for ifname in ("cli", "srv"):
        plane.device(ifname)
    yield plane
    plane.close()


@pytest.fixture
def plane(_plane: DataPlane) -> DataPlane:
    """Proxy 1 on port 80 of ``cli``, both families and protocols, to target 1 (IPv4) and 2 (IPv6), port 8080."""
    _plane.settings()
    _plane.switch(0)
    for version in (4, 6):
        for protocol in (6, 17):
            _plane.listener("cli", LISTEN[version], 80, protocol, 1)
    _plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2))
    _plane.target(1, TARGET[4], 8080)
    _plane.target(2, TARGET[6], 8080)
    _plane.target(3, OTHER_TARGET[4], 8080)
    _plane.target(4, OTHER_TARGET[6], 8080)
    return _plane
