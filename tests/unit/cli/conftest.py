"""The command line with a client that answers as it is told."""

from __future__ import annotations

import pytest

from reconciler.cli.session import Session
from tests.unit.cli.fakeclient import FakeClient


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(Session, "client", lambda _: fake)
    return fake
