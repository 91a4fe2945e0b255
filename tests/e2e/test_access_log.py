"""The access log of a running daemon, rotated under traffic."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from netlab import TCP_PORT, Lab, wait_for
from tests.e2e.instance import Instance, web
from tests.e2e.test_events import echo

ROUNDS = 60


def lines(*files: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


@pytest.mark.parametrize("how", ["SIGHUP", "renamed"])
def test_each_connection_is_a_line_over_a_rotation(lab: Lab, instance: Instance, how: str) -> None:
    target = f"{lab.backends[0].ip4}:{TCP_PORT}"
    instance.write(web(target, port=7, name="echo", settings="{stats_enabled: true}"))
    file, old = lab.directory / "access.log", lab.directory / "access.log.1"
    daemon = instance.start_daemon("--access-log", str(file))
    wait_for(lambda: "recording_started" in daemon.output(), "the recording")
    sent: dict[str, int] = {}
    for number in range(ROUNDS):
        client, size = echo(lab, lab.proxy4, 10 + number)
        sent[client] = size
        if number == ROUNDS // 2:
            wait_for(lambda: lines(file), "the first lines")
            file.rename(old)
            if how == "SIGHUP":
                daemon.send(signal.SIGHUP)
            wait_for(file.exists, "the new file")
    wait_for(lambda: len(lines(old, file)) >= ROUNDS, "a line for each")
    found = lines(old, file)
    assert {each["client"] for each in found} == set(sent)
    assert len(found) == ROUNDS
    assert lines(old)
    assert lines(file)
    for each in found:
        assert (each["proxy"], each["listen"], each["target"]) == ("echo", f"{lab.proxy4}:7", target)
        assert (each["protocol"], each["reason"]) == ("tcp", "fin")
        assert each["bytes_forward"] >= sent[each["client"]] + 40 * each["packets_forward"]
        assert each["time"].endswith("+00:00")
    instance.write(web(target, port=7, name="echo"))
    wait_for(lambda: "access_log_without_events" in daemon.output(), "a word that there is nothing to log")
