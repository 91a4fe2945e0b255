"""Each configuration that README.md shows, saved as it stands but for the servers' addresses, does on the wire what
is said of it; so does the example in config.d/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import netlab
from netlab import Lab, ask_udp, echo_tcp, wait_for
from netlab.lab import TCP_PORT
from reconciler import Client
from reconciler.errors import DaemonError
from tests.e2e.instance import PROGRAMS, Instance
from tests.readme import block

ROOT = Path(__file__).resolve().parents[2]
SERVERS = Path(netlab.__file__).with_name("servers.py")
ONE, TWO, THREE = "backend1", "backend2", "backend3"


@dataclass
class Host:
    """A proxy host whose daemon follows the files."""

    lab: Lab
    instance: Instance
    client: Client

    def live(self, change: Callable[[], object]) -> None:
        """Make a change to the files, and wait until a revision more is live."""
        before = self.client.status().revision
        change()
        wait_for(self._synced(before), "live", timeout_sec=30)

    def _synced(self, before: int) -> Callable[[], bool]:
        def synced() -> bool:
            found = self.client.status()
            assert found.sync == "Synced", found.errors
            return found.revision > before

        return synced

    def task(self, name: str) -> None:
        """Save what the README shows for a task, as the only file."""
        self.live(lambda: self.instance.write(self.here(block(f"task: {name}"))))

    def then(self, name: str) -> str:
        """Type what it says to type next; what that prints."""
        return self.shell(block(f"task: {name}, then"))

    def here(self, text: str) -> str:
        """With the lab's addresses for those of the README."""
        text = text.replace("10.0.0.", "10.90.2.").replace("2001:db8:1::", "fd90:2::")
        text = text.replace("203.0.113.10", str(self.lab.proxy4))
        return text.replace("/etc/revproxy/config.d", str(self.instance.config_dir))

    def shell(self, commands: str, cwd: Path = ROOT) -> str:
        env = {**self.instance.env, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
        command = self.lab.proxy.command("bash", "-e", "-c", self.here(commands))
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def asked(self, number: int = 1, *, source: str = "", url: str = "") -> Counter[str]:
        """Which backend answers how many of so many connections."""
        url = url or f"http://{self.lab.proxy4}/"
        words = ["--interface", source] if source else []
        script = f'for i in $(seq {number}); do curl -sSf -m 5 "$@"; done'
        printed = self.lab.client.run("bash", "-ec", script, "bash", *words, url, timeout_sec=60).stdout
        return Counter(line.split()[0] for line in printed.splitlines())

    def answer(self, url: str) -> str:
        return self.lab.curl(url)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lab(offload=False, xdp_peers=True) as lab, Instance(lab) as instance:
        at = [word for b in lab.backends for word in ("--at", f"{b.name}={b.ip4},{b.ip6}")]
        namespace = lab.backends[0].namespace
        ports = ("--http", "9090", "--tcp", "9091", "--udp", "53")
        lab.spawn(namespace, sys.executable, SERVERS, *at, *ports).wait_output("ready")
        local = ("--at", "local=127.0.0.1", "--http", "8080", "--tcp", "7000", "--udp", "7001")
        lab.spawn(lab.proxy, sys.executable, SERVERS, *local).wait_output("ready")
        for address in ("192.168.3.4", "192.168.7.7", "192.168.66.1", "192.168.66.6"):
            lab.add_client_address(address)
        instance.write("apiVersion: revproxy/v1\n")
        instance.start_daemon()
        places = {name: getattr(instance, name) for name in ("config_dir", "run_dir", "state_dir", "bpffs_dir")}
        yield Host(lab, instance, Client(**places))


@pytest.fixture(autouse=True)
def only_file(host: Host) -> Iterator[None]:
    yield
    for path in host.instance.config_dir.iterdir():
        if path.name != "web.yaml":
            path.unlink()
    host.instance.write(IDLE)
    with suppress(DaemonError):  # an interface that connections still need is left a look later
        host.client.apply()
    wait_for(lambda: host.client.status().sync == "Synced", "Synced", timeout_sec=30)


IDLE = """\
apiVersion: revproxy/v1
proxies:
  - {name: idle, listen: {interfaces: [eth0], port: 1}, default_target: {ip: 10.90.2.11}}
"""


def test_one_web_backend(host: Host) -> None:
    host.task("one web backend")
    assert host.asked(5) == {ONE: 5}
    assert f"from {host.lab.client4}:" in host.answer(f"http://{host.lab.proxy4}/")


def test_a_weighted_canary(host: Host) -> None:
    host.task("weighted canary")
    found = host.asked(120)
    assert set(found) == {ONE, TWO}
    assert found[ONE] > 2 * found[TWO]
    before = host.client.status().revision
    assert host.then("weighted canary").count("applied as revision") == 2
    assert host.client.status().revision == before + 2
    assert host.asked(10) == {TWO: 10}
    assert "# the canary" in (host.instance.config_dir / "web.yaml").read_text()


def test_blue_and_green(host: Host) -> None:
    host.task("blue and green")
    assert host.asked(5) == {ONE: 5}
    assert host.asked(3, source="192.168.7.7") == {TWO: 3}
    download = host.lab.spawn(
        host.lab.client, "curl", "-sSf", "--limit-rate", "1M", "-o", "/dev/null", f"http://{host.lab.proxy4}/slow/99/4"
    )
    wait_for(lambda: host.client.connection_count() > 0, "a connection to blue is open")
    switch, rollback, rest = block("task: blue and green, then").partition("revproxyctl rollback\n")
    assert rest == ""
    printed = host.shell(switch)
    assert "confirm" in printed
    assert host.asked(5) == {TWO: 5}
    assert download.wait(timeout_sec=30) == 0, "what was open stays with blue"
    host.shell(rollback)
    assert host.asked(5) == {ONE: 5}


def test_per_client_routing(host: Host) -> None:
    host.task("per-client routing")
    assert host.asked(3) == {ONE: 3}
    assert host.asked(3, source="192.168.3.4") == {TWO: 3}
    assert host.asked(3, source="192.168.66.6") == {THREE: 3}
    with pytest.raises(netlab.CommandError, match="timed out"):
        host.lab.curl(f"http://{host.lab.proxy4}/", "--interface", "192.168.66.1", timeout_sec=1)
    assert host.client.stats().drops["denied"] > 0
    assert host.client.test().failed == 0
    printed = host.shell(block("explain"))
    assert "192.168.0.0/16" in printed
    assert "10.90.2.12:8080" in printed


def test_dns_over_udp(host: Host) -> None:
    host.task("UDP DNS")
    found = {ask_udp(host.lab.client, (host.lab.proxy4, 53), b"who?").split()[0] for _ in range(10)}
    assert len(found) == 1, "a client stays with its server"
    assert found < {ONE, TWO}


def test_ipv6(host: Host) -> None:
    host.task("IPv6")
    assert host.asked(5) == {ONE: 5}
    assert host.asked(5, url=f"http://[{host.lab.proxy6}]/") == {TWO: 5}
    assert f"from [{host.lab.client6}]:" in host.answer(f"http://[{host.lab.proxy6}]/")


def test_full_nat_without_routes(host: Host) -> None:
    host.task("full NAT")
    behind = host.lab.backends[0].namespace
    behind.ip("route del default", "route del default via fd90:2::1")
    try:
        assert "from 10.90.2.1:" in host.answer(f"http://{host.lab.proxy4}/")
        assert host.answer(f"http://[{host.lab.proxy6}]/").startswith(TWO)
    finally:
        behind.ip("route add default via 10.90.2.1", "route add default via fd90:2::1")


def test_a_service_on_this_host(host: Host) -> None:
    host.task("local service")
    assert host.asked(3) == {"local": 3}
    with pytest.raises(netlab.CommandError, match="timed out"):
        host.lab.curl(f"http://{host.lab.proxy4}/", "--interface", "192.168.66.1", timeout_sec=1)


def test_several_interfaces_and_ports(host: Host) -> None:
    host.task("several interfaces")
    for port in (8080, 9090):
        for asking, address in ((host.lab.client, "10.90.1.1"), (host.lab.backends[0].namespace, "10.90.2.1")):
            words = ("curl", "-sSf", "-m", "5", f"http://{address}:{port}/")
            assert asking.run(*words).stdout.split()[0] in (ONE, TWO)


def test_checked_targets(host: Host) -> None:
    host.task("checked targets")
    wait_for(lambda: set(host.asked(20)) == {ONE, TWO}, "both answer")
    wait_for(lambda: {each.health for each in host.client.status().proxies[0].targets} == {"healthy"}, "healthy")
    drain, rest = block("task: checked targets, then").split("\n", 1)
    host.shell(drain)
    assert host.asked(10) == {ONE: 10}
    assert "healthy" in host.shell(rest)
    assert set(host.asked(20)) == {ONE, TWO}


def test_the_reference_of_every_key(host: Host) -> None:
    """All targets fail its health check here, so that all are used."""
    lab = host.lab
    address6 = "2001:db8::10"
    lab.add_proxy_address(address6)
    at = ("--at", f"port81={lab.backends[0].ip6}", "--http", "81")
    server = lab.spawn(lab.backends[0].namespace, sys.executable, SERVERS, *at)
    server.wait_output("ready")
    try:
        host.live(lambda: host.instance.write(host.here(block("reference"))))
        assert host.client.test().failed == 0
        found = host.asked(80)
        assert set(found) == {ONE, TWO}
        assert found[ONE] > found[TWO], "three times the share"
        assert host.asked(3, url=f"http://[{address6}]:81/") == {"port81": 3}, "the port that the client used"
        with pytest.raises(netlab.CommandError, match="timed out"):
            lab.curl(f"http://{lab.proxy4}:81/", "--interface", "192.168.66.1", timeout_sec=1)
        wait_for(lambda: "unhealthy" in {each.health for each in host.client.status().proxies[0].targets}, "checked")
    finally:
        server.kill()
        lab.proxy.ip(f"address del {address6} dev eth0")


def test_the_example_in_config_d(host: Host) -> None:
    """All its files together, as they stand."""

    def copy() -> None:
        (host.instance.config_dir / "web.yaml").unlink()
        for path in sorted((ROOT / "config.d").iterdir()):
            shutil.copy(path, host.instance.config_dir)

    host.live(copy)
    lab = host.lab
    found = host.asked(60)
    assert set(found) == {ONE, TWO, THREE}
    assert set(host.asked(20, url=f"http://[{lab.proxy6}]/")) == {ONE, TWO}
    lab.add_client_address("10.90.1.130")
    assert host.asked(3, source="10.90.1.130") == {THREE: 3}
    lab.add_client_address("10.90.1.66")
    with pytest.raises(netlab.CommandError, match="timed out"):
        lab.curl(f"http://{lab.proxy4}/", "--interface", "10.90.1.66", timeout_sec=1)
    for address in (lab.proxy4, lab.proxy6):
        assert ask_udp(lab.client, (address, 53), b"who?").split()[0] in (ONE, TWO)
    assert echo_tcp(lab.client, (lab.proxy4, TCP_PORT), 10_000).intact


def test_gitops_from_clone_to_rollback(host: Host, tmp_path: Path) -> None:
    """The blocks of the README with a repository in a directory, and the timer's command instead of the timer."""
    user = "git config --global user.name x; git config --global user.email x@example.net\n"
    user += "git config --global init.defaultBranch main\n"
    home, origin = tmp_path / "home", tmp_path / "edge.git"
    home.mkdir()
    host.instance.env["HOME"] = str(home)
    config_dir = host.instance.config_dir
    try:
        first = host.here(block("task: one web backend"))
        (tmp_path / "web.yaml").write_text(first)
        host.shell(
            f"{user} git init -q --bare {origin}; git clone -q {origin} first 2>&1; cp web.yaml first/; cd first;"
            " git add .; git commit -qm one; git push -q",
            tmp_path,
        )

        def use_clone() -> None:
            host.shell(f"git clone -q {origin} {tmp_path}/clone; mv {config_dir} {config_dir}.old", tmp_path)
            config_dir.symlink_to(tmp_path / "clone")

        def pull() -> None:
            host.shell("git pull --ff-only --quiet", config_dir)

        host.live(use_clone)
        assert host.asked(3) == {ONE: 3}
        change = block("git: change").replace("https://git.example/edge.git", str(origin))
        assert "valid: 1 proxy in 1 file" in host.shell(change, tmp_path)
        host.live(pull)
        assert host.asked(3) == {TWO: 3}
        # What connections of the task before went through is taken away once they are over.
        wait_for(lambda: host.client.status().sync == "Synced", "synced", timeout_sec=20)
        looked = host.shell(block("git: look"))
        commit = host.shell("git rev-parse HEAD", config_dir).strip()
        assert host.client.status().commit == commit
        assert commit[:7] in looked
        assert "Move web to the new server" in looked
        host.shell(block("git: revert"), tmp_path / "edge")
        host.live(pull)
        assert host.asked(3) == {ONE: 3}
        host.shell(block("git: rollback"))
        assert host.asked(3) == {TWO: 3}
        assert host.client.status().sync == "OutOfSync"
    finally:
        if config_dir.is_symlink():
            config_dir.unlink()
            Path(f"{config_dir}.old").rename(config_dir)
