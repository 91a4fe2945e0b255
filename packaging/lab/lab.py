"""A lab to play with: ``lab.py up`` builds it and leaves it standing, ``lab.py down`` removes it.

Several stand side by side under names of their own, in ``REVPROXY_LAB``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab, lab_namespaces, remove_lab

NAME = os.environ.get("REVPROXY_LAB") or "revproxy"
DIRECTORY = Path(f"/run/{NAME}-lab")
BPFFS_DIRECTORY = Path(f"/sys/fs/bpf/{NAME}-lab")
PROGRAMS = Path(sys.executable).parent

CONFIG = """\
# The lab's configuration. Change it while revproxyd runs.
apiVersion: revproxy/v1

proxies:
  - name: web
    listen: {{interfaces: [eth0], port: 80, protocol: tcp}}
    mode: dnat
    default_target:
{web}
  - name: echo
    listen: {{interfaces: [eth0], port: {tcp}, protocol: tcp}}
    mode: dnat
    default_target:
{tcp_targets}
  - name: datagrams
    listen: {{interfaces: [eth0], port: {udp}, protocol: udp}}
    mode: dnat
    default_target:
{udp_targets}
"""

USAGE = """\
The lab stands:

  {name}-client     {client4}, {client6}
     | eth0
     | eth0
  {name}-proxy      {proxy4}, {proxy6}
     | eth1
     | eth0
  {name}-backends   {backends}
                      HTTP on port {http}, TCP echo on {tcp}, UDP echo on {udp}

In a first shell, the reconciler on the proxy host (the file tells both programs where the lab's files are):

  . {env}
  nsenter --net=/run/netns/{name}-proxy revproxyd

In a second one:

  . {env}
  nsenter --net=/run/netns/{name}-proxy revproxyctl status
  nsenter --net=/run/netns/{name}-client curl http://{proxy4}/hello
  nsenter --net=/run/netns/{name}-client curl http://[{proxy6}]/hello
  $EDITOR {config}

'ip netns exec {name}-proxy' does as well, but hides /sys/fs/bpf from bpftool. 'make lab-down' takes everything down.
"""


def write_files(lab: Lab) -> None:
    """The configuration and the shell file that names the places."""
    config = DIRECTORY / "config.d"
    config.mkdir(parents=True, exist_ok=True)

    def targets(port: int) -> str:
        lines = [f'      - {{ip: "{ip}", port: {port}}}' for b in lab.backends for ip in (b.ip4, b.ip6)]
        return "\n".join(lines)

    text = CONFIG.format(
        web=targets(HTTP_PORT),
        tcp=TCP_PORT,
        tcp_targets=targets(TCP_PORT),
        udp=UDP_PORT,
        udp_targets=targets(UDP_PORT),
    )
    (config / "lab.yaml").write_text(text)
    places = {
        "REVPROXY_CONFIG_DIR": config,
        "REVPROXY_RUN_DIR": DIRECTORY / "run",
        "REVPROXY_STATE_DIR": DIRECTORY / "state",
        "REVPROXY_BPFFS_DIR": BPFFS_DIRECTORY,
    }
    lines = [f"export {name}={shlex.quote(str(place))}" for name, place in places.items()]
    lines.append(f"export PATH={shlex.quote(str(PROGRAMS))}:$PATH")
    (DIRECTORY / "env").write_text("\n".join(lines) + "\n")


def up() -> None:
    """Build the lab unless it stands, and say how to use it."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    lab = Lab(NAME, directory=DIRECTORY)
    if not lab_namespaces(NAME):
        lab.open()
        write_files(lab)
    print(
        USAGE.format(
            name=NAME,
            client4=lab.client4,
            client6=lab.client6,
            proxy4=lab.proxy4,
            proxy6=lab.proxy6,
            backends=f"\n{' ' * 22}".join(f"{b.name}: {b.ip4}, {b.ip6}" for b in lab.backends),
            http=HTTP_PORT,
            tcp=TCP_PORT,
            udp=UDP_PORT,
            env=DIRECTORY / "env",
            config=DIRECTORY / "config.d/lab.yaml",
        ),
        end="",
    )


def down() -> None:
    """Remove namespaces, whatever runs in them, files and pins."""
    removed = remove_lab(NAME)
    for directory in (DIRECTORY, BPFFS_DIRECTORY):
        if directory.exists():
            shutil.rmtree(directory)
    print(f"removed: {', '.join(removed)}" if removed else "there was no lab")


def main() -> None:
    """``up`` or ``down``."""
    actions = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit("usage: lab.py up|down")
    if os.geteuid() != 0:
        sys.exit("lab: network namespaces take root: run it as root")
    actions[sys.argv[1]]()


if __name__ == "__main__":
    main()
