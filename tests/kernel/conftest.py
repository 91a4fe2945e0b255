"""Tests marked ``own_namespace`` run in a thread of their own, in a network namespace that ends with it.

Only the test function runs there; fixtures are set up and torn down in the main thread, which never moves.
"""

from __future__ import annotations

import threading

import pytest

from tests.kernel import network


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
