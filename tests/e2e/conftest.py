"""What every test on the wire starts from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netlab import Lab
from tests.e2e.instance import Instance


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Client, proxy host and three backends, without offloads at the ends."""
    with Lab(offload=False, xdp_peers=True) as built:
        yield built


@pytest.fixture
def instance(lab: Lab) -> Iterator[Instance]:
    """A revproxy in the lab, without a configuration."""
    with Instance(lab) as made:
        yield made
