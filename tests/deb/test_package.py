"""The life of the package on a machine, in the order of the tests: installed, used, upgraded, removed, purged.

Run by packaging/test-deb.sh, which builds what it needs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netlab import Lab, wait_for
from reconciler.kernel import bpf
from tests.deb.conftest import Machine
from tests.e2e.instance import web
from tests.e2e.test_coexistence import XDP_PASS, pinned, xdp_id
from tests.readme import block

CONFIG = "/etc/revproxy/config.d/web.yaml"
# What dpkg, apt, man-db and systemd themselves keep about every package and unit there ever was.
_OTHERS = "/var/lib/dpkg /var/lib/apt /var/log /var/cache/apt /var/cache/man /var/cache/debconf"
_OTHERS += " /var/lib/systemd /var/tmp /tmp /root"
_SNAPSHOT = (
    "find / -xdev " + " ".join(f"-path '{each}' -prune -o" for each in (*_OTHERS.split(), "/etc/*-")) + " -print"
)


def servers(lab: Lab, port: int = 80) -> set[str]:
    return {lab.curl(f"http://{lab.proxy4}:{port}/").split()[0] for _ in range(20)}


def install(machine: Machine, deb: Path) -> str:
    """As the README says, without its questions."""
    build, apt = block("install").splitlines()
    assert build == "make deb", "which packaging/test-deb.sh has done"
    dist = machine.root / "root" / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
    shutil.copy(deb, dist / deb.name.replace("next", f"revproxy_{deb.stem}"))
    quiet = "apt-get --yes --no-install-recommends -o APT::Sandbox::User=root install"
    return machine.run(f"cd /root; {apt.replace('apt install', quiet)} 2>&1").stdout


@contextmanager
def requests(lab: Lab) -> Iterator[list[str]]:
    """Asks all the time; the list holds what failed, after one entry for each request answered."""
    ended, seen = threading.Event(), []

    def ask() -> None:
        while not ended.is_set():
            try:
                lab.curl(f"http://{lab.proxy4}/", timeout_sec=3)
                seen.append("")
            except RuntimeError as error:
                seen.append(str(error))
            time.sleep(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def before(machine: Machine) -> set[str]:
    """All files there were before the package came."""
    return set(machine.out(_SNAPSHOT).splitlines())


def users(machine: Machine) -> set[str]:
    return {line.split(":")[0] for line in machine.out("getent passwd; getent group").splitlines()}


def test_lintian_has_nothing_to_say(deb: Path) -> None:
    command = ["lintian", "--allow-root", "--info", "--display-info", "--pedantic", "--fail-on=warning,error", deb]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert not [line for line in done.stdout.splitlines() if line.startswith(("E:", "W:"))]


def test_install_brings_up_the_service_with_nothing_proxied(machine: Machine, deb: Path, before: set[str]) -> None:
    assert before
    assert "rror" not in install(machine, deb)
    assert machine.out("systemctl is-active revproxyd") == "active"
    assert machine.out("revproxyctl --version").split()[-1] == machine.out("dpkg-query -W -f '${Version}' revproxy")
    assert machine.out("systemctl is-enabled revproxyd") == "enabled"
    assert machine.run("systemctl is-enabled revproxy-gitpull.timer", status=1).stdout.strip() == "disabled"
    assert {"revproxy", "revproxy-git", "revproxy-read"} <= users(machine)
    assert machine.out("ls /etc/revproxy/config.d") == "example.yaml.disabled"
    assert machine.out("revproxyctl status | head -n 1").split() == ["sync:", "Synced"]
    assert machine.out("tc qdisc show | grep -c clsact || true") == "0"
    socket = "/run/revproxy/revproxyd-read.sock"
    waiting = f"until test -S {socket}; do sleep 0.1; done"
    assert machine.out(f"{waiting}; stat -c '%G %a' {socket}").strip() == "revproxy-read 660"


def test_the_units_are_as_systemd_wants_them(machine: Machine) -> None:
    units = "revproxyd.service revproxyd@edge.service revproxy-gitpull.service revproxy-gitpull.timer"
    done = machine.run(f"systemd-analyze verify {units}")
    assert done.stdout + done.stderr == ""
    for unit in ("revproxyd.service", "revproxyd@edge.service", "revproxy-gitpull.service"):
        machine.run(f"systemd-analyze security --threshold=20 {unit}")


def test_the_example_is_valid_once_it_is_on(machine: Machine) -> None:
    machine.run(
        "cp /etc/revproxy/config.d/example.yaml.disabled /root/example.yaml; revproxyctl validate /root/example.yaml"
    )
    schema = (machine.root / "root/example.yaml").read_text().splitlines()[0].partition("$schema=")[2]
    assert (machine.root / schema.lstrip("/")).is_file()
    for example in (machine.root / "usr/share/doc/revproxy/examples").iterdir():
        assert f"$schema={schema}" in example.read_text().splitlines()[0]


def test_manual_pages_and_completions(machine: Machine) -> None:
    for section, name in ((1, "revproxyctl"), (8, "revproxyd"), (5, "revproxy.yaml")):
        # A minimal tree leaves documentation out; what the package holds is what counts.
        assert machine.out(f"dpkg -L revproxy | grep -c /man{section}/{name}.{section}.gz") == "1"
    script = """
        . /usr/share/bash-completion/bash_completion; . /usr/share/bash-completion/completions/revproxyctl
        COMP_WORDS=(revproxyctl val) COMP_CWORD=1; _revproxyctl_completion revproxyctl; echo "${COMPREPLY[@]}"
    """
    machine.write("/root/complete.bash", script)
    assert machine.out("bash /root/complete.bash") == "validate"
    for path in ("zsh/vendor-completions/_revproxyctl", "fish/vendor_completions.d/revproxyctl.fish"):
        assert "revproxyctl" in (machine.root / "usr/share" / path).read_text()


def test_a_file_goes_live_under_the_service(machine: Machine, lab: Lab) -> None:
    one, two, _ = lab.backends
    machine.write(CONFIG, web(f"{one.ip4}:8080", f"{two.ip4}:8080", f"[{one.ip6}]:8080", extra="mode: fullnat"))
    machine.run("revproxyctl validate")
    wait_for(lambda: machine.run("revproxyctl status", status=None).returncode == 0, "Synced", timeout_sec=60)
    assert servers(lab) == {one.name, two.name}
    assert lab.curl(f"http://[{lab.proxy6}]/").split()[0] == one.name
    status = machine.out("cat /proc/$(systemctl show --property=MainPID --value revproxyd)/status")
    assert f"Uid:\t{machine.out('id -u revproxy')}\t" in status
    assert "Seccomp:\t2" in status
    # CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF; CAP_SYS_ADMIN, which is permitted, in single calls only
    assert "CapPrm:\t000000c000201000" in status
    assert "CapEff:\t000000c000001000" in status
    assert "CapAmb:\t0000000000000000" in status
    said = machine.out("journalctl -u revproxyd --no-pager")
    assert "Traceback" not in said
    assert "warning" not in said, "nothing is wrong with a first file"
    assert machine.out("find /var/cache/revproxy -name '*.json' | wc -l") != "0"


def test_reload_crash_and_watchdog(machine: Machine, lab: Lab) -> None:
    assert machine.show("revproxyd", "WatchdogUSec") == "30s"
    assert machine.show("revproxyd", "NotifyAccess") == "main"
    machine.run("systemctl reload revproxyd")
    wait_for(lambda: machine.out("systemctl is-active revproxyd || true") == "active", "reloaded", timeout_sec=30)
    was = machine.show("revproxyd", "MainPID")
    with requests(lab) as seen:
        machine.run(f"kill -9 {was}")
        wait_for(lambda: machine.show("revproxyd", "MainPID") not in (was, "0"), "started again", timeout_sec=60)
        wait_for(lambda: machine.out("systemctl is-active revproxyd || true") == "active", "ready", timeout_sec=60)
    assert len(seen) > 5
    assert set(seen) == {""}


def test_a_daemon_that_hangs_is_replaced_and_no_connection_notices(machine: Machine, lab: Lab) -> None:
    drop_in = "/run/systemd/system/revproxyd.service.d"
    machine.run(f"mkdir -p {drop_in}; printf '[Service]\\nWatchdogSec=3\\n' > {drop_in}/soon.conf")
    machine.run("systemctl daemon-reload; systemctl restart revproxyd")
    was = machine.show("revproxyd", "MainPID")
    target = lab.directory / "over-a-hang"
    url = f"http://{lab.proxy4}/bytes/30000000"
    download = lab.spawn(lab.client, "curl", "-sSf", "--limit-rate", "3M", "-o", str(target), url)
    wait_for(lambda: target.exists() and target.stat().st_size > 0, "the download has begun")
    with requests(lab) as seen:
        machine.run(f"kill -STOP {was}")
        wait_for(lambda: machine.show("revproxyd", "MainPID") not in (was, "0"), "replaced", timeout_sec=60)
        wait_for(lambda: machine.out("systemctl is-active revproxyd || true") == "active", "ready", timeout_sec=60)
    assert "watchdog" in machine.out("journalctl -u revproxyd --no-pager").lower()
    assert len(seen) > 20
    assert set(seen) == {""}
    assert download.wait(timeout_sec=60) == 0, download.output()
    assert target.stat().st_size == 30_000_000
    machine.run(f"rm -r {drop_in}; systemctl daemon-reload; systemctl restart revproxyd")


def test_checks_metrics_events_and_a_takeover_with_the_units_capabilities(machine: Machine, lab: Lab) -> None:
    one, two, _ = lab.backends
    text = f"""\
