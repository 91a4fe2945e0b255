"""Counting of live connections: by who asks, and by somebody who has counted them just now."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from reconciler.runtime.livetables import LiveTables
from reconciler.state.totals import Totals
from tests.kernel.kernelmaps import connection_entry, private_maps, small_arrays


@pytest.fixture
def tables() -> Iterator[LiveTables]:
    """With one connection, to target 2."""
    with small_arrays(), private_maps() as maps:
        now = time.monotonic_ns()
        keys, values = connection_entry(
            4, "198.51.100.1:1", "192.0.2.1:80", "10.0.0.1:80", ids=(1, 2), times_ns=(now, now)
        )
        maps["connection4"].put_many(keys, values)
        yield LiveTables(maps)


def test_what_somebody_has_counted_is_not_counted_again(tables: LiveTables) -> None:
    targets, use = tables.use()
    assert (targets, use.used) == ({2: 1}, 1)
    with tables.counted(Totals({2: 70, 3: 7}, 154)):
        targets, use = tables.use()
        assert (targets, use.used) == ({2: 70, 3: 7}, 154)
    assert tables.use()[0] == {2: 1}
