"""What the demonstration shows, step by step. Each step ends with an exception if something it claims does not hold."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demonstration.stage import Stage, StepFailed
from netlab import PATIENCE
from netlab.process import Process
from netlab.servers import body_of

FILE = "config.d/10-web.yaml"
MISSPELT = re.compile(r"(\S*10-web\.yaml):(\d+):(\d+): unknown key 'prot'.*'port'")
DOWNLOAD_BYTES = 50_000_000
READ_BYTES, READ_PAUSE_SEC = 65536, 0.2 * PATIENCE  # so slowly that it takes minutes
ANSWER_SEC = f"{3 * PATIENCE:g}"
"""How long the client waits for an answer."""
REQUESTS = 60
WITHOUT_DAEMON = 40  # requests that have to be answered while none runs


class Traffic:
    """A loop of curl on the client, one connection a request. It ends at the first request that fails."""

    line = f"while curl -sSf -m {ANSWER_SEC} http://10.90.1.1/; do sleep {0.05 * PATIENCE:g}; done"

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.process: Process = stage.background("client", self.line)
        self.after(1)

    def answers(self) -> list[str]:
        """The backend of each answer so far."""
        return [line.split()[0] for line in self.process.output().splitlines() if line.startswith("backend")]

    def after(self, count: int) -> int:
        """Wait for ``count`` more answers; returns how many there were before."""
        before = len(self.answers())
        self._stage.wait(lambda: self._alive() and len(self.answers()) >= before + count, f"{count} more answers")
        return before

    def _alive(self) -> bool:
        if self.process.status is not None:
            tail = "\n".join(self.process.output().splitlines()[-3:])
            raise StepFailed(f"a request failed after {len(self.answers())} that were answered", tail)
        return True

    def verify(self, since: int, text: str) -> None:
        """Say how many requests were answered since, none failed."""
        count = len(self.answers()) - since
        self._stage.verify(self._alive() and count > 0, f"{text}: {count} requests answered, none failed")


class Download:
    """A long download by curl on the client. Its output is a pipe that is read slowly, so that it lasts until
    :meth:`verify_whole` reads the rest."""

    def __init__(self, stage: Stage, name: str) -> None:
        self._stage, self._read, self._hurry = stage, bytearray(), threading.Event()
        stage.client(f"mkfifo {name}")
        self._process = stage.background(
            "client",
            f"curl -sSf -D {name}.headers -o {name} http://10.90.1.1/bytes/{DOWNLOAD_BYTES}",
        )
        self._reader = threading.Thread(target=self._drain, args=(stage.directory / name,), daemon=True)
        self._reader.start()
        headers = stage.directory / f"{name}.headers"
        pattern = re.compile(r"^X-Backend: (\w+)\s*$", re.MULTILINE)
        stage.wait(lambda: headers.exists() and pattern.search(headers.read_text()), "the headers of the download")
        found = pattern.search(headers.read_text())
        self.backend = found[1] if found else ""

    def _drain(self, pipe: Path) -> None:
        with pipe.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                self._read += chunk
                self._hurry.wait(READ_PAUSE_SEC)

    def verify_running(self, text: str) -> None:
        """Say that it goes on, and is getting somewhere."""
        before = len(self._read)
        self._stage.wait(lambda: len(self._read) > before or not self.running, "more of the download")
        self._stage.verify(
            self.running, f"{text}: {len(self._read):,} of {DOWNLOAD_BYTES:,} bytes", self._process.output()
        )

    @property
    def running(self) -> bool:
        """It has not come to its end."""
        return self._process.status is None

    def verify_whole(self) -> None:
        """Wait for its end: every byte must have come, and from the backend that it began with."""
        self._hurry.set()
        self._stage.wait(lambda: not self.running and not self._reader.is_alive(), "the end of the download")
        self._stage.verify(
            self._process.status == 0 and self._read == body_of(self.backend, DOWNLOAD_BYTES),
            f"the download came to its end: {len(self._read):,} of {DOWNLOAD_BYTES:,} bytes, all of them"
            f" {self.backend}'s",
            f"curl ended with status {self._process.status}: {self._process.output()}",
        )


def start(stage: Stage) -> None:
    """revproxyd on an example configuration."""
    stage.proxy("ls config.d")
    stage.proxy("revproxyctl validate config.d")
    daemon = stage.start_daemon()
    stage.wait_log("commit_applied")
    stage.verify(daemon.status is None, "revproxyd runs, and has applied the files")
    shown = stage.proxy("revproxyctl status")
    status = stage.ask("revproxyctl status")
    stage.verify(status["sync"] == "Synced" and "Synced" in shown, "packets see what the files say", shown)
    attached = {each["name"] for each in status["interfaces"] if each["attached"]}
    stage.verify(attached == {"eth0", "eth1"}, "its programs are on eth0 (clients) and eth1 (targets)", status)


def traffic(stage: Stage) -> None:
    """traffic reaches the targets."""
    names = [backend.name for backend in stage.lab.backends]
    answer = stage.client(f"curl -sSf -m {ANSWER_SEC} http://10.90.1.1/hello")
    stage.verify(
        re.match(r"backend\d 10\.90\.2\.\d+:8080 /hello from 10\.90\.1\.2:\d+$", answer),
        "a backend answered, and it sees the client's own address",
        answer,
    )
    spread = _spread(stage, "http://10.90.1.1/", f"{{1..{REQUESTS}}}")
    stage.verify(
        sorted(spread) == names and spread.total() == REQUESTS,
        f"all {REQUESTS} requests were answered, each of the {len(names)} targets has its share (weights 2, 2, 1)",
        spread,
    )
    spread = _spread(stage, "http://[fd90:1::1]/", "{1..30}")
    stage.verify(spread.total() == 30 and len(spread) == 2, "IPv6 goes to the two IPv6 targets", spread)
    answer = stage.client(f"exec 3<>/dev/udp/10.90.1.1/53; echo hello >&3; timeout {ANSWER_SEC} head -n 1 <&3")
    stage.verify(re.match(r"backend[12] 10\.90\.1\.2:\d+ hello$", answer), "UDP comes and goes as well", answer)
    stage.lab.client.ip("address add 10.90.1.66/24 dev eth0")  # an address that the files deny
    stage.client(f"curl -sS -m {PATIENCE:g} --interface 10.90.1.66 http://10.90.1.1/", status=28)
    denied = stage.ask("revproxyctl stats")["drops"]["denied"]
    stage.verify(denied > 0, f"a client that the files deny gets no answer ({denied} packets dropped)")


def _spread(stage: Stage, url: str, repeat: str) -> Counter[str]:
    """Ask many times, and count which backend answered how often."""
    one = f"curl -sSf -m {ANSWER_SEC} {url}"
    shown = stage.client(f"for i in {repeat}; do {one}; done | cut -d ' ' -f 1 | sort | uniq -c")
    return Counter({name: int(count) for count, name in (line.split() for line in shown.splitlines())})


def edit(stage: Stage) -> None:
    """an edit goes live under a long download."""
    names = [backend.name for backend in stage.lab.backends]
    before = stage.ask("revproxyctl status")["revision"]
    loop = Traffic(stage)
    download = Download(stage, "download")
    gone = next(backend for backend in stage.lab.backends if backend.name == download.backend)
    stage.screen.text(
        f"The download (read slowly, so that it lasts) comes from {gone.name}. That is the target to be taken out of"
        " the file. First a look at what it would mean: for that revproxyd is ended, which would apply the edit at"
        " once. Packets don't need it."
    )
    daemon = stage.daemon
    since = loop.after(1)
    stage.proxy('kill "$(cat run/revproxyd.pid)"')
    stage.wait_log("data_plane_left")
    stage.wait(lambda: daemon and daemon.status is not None, "the end of revproxyd")
    stage.proxy(f"sed -i '/- {{ip: {gone.ip4},/d' {FILE}")
    shown = stage.proxy("revproxyctl diff", status=1)
    target = f"web/{gone.ip4}:8080"
    stage.verify(f"delete target {target}" in shown, f"the diff names the target: {target}", shown)
    shown = stage.proxy("revproxyctl plan")
    stays = rf"live connections of web to {re.escape(target.partition('/')[2])} stay where they are"
    stage.verify("Switch" in shown and re.search(stays, shown), "the plan says what becomes of its connections", shown)
    loop.after(1)
    loop.verify(since, "nothing has changed for the clients")
    stage.start_daemon()
    stage.wait_log("commit_applied")
    download.verify_running("the edit is live, and the download goes on")
    spread = _spread(stage, "http://10.90.1.1/", "{1..30}")
    stage.verify(
        set(spread) == set(names) - {gone.name} and spread.total() == 30,
        f"new connections go to the others, none to {gone.name}",
        spread,
    )
    shown = stage.proxy(f"revproxyctl connections --target {gone.ip4}:8080 | grep -E 'CLIENT|established'")
    stage.verify(f"{gone.ip4}:8080" in shown, "the download's connection is still there", shown)
    download.verify_whole()
    loop.verify(since, "all along")
    status = stage.ask("revproxyctl status")
    stage.verify(
        status["sync"] == "Synced" and status["revision"] == before + 1,
        f"Synced, revision {status['revision']}",
        status,
    )
    loop.process.kill()


def broken(stage: Stage) -> None:
    """a broken file is refused, and traffic goes on."""
    revision = stage.ask("revproxyctl status")["revision"]
    loop = Traffic(stage)
    since = loop.after(1)
    stage.proxy(f"sed -i '0,/port: 8080/s//prot: 8080/' {FILE}")
    stage.wait_log("config_held")
    shown = stage.proxy("revproxyctl validate config.d", status=1)
    found = MISSPELT.search(shown)
    line, column = (int(found[2]), int(found[3])) if found else (0, 0)
    lines = (stage.directory / FILE).read_text().splitlines()
    stage.verify(
        line and lines[line - 1][column - 1 :].startswith("prot:"),
        f"the error is where it says: line {line}, column {column}",
        shown,
    )
    stage.proxy("revproxyctl status | sed -n 1,5p", status=1)
    status = stage.ask("revproxyctl status")
    stage.verify(
        status["sync"] == "Degraded" and status["revision"] == revision and _error_at(status, line, column),
        f"revision {revision} is held",
        status,
    )
    loop.after(20)
    loop.verify(since, "meanwhile")
    stage.screen.text("The file as it was first, target and all. Saving it is enough.")
    stage.proxy(f"cp {_original(stage)} config.d/")
    stage.wait_log("commit_applied")
    status = stage.ask("revproxyctl status")
    stage.verify(
        status["sync"] == "Synced" and status["revision"] == revision + 1,
        f"Synced, revision {status['revision']}",
        status,
    )
    names = {backend.name for backend in stage.lab.backends}
    position = len(loop.answers())
    stage.wait(lambda: loop.after(1) and set(loop.answers()[position:]) == names, "an answer from each backend")
    loop.verify(since, "all targets answer again")
    loop.process.kill()


def _error_at(status: dict[str, Any], line: int, column: int) -> bool:
    return any((each["line"], each["column"]) == (line, column) for each in status["errors"])


def _original(stage: Stage) -> Path:
    return stage.config / Path(FILE).name


def kill(stage: Stage) -> None:
    """kill -9."""
    daemon = stage.daemon
    revision = stage.ask("revproxyctl status")["revision"]
    opened = stage.ask("revproxyctl stats")["opened"]
    programs = _programs(stage)
    loop = Traffic(stage)
    download = Download(stage, "second")
    since = loop.after(1)
    stage.proxy('kill -9 "$(cat run/revproxyd.pid)"')
    stage.wait(lambda: daemon and daemon.status is not None, "the end of revproxyd")
    stage.verify(daemon and daemon.status in (-9, 137), "revproxyd is dead")
    without = loop.after(WITHOUT_DAEMON)
    loop.verify(without, "without any revproxyd")
    shown = stage.proxy("revproxyctl status | sed -n 1,3p")
    stage.verify("not running" in shown and "Synced" in shown, "revproxyctl works without it", shown)
    stage.start_daemon()
    stage.wait_log("state_adopted")
    download.verify_running("it adopted what it found, and a download that began before goes on")
    stage.verify(
        _programs(stage) == programs and stage.ask("revproxyctl stats")["opened"] > opened,
        f"nothing was replaced: the same programs ({', '.join(programs)}), counters went on",
        f"before: {programs}, now: {_programs(stage)}",
    )
    status = stage.ask("revproxyctl status")
    stage.verify(
        status["sync"] == "Synced" and status["revision"] == revision, f"Synced, still revision {revision}", status
    )
    download.verify_whole()
    loop.verify(since, "all along")
    loop.process.kill()


def _programs(stage: Stage) -> list[str]:
    """What of BPF is attached to the proxy host's interfaces: ``eth0 ingress program 17``."""
    found = []
    for interface in stage.lab.proxy_interfaces:
        for side in ("ingress", "egress"):
            filters = stage.lab.proxy.run("tc", "-json", "filter", "show", "dev", interface, side).stdout
            ids = re.findall(r'"prog":\{"id":(\d+)', filters.replace(" ", ""))
            found += [f"{interface} {side} program {number}" for number in ids]
        for link in json.loads(stage.lab.proxy.run("ip", "-json", "link", "show", "dev", interface).stdout):
            if "xdp" in link:
                found.append(f"{interface} XDP program {link['xdp']['prog']['id']}")
    return found


