"""Another ``max_connections`` while there are connections: which of them the new tables take over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reconciler import resources
from reconciler.errors import CrowdedError
from reconciler.kernel import layout
from reconciler.kernel.arrays import Array
from reconciler.kernel.conntable import over
from reconciler.kernel.maps import Maps
from reconciler.kernel.program import Programs
from reconciler.kernel.resize import carry_over, entries_for
from reconciler.kernelclock import monotonic_ns
from reconciler.state.operations import LoadProgram
from tests.kernel.kernelmaps import connection_entry, connection_tables, private_maps

pytestmark = pytest.mark.root

ANY, SYN, FIN, RST, PLAIN = (layout.CONSTANTS[f"HEARD_{name}"] for name in ("ANY", "SYN", "FIN", "RST", "PLAIN"))
OPEN, OVER, UNANSWERED = (ANY | PLAIN, ANY | PLAIN), (ANY | PLAIN | FIN, ANY | PLAIN | FIN), (ANY | SYN, 0)
SECOND = 1_000_000_000
ENDS = {
    4: ("198.51.100.1:{}", "192.0.2.1:80", "10.0.0.1:8080"),
    6: ("[2001:db8::1]:{}", "[2001:db8::2]:80", "[fd00::1]:80"),
}


@pytest.fixture
def maps() -> Iterator[Maps]:
    with connection_tables() as found:
        yield found


def put(
    maps: Maps, first_port: int, count: int, heard: tuple[int, int], *, version: int = 4, idle_sec: int = 0
) -> None:
    """Connections from these ports, the last packet of each so long ago."""
    client, listen, target = ENDS[version]
    now = monotonic_ns() - idle_sec * SECOND
    for port in range(first_port, first_port + count):
        keys, values = connection_entry(version, client.format(port), listen, target, heard=heard, times_ns=(now, now))
        maps[f"connection{version}"].put_many(keys, values)


def resize(maps: Maps, max_connections: int) -> None:
    """Put tables of another size in place of those that are there, by programs that nothing runs."""
    programs = Programs(maps, resources.bpf_dir())
    operation = LoadProgram(None, programs.wanted(max_connections))
    try:
        programs.stage(operation)
        programs.finish(operation)
    except BaseException:
        programs.undo(operation)
        raise
    finally:
        programs.close()
        programs.remove()


def ports(keys: Array, values: Array) -> list[int]:
    """The clients' ports of connections, which have entries of both directions."""
    reply = values["c"]["flags"] & layout.CONSTANTS["CONNECTION_REPLY"] != 0
    there = sorted(keys["sport_be"][~reply].tolist())
    assert sorted(keys["dport_be"][reply].tolist()) == there
    return there


@pytest.mark.parametrize("version", [4, 6])
def test_established_ones_stay_and_new_ones_as_far_as_there_is_room(maps: Maps, version: int) -> None:
    put(maps, 100, 20, OVER, version=version)
    put(maps, 200, 8, OPEN, version=version)
    put(maps, 300, 20, UNANSWERED, version=version)
    put(maps, 400, 20, OPEN, version=version, idle_sec=61)
    kept = ports(*entries_for(maps, version, 20))
    assert len(kept) == 10
    assert set(range(200, 208)) < set(kept) < {*range(200, 208), *range(300, 320)}


@pytest.mark.parametrize("version", [4, 6])
def test_all_that_are_established_stay(maps: Maps, version: int) -> None:
    put(maps, 100, 9, OVER, version=version)
    put(maps, 200, 11, OPEN, version=version)
    with pytest.raises(CrowdedError, match=f"^max_connections: 11 IPv{version} connections are established") as raised:
        entries_for(maps, version, 20)
    assert raised.value.transient
    assert ports(*entries_for(maps, version, 22)) == [*range(200, 211)]


def test_both_directions_stay_where_only_one_has_heard_of_it(maps: Maps) -> None:
    """Another CPU may be about to note in the other entry what its packet told."""
    put(maps, 100, 9, OVER)
    keys, values = connection_entry(4, ENDS[4][0].format(200), *ENDS[4][1:], heard=OPEN, times_ns=(monotonic_ns(),) * 2)
    values["c"][["own", "peer"]][1] = (ANY, ANY)
    maps["connection4"].put_many(keys, values)
    assert ports(*entries_for(maps, 4, 2)) == [200]


def test_what_fits_is_taken_over_as_it_is(maps: Maps) -> None:
    put(maps, 100, 3, OVER)
    put(maps, 300, 3, OPEN, idle_sec=61)
    assert ports(*entries_for(maps, 4, 12)) == [*range(100, 103), *range(300, 303)]


def test_the_programs_come_with_tables_of_their_size(maps: Maps) -> None:
    """If they have no room, nothing is changed; if they have, what is over leaves it to new connections."""
    put(maps, 100, 20, OVER)
    put(maps, 200, 3, OPEN)
    before = maps["connection4"].max_entries
    with pytest.raises(CrowdedError):
        resize(maps, 2)
    assert maps["connection4"].max_entries == before
    assert not list(maps.directory.glob("*_next"))
    resize(maps, 4)
    assert maps.max_connections == 4
    assert ports(*maps["connection4"].items()) == [200, 201, 202]


def test_late_ones_that_are_established_come_first(maps: Maps) -> None:
    """Those that the old programs have opened after the tables were filled."""
    put(maps, 100, 5, OVER)
    put(maps, 200, 3, OPEN)
    put(maps, 300, 5, UNANSWERED)
    with private_maps() as other:
        other.remove()
        other.create(4)
        for _ in range(2):  # it can be repeated
            carry_over(maps["connection4"], other["connection4"])
            keys, values = other["connection4"].items()
            assert {200, 201, 202} <= set(keys["sport_be"].tolist())
            assert not over(values["c"]).any()
