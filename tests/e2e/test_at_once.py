"""Several who want to change the kernel at once: one after the other, each whole, and none without a word."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from netlab import HTTP_PORT, Lab, wait_for
from tests.e2e.instance import Instance, web
from tests.e2e.watching import Requests


@pytest.fixture(scope="module")
def shared() -> Iterator[Instance]:
    with Lab(offload=False, xdp_peers=True) as lab, Instance(lab) as instance:
        yield instance


def http(instance: Instance, number: int) -> str:
    return web(f"{instance.lab.backends[number - 1].ip4}:{HTTP_PORT}")


def numbers(instance: Instance) -> list[tuple[int, str]]:
    return [(each["number"], each["result"]) for each in instance.json("history")]


def test_direct_applies_at_once(shared: Instance) -> None:
    """No daemon runs. The files change meanwhile: what is in force in the end is what one of the commands has read, and
    each one says of itself what it has done."""
    # Enough to do that a commit takes a while, in which another may get in between.
    clients = [f"  - {{source: 10.{number >> 8}.{number & 255}.0/24, action: deny}}" for number in range(500)]
    routes = "\n".join(["source_routes:", *clients])
    shared.apply(http(shared, 1))
    stop = threading.Event()

    def edit() -> None:
        number = 0
        while not stop.wait(0.4):
            number += 1
            target = f"{shared.lab.backends[number % 3].ip4}:{HTTP_PORT}"
            shared.write(web(target, extra=routes if number % 2 else ""))

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: shared.run("apply", "--yes", "--output", "json"), range(8)))
    finally:
        stop.set()
        editor.join()
    told = []
    for result in results:
        if result.returncode == 0:
            told.append(json.loads(result.stdout)["revision"])
        else:
            assert "another" in result.stderr or "in use" in result.stderr, result.stderr
            assert "Traceback" not in result.stderr
    assert told, "somebody got through"
    history = numbers(shared)
    applied = [number for number, result in history if result == "applied"]
    assert applied == sorted(set(applied)), "each number once, in their order"
    assert set(told) <= set(applied)
    shared.ctl("apply", "--yes")
    assert shared.run("diff").returncode == 0
    assert Requests(shared.lab).ask().startswith("backend")


def test_an_apply_while_the_daemon_commits(shared: Instance) -> None:
    """Both do the same work by the same worker: no request fails, and the last word of the files is in force."""
    lab = shared.lab
    shared.write(http(shared, 1))
    shared.start_daemon()
    failed, requests = [], Requests(lab)
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.02):
            try:
                requests.ask()
            except OSError as error:
                failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            for turn in range(6):
                shared.write(http(shared, 1 + turn % 3))
                results = list(pool.map(lambda _: shared.run("apply", "--yes"), range(3)))
                assert [each.returncode for each in results] == [0, 0, 0], [each.stderr for each in results]
    finally:
        stop.set()
        asking.join()
    assert not failed
    shared.wait_synced()
    wait_for(lambda: Requests(lab).ask().startswith("backend3"), "what the files say in the end")
    applied = [number for number, result in numbers(shared) if result == "applied"]
    assert applied == sorted(set(applied))
    assert shared.daemon is not None
    assert "look_failed" not in shared.daemon.output()