apiVersion: revproxy/v1
settings:
  stats_enabled: true
  metrics: {{enabled: true, listen: "127.0.0.1:9090"}}
  takeover: true
  xdp_mode: native
proxies:
  - name: web
    listen: {{interfaces: [eth0], port: 80}}
    health_check: {{type: http, interval_ms: 500, timeout_ms: 400}}
    default_target:
      - {{ip: {one.ip4}, port: 8080}}
      - {{ip: {two.ip4}, port: 8080, health_check: {{type: tcp, port: 9, interval_ms: 500, timeout_ms: 400}}}}
"""
    with pinned(bpf.PROG_TYPE_XDP, XDP_PASS, "somebody") as (path, number):
        lab.proxy.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "pinned", path)
        machine.write(CONFIG, text)
        wait_for(lambda: "somebody" in machine.out("revproxyctl interfaces"), "taken over", timeout_sec=60)
        wait_for(lambda: machine.run("revproxyctl status", status=None).returncode == 0, "Synced", timeout_sec=60)
        wait_for(lambda: "unhealthy" in machine.out("revproxyctl status"), "unhealthy", timeout_sec=30)
        assert servers(lab) == {one.name}
        wait_for(lambda: '"fin"' in machine.out("revproxyctl events --kind connection_closed --output json"), "events")
        assert two.ip4.exploded in machine.out("revproxyctl events --kind target_down --output json")
        metrics = machine.out("curl -sSf http://127.0.0.1:9090/metrics")
        assert re.search(r"^revproxy_\w*connections\w*{.*} [1-9]", metrics, re.MULTILINE)
        assert machine.run("curl -sSf http://127.0.0.1:9090/readyz").returncode == 0
        machine.write(CONFIG, text.replace("takeover: true\n  xdp_mode: native", "takeover: false"))
        wait_for(lambda: xdp_id(lab, "eth0") == number, "put back", timeout_sec=60)
        lab.proxy.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "off")
    assert "Traceback" not in machine.out("journalctl -u revproxyd --no-pager")
    machine.write(CONFIG, web(f"{one.ip4}:8080", f"{two.ip4}:8080", f"[{one.ip6}]:8080", extra="mode: fullnat"))
    wait_for(lambda: machine.run("revproxyctl status", status=None).returncode == 0, "Synced", timeout_sec=60)


def test_members_of_the_group_may_look_and_others_may_not(machine: Machine) -> None:
    machine.run("useradd --groups revproxy member; useradd stranger")
    assert "web" in machine.out("runuser -u member -- revproxyctl status")
    done = machine.run("runuser -u stranger -- revproxyctl status", status=1)
    assert "Traceback" not in done.stderr
    assert "takes root, or a member of the group revproxy" in done.stderr
    machine.run("userdel member; userdel stranger")


def test_down_ends_the_service_and_root_can_apply_before_it_starts_again(machine: Machine, lab: Lab) -> None:
    one = lab.backends[0]
    assert "detached from eth0" in machine.out("revproxyctl down")
    wait_for(lambda: machine.show("revproxyd", "ActiveState") == "inactive", "inactive")
    assert machine.show("revproxyd", "Result") == "success"
    machine.write(CONFIG, web(f"{one.ip4}:8080"))
    machine.run("revproxyctl apply --yes")
    assert servers(lab) == {one.name}
    machine.run("systemctl start revproxyd")
    wait_for(lambda: machine.run("revproxyctl status", status=None).returncode == 0, "Synced", timeout_sec=60)
    two = lab.backends[1]
    machine.write(CONFIG, web(f"{two.ip4}:8080"))
    wait_for(lambda: servers(lab) == {two.name}, "the daemon owns what root made")
    said = machine.out("journalctl -u revproxyd --no-pager")
    assert "state_dir_not_written" not in said


def test_a_second_instance(machine: Machine) -> None:
    machine.run("""
        mkdir -p /etc/revproxy/edge/config.d
        ip link add rpedge type veth peer name rpedge2
        ip link set rpedge2 up
        ip address add 10.99.0.1/24 dev rpedge
        ip link set rpedge up
    """)
    machine.write("/etc/revproxy/edge/config.d/web.yaml", web("10.99.0.2:8080").replace("eth0", "rpedge"))
    assert "rpedge" in machine.out(block("instance"))
    machine.run("systemctl disable --now revproxyd@edge")
    assert machine.out("tc qdisc show dev rpedge | grep -c clsact") == "1", "it goes on forwarding"
    # Half of that instance's places is no way to reach those of the first one.
    refused = machine.run("revproxyctl --run-dir /run/revproxy-edge down", status=1).stderr
    assert f"in use by process {machine.show('revproxyd', 'MainPID')}:" in refused


def test_configuration_out_of_git(machine: Machine, lab: Lab) -> None:
    one, two, _ = lab.backends
    machine.write(CONFIG, web(f"{two.ip4}:8080"))
    wait_for(lambda: servers(lab) == {two.name}, "the file is live", timeout_sec=30)
    git = "git -c user.name=x -c user.email=x@example.net -C /srv/origin"
    machine.run(f"git init --quiet --initial-branch=main /srv/origin; cp {CONFIG} /srv/origin/; {git} add .")
    machine.run(f"{git} commit --quiet --message one")
    # As the README says, but for the repository, whose owner is another user here.
    machine.run("git config --system safe.directory '*'")
    machine.run(block("git").replace("https://git.example/edge.git", "/srv/origin"))
    wait_for(lambda: machine.show("revproxy-gitpull", "ExecMainExitTimestamp"), "the timer", timeout_sec=60)
    assert machine.show("revproxy-gitpull", "ExecMainStatus") == "0"
    commit = machine.out(f"{git} rev-parse HEAD")
    assert servers(lab) == {two.name}
    machine.write("/srv/origin/web.yaml", web(f"{one.ip4}:8080"))
    machine.run(f"{git} commit --quiet --all --message two")
    machine.run("systemctl start revproxy-gitpull.service")
    wait_for(lambda: servers(lab) == {one.name}, "the commit is live", timeout_sec=30)
    wait_for(lambda: machine.run("revproxyctl status", status=None).returncode == 0, "Synced", timeout_sec=30)
    now = machine.out("revproxyctl status --output json | grep '\"commit\"'")
    assert machine.out(f"{git} rev-parse HEAD") in now
    assert commit not in now
    machine.run("systemctl disable --now revproxy-gitpull.timer; rm -r /srv/origin /etc/gitconfig")


def test_upgrade_under_traffic(machine: Machine, lab: Lab, next_deb: Path) -> None:
    programs = machine.out("find /sys/fs/bpf/revproxy -path '*progs*' | sort")
    was = machine.show("revproxyd", "MainPID")
    target = lab.directory / "download"
    download = lab.spawn(
        lab.client, "curl", "-sSf", "--limit-rate", "4M", "-o", str(target), f"http://{lab.proxy4}/bytes/60000000"
    )
    wait_for(lambda: target.exists() and target.stat().st_size > 0, "the download has begun")
    with requests(lab) as seen:
        assert "rror" not in install(machine, next_deb)
        wait_for(lambda: machine.run("revproxyctl status", status=None).returncode == 0, "Synced", timeout_sec=60)
    assert machine.show("revproxyd", "MainPID") not in (was, "0")
    assert machine.out("find /sys/fs/bpf/revproxy -path '*progs*' | sort") != programs
    assert len(seen) > 20
    assert set(seen) == {""}
    assert download.wait(timeout_sec=60) == 0, download.output()
    assert target.stat().st_size == 60_000_000


def test_remove_takes_the_data_plane_off_and_keeps_the_configuration(machine: Machine) -> None:
    assert "rpedge" in machine.out("tc qdisc show | grep clsact"), "an instance whose daemon was stopped"
    said = machine.run("apt-get remove --yes revproxy")
    assert "still in the kernel" not in said.stdout + said.stderr
    assert machine.out("tc qdisc show | grep -c clsact || true") == "0"
    machine.run("ip link delete rpedge")
    assert machine.out("find /sys/fs/bpf -path '*revproxy/*'") == ""
    assert machine.out("cat /etc/revproxy/config.d/web.yaml")
    assert not machine.run("pgrep -f '[/]usr/sbin/revproxyd'", status=None).stdout


def test_purge_leaves_nothing(machine: Machine, before: set[str]) -> None:
    machine.run("apt-get purge --yes revproxy; systemctl daemon-reload")
    after = set(machine.out(_SNAPSHOT).splitlines())
    assert {each for each in after - before if "__pycache__" not in each} == set()
    assert not {each for each in after if "revproxy" in each}
    assert not {"revproxy", "revproxy-git", "revproxy-read"} & users(machine)
    assert "revproxy" not in machine.out("ls /sys/fs/bpf /run")
