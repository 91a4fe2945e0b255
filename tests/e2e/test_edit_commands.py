"""Editing commands on the wire: the file says it, and packets go there; what can't be applied leaves no trace."""

from __future__ import annotations

import json
import subprocess

import pytest

from netlab import HTTP_PORT, UDP_PORT, Lab
from netlab.clients import ask_udp
from tests.e2e.instance import PROGRAMS, Instance
from tests.e2e.test_edits import answers, backend_of

ways = pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "direct"])


def history(instance: Instance) -> list[dict[str, object]]:
    """What was committed; not what was refused."""
    lines = (instance.state_dir / "history.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["result"] == "applied"]


def file_of(lab: Lab) -> str:
    return f"""\
# The web, for everybody.
apiVersion: revproxy/v1
proxies:
  - name: web          # do not rename
    listen: {{interfaces: [eth0], port: 80}}
    default_target: {{ip: {lab.backends[0].ip4}, port: {HTTP_PORT}}}  # the old one

# End.
"""


@ways
def test_what_is_edited_is_live_when_the_command_ends(lab: Lab, instance: Instance, daemon: bool) -> None:
    one, two, three = lab.backends
    file = instance.write(file_of(lab))
    if daemon:
        instance.start_daemon()
    else:
        instance.apply()
    listen = (lab.proxy4, 80)
    revisions = len(history(instance))

    said = instance.json("target", "add", "web", f"{two.ip4}:{HTTP_PORT}", status=0)
    assert said["files"] == [str(file)]
    assert [(each["action"], each["object"]) for each in said["applied"]["changes"]] != []
    assert {backend_of(listen, lab) for _ in range(40)} == {one.name, two.name}
    instance.ctl("target", "weight", "web", f"{one.ip4}:{HTTP_PORT}", "0")
    assert {backend_of(listen, lab) for _ in range(20)} == {two.name}
    instance.ctl("route", "add", "web", f"{lab.client4}/32", f"{three.ip4}:{HTTP_PORT}")
    assert backend_of(listen, lab) == three.name
    instance.ctl("route", "remove", "web", str(lab.client4))
    assert backend_of(listen, lab) == two.name
    instance.ctl("route", "add", "web", "10.90.1.0/24", "--deny")
    assert not answers(listen, lab)
    instance.ctl("route", "remove", "web", "10.90.1.0/24")
    instance.ctl("target", "remove", "web", f"{one.ip4}:{HTTP_PORT}")
    assert file.read_text() == file_of(lab).replace(
        f"{{ip: {one.ip4}, port: {HTTP_PORT}}}", f"[{{ip: {two.ip4}, port: {HTTP_PORT}}}]"
    )
    assert len(history(instance)) == revisions + 7, "one commit for each edit"
    instance.wait_synced()
    assert len(history(instance)) == revisions + 7, "and none after it"


@ways
def test_a_proxy_comes_and_goes_with_its_file(lab: Lab, instance: Instance, daemon: bool) -> None:
    backend = lab.backends[0]
    if daemon:
        instance.start_daemon()
    instance.ctl(
        "proxy", "add", "dns", "-i", "eth0", "-p", "53", "-t", f"{backend.ip4}:{UDP_PORT}", "--protocol", "udp"
    )
    assert ask_udp(lab.client, (str(lab.proxy4), 53), b"?").split()[0] == backend.name
    assert [each["name"] for each in instance.json("proxy", "list")] == ["dns"]
    assert instance.json("proxy", "show", "dns")["file"] == str(instance.config_dir / "50-dns.yaml")
    instance.ctl("proxy", "remove", "dns")
    assert list(instance.config_dir.iterdir()) == []
    assert instance.json("status")["proxies"] == []
    with pytest.raises(OSError, match=r"refused|timed out"):
        ask_udp(lab.client, (str(lab.proxy4), 53), b"?", timeout_sec=0.5)


@ways
def test_what_can_not_be_applied_is_taken_back(lab: Lab, instance: Instance, daemon: bool) -> None:
    """A target that is the interface's own listener shows only on the host."""
    file = instance.write(file_of(lab))
    if daemon:
        instance.start_daemon()
    else:
        instance.apply()
    revisions = len(history(instance))
    refused = instance.run("target", "add", "web", f"{lab.proxy4}:80")
    assert refused.returncode == 1
    assert "is a listener of its own proxy" in refused.stderr
    assert file.read_text() == file_of(lab)
    assert [path.name for path in instance.config_dir.iterdir()] == [file.name]
    instance.wait_synced()
    assert len(history(instance)) == revisions
    assert backend_of((lab.proxy4, 80), lab) == lab.backends[0].name
    if instance.daemon:
        assert "own proxy" not in instance.daemon.output(), "the daemon never looked at it by itself"


def test_a_wrong_edit_writes_nothing(lab: Lab, instance: Instance) -> None:
    file = instance.write(file_of(lab))
    instance.apply()
    refused = instance.run("target", "add", "web", "[2001:db8::1]:80", "--route", "10.0.0.0/8")
    assert "no route for 10.0.0.0/8" in refused.stderr
    refused = instance.run("route", "add", "web", "10.0.0.0/8", "[2001:db8::1]:80")
    assert refused.returncode == 1
    assert f"{file}:9:17: the target [2001:db8::1]:80 is IPv6, the source 10.0.0.0/8 is IPv4" in refused.stderr
    assert file.read_text() == file_of(lab)


SCRIPT = """
import os, reconciler
client = reconciler.Client(run_dir=os.environ["REVPROXY_RUN_DIR"])
target, spare = os.environ["TARGET"], os.environ["SPARE"]
client.add_proxy("api", ["eth0"], 80, [target])
client.add_source_route("api", "198.51.100.0/24", spare)
client.attach_interfaces("eth1", proxy="api")
assert client.proxy("api").interfaces == ("eth0", "eth1")
assert {each.name for each in client.status().interfaces if each.attached} >= {"eth0", "eth1"}
client.detach_interfaces(["eth1"])
client.remove_source_route("api", "198.51.100.0/24")
client.set_setting("max_connections", 5000)
assert client.connection_count() == 0
assert client.connection_stats().drops["denied"] == 0
assert client.diff().empty
print("done")
"""


@ways
def test_the_python_api_from_another_process(lab: Lab, instance: Instance, daemon: bool) -> None:
    one, two, _ = lab.backends
    if daemon:
        instance.start_daemon()
    env = {**instance.env, "TARGET": f"{one.ip4}:{HTTP_PORT}", "SPARE": f"{two.ip4}:{HTTP_PORT}"}
    command = lab.proxy.command(PROGRAMS / "python", "-c", SCRIPT)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "done\n", done.stderr
    assert sorted(path.name for path in instance.config_dir.iterdir()) == ["00-settings.yaml", "50-api.yaml"]
    assert backend_of((lab.proxy4, 80), lab) == one.name
