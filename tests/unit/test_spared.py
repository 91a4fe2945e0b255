"""What the daemon does not load, and that what it does load works without."""

from __future__ import annotations

import subprocess
import sys

UNUSED = ("rich", "sqlite3", "pyroute2.ndb", "pyroute2.iproute")
EVERYTHING = (
    "reconciler.daemon.process, reconciler.daemon.loop, reconciler.daemon.network, reconciler.daemon.watcher, "
    "reconciler.daemon.exporter, reconciler.daemon.recorder, reconciler.api.server, reconciler.engine, "
    "reconciler.runtime.health.checker, reconciler.kernel.doctor, reconciler.kernel.monitor, reconciler.runtime.logs"
)


def said(code: str) -> str:
    """What a Python of its own says."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr


def test_what_the_daemon_never_uses_is_not_loaded() -> None:
    found = said(
        "from reconciler.spared import spare; spare(); import sys\n"
        f"import {EVERYTHING}\n"
        f"print([name for name in {UNUSED} if name in sys.modules])"
    )
    assert found == "[]\n"


def test_without_it_they_are() -> None:
    """Else the test above would say nothing."""
    found = said(f"import {EVERYTHING}, pyroute2, sys; print([name for name in {UNUSED} if name in sys.modules])")
    assert found == f"{list(UNUSED)}\n"


def test_an_internal_error_is_told_on_a_console_too() -> None:
    found = said(
        "from reconciler.spared import spare; spare()\n"
        "from reconciler.runtime import logs; import structlog, sys; logs.set_up('console', 'info')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: structlog.get_logger('x').exception('look_failed')\n"
        "import rich"
    )
    assert "look_failed" in found
    assert "ZeroDivisionError: division by zero" in found


def test_what_is_loaded_already_stays() -> None:
    found = said(
        "import pyroute2, rich; from reconciler.spared import spare; spare()\n"
        "import sys; print(sys.modules['pyroute2'] is pyroute2, sys.modules['rich'] is rich, pyroute2.IPRoute.__name__)"
    )
    assert found == "True True IPRoute\n"


def test_a_library_that_is_not_there_is_missed_by_who_needs_it() -> None:
    found = said(
        "from reconciler import spared; spared._only_what_is_imported_of('no_such_library'); import sys\n"
        "print('no_such_library' in sys.modules)"
    )
    assert found == "False\n"
