"""What a machine's report comes to, and which kernel is taken for what was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm import __main__ as command
from tests.vm import fetch, images, results
from tests.vm.machine import Machine, MachineError

RELEASES = ["5.10.0-46-amd64", "6.1.0-9-amd64", "6.1.0-50-amd64", "6.12.95+deb12-amd64", "7.3.4+deb13-amd64"]


@pytest.mark.parametrize(
    ("wanted", "release"),
    [
        ("6.1", "6.1.0-50-amd64"),
        ("6.12", "6.12.95+deb12-amd64"),
        ("newest", "7.3.4+deb13-amd64"),
        ("5.10", RELEASES[0]),
    ],
)
def test_the_newest_of_a_series_is_taken(wanted: str, release: str) -> None:
    assert fetch.choose(RELEASES, wanted) == release


def test_a_kernel_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(fetch.Unavailable, match=r"no Linux 5.15; it has 5.10, 6.1, 6.12, 7.3"):
        fetch.choose(RELEASES, "5.15")


def test_every_line_of_the_list_is_a_test_that_is_there() -> None:
    listed = results.features() | results.features(too_old=True)
    assert all(listed.values())
    assert list(results.features(too_old=True)) == [results.REFUSAL]
    for selection in (each for tests in listed.values() for each in tests):
        path, _, name = selection.removeprefix("--deselect=").partition("::")
        text = (images.CHECKOUT / path).read_text()
        assert not name or f"def {name}(" in text, selection


def test_a_test_that_did_not_end_has_failed(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    lines = [
        {"id": "a.py::one", "outcome": "started"},
        {
            "id": "a.py::one",
            "outcome": "passed",
            "seconds": 1,
            "reason": "",
            "properties": {"effort tc": "10 20 300", "ceilings": "8 9"},
        },
        {"id": "a.py::two[x]", "outcome": "started"},
        {"id": "b.py::three", "outcome": "skipped", "seconds": 0, "reason": "no such thing", "properties": {}},
    ]
    report.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    listed = {"first": ["a.py"], "second": ["a.py::two"], "third": ["b.py::three", "b.py::th"]}
    listed |= {"fourth": ["a.py::one"], "fifth": ["c.py"]}
    summary = results.summary(results.read_report(report), listed)
    assert summary["features"] == {
        "third": {"passed": 0, "failed": 0, "skipped": 1, "seconds": 0},
        "fourth": {"passed": 1, "failed": 0, "skipped": 0, "seconds": 1},
    }, "not those of which a test did not end"
    assert summary["not passed"] == {"a.py::two[x]": "it did not end", "b.py::three": "no such thing"}
    assert summary["effort"] == {"tc": [10, 20, 300]}
    assert summary["ceilings"] == [8, 9]


def test_a_kept_result_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"

    def result(minor: int, release: str, **features: int) -> dict[str, object]:
        effort = {"tc": [minor]} if "load" in features else {}
        about = {"order": [6, minor], "release": release, "not passed": {}}
        return about | {"features": features, "effort": effort, "ceilings": [minor] if effort else []}

    results.keep("new", result(12, "6.12.1", load=1, tc=1), path)
    results.keep("old", result(1, "6.1.1", load=1), path)
    results.keep("new", result(12, "6.12.1", tc=2), path)
    results.keep("old", result(1, "6.1.2", tc=2), path)
    assert list(json.loads(path.read_text()).values()) == [
        result(1, "6.1.2", tc=2),
        result(12, "6.12.1", load=1, tc=2),
    ], "other rows stay if they are of the same kernel; the oldest kernel comes first"


def test_the_initial_ram_disk_is_one_that_cpio_reads() -> None:
    content = b"".join(images._cpio({"dir": (0o40755, b""), "dir/file": (0o100644, b"hello")}))
    assert content.count(b"070701") == 3
    assert len(content) % 4 == 0
    fields = [int(content[6 + 8 * place : 14 + 8 * place], 16) for place in range(13)]
    assert fields[1] == 0o40755
    assert fields[11] == len("dir") + 1
    assert content[110:114] == b"dir\0"


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2.ko.xz kernel/lib/crc16.ko.xz\n"
        "kernel/fs/jbd2.ko.xz: kernel/lib/crc16.ko.xz\nkernel/lib/crc16.ko.xz:\n"
    )
    order = [path.name for path in images._modules(tmp_path, ["ext4", "built-in"])]
    assert order == ["crc16.ko.xz", "jbd2.ko.xz", "ext4.ko.xz"]


@pytest.mark.root
def test_without_root_it_says_so() -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(Path(results.HERE, "setup.sh"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "vm: this needs root\n")


def _machines(folder: Path, *words: str, mirror: str = "file:/nowhere") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REVPROXY_VM_DIR": str(folder), "REVPROXY_VM_MIRROR": mirror}
    command = [sys.executable, "-m", "tests.vm", *words]
    where = images.CHECKOUT
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)


def test_what_can_not_be_had_is_told_apart_from_what_failed(tmp_path: Path) -> None:
    done = _machines(tmp_path, "test", "--kernel", "6.1", "--no-record")
    assert done.returncode == 3
    assert "vm: apt-get update: " in done.stderr
    assert "REVPROXY_VM_MIRROR names another Debian mirror" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_client_of_the_archive_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FETCH_SEC", 0.1)
    with pytest.raises(fetch.Unavailable, match=r"^something: not done in 0.1 s"):
        fetch.fetched("something", ["sleep", "30"])


def test_a_row_that_is_not_there_starts_no_machine(tmp_path: Path) -> None:
    kernel = tmp_path / "kernels" / "6.1-amd64"
    kernel.mkdir(parents=True)
    (kernel / "release").write_text("6.1.0-1-amd64\n")
    done = _machines(tmp_path, "test", "--kernel", "6.1", "programs fly")
    assert done.returncode == 1
    assert "no row is named like that; there are: programs load; size and effort; " in done.stderr


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [([0, 0], 0), ([0, fetch.Unavailable("no mirror"), 0], 3), ([MachineError("it died"), 3, 0], 1), ([3, 1], 1)],
)
def test_every_machine_is_tried_whatever_comes_of_the_others(
    outcomes: list[int | Exception], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(outcomes)

    def tested(*_: object) -> int:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(command, "test", tested)
    machines = [Machine(tmp_path, str(number), "amd64") for number in range(len(outcomes))]
    assert command.test_all(machines, 1, [], record=False) == status
    assert left == []


def test_all_machines_are_for_tests_only(tmp_path: Path) -> None:
    done = _machines(tmp_path, "start", "--kernel", "all")
    assert done.returncode == 2
    assert "all machines at once can only be tested" in done.stderr