def down(stage: Stage) -> None:
    """down leaves nothing behind."""
    daemon = stage.daemon
    stage.verify(_programs(stage), "before: " + ", ".join(_programs(stage)))
    stage.proxy("revproxyctl down")
    stage.wait(lambda: daemon and daemon.status is not None, "the end of revproxyd")
    stage.verify(daemon and daemon.status == 0, "revproxyd has ended, too")
    shown = stage.proxy("tc filter show dev eth0 ingress; tc filter show dev eth0 egress; tc qdisc show clsact")
    stage.verify(not shown.strip(), "no filter, no qdisc")
    stage.proxy('ls "$REVPROXY_BPFFS_DIR"', status=2)
    try:
        stage.lab.assert_clean(stage.bpffs_dir)
    except AssertionError as error:
        raise StepFailed(str(error)) from error
    stage.verify(
        not stage.bpffs_dir.exists(),
        "no XDP program, no TC program, no pin; forwarding settings as they were before",
        stage.bpffs_dir,
    )
    stage.client(f"curl -sS -m {ANSWER_SEC} http://10.90.1.1/", status=7)
    stage.verify(True, "port 80 is the host's own again, where nothing listens")


STEPS: tuple[Callable[[Stage], None], ...] = (start, traffic, edit, broken, kill, down)
