"""What happens to the instance during the soak: edits, git checkouts, drift, kills; things that users, their tools or
their machines do."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netlab import TCP_PORT, UDP_PORT, Lab, wait_for
from reconciler import Client
from reconciler.errors import RevproxyError
from reconciler.kernel.maps import Maps
from tests.e2e.instance import Instance
from tests.soak.traffic import Windows

RESYNC_SEC = 2
REPAIR_SEC = 30.0
"""What somebody has damaged is put right after that long, on a machine as busy as this."""
TCP_LISTEN, UDP_LISTEN, FIRST_PORT = 80, 53, 1000
TRANSIENT = 8
DELETABLE = ("listener4", "route4", "group_member", "proxy_name", "device", "blob", "sysctl")
"""Hash maps whose entries somebody may delete without asking for the end of a connection that is there."""


class Chaos:
    """Carries out actions on an instance whose configuration directory is a git work tree."""

    def __init__(self, lab: Lab, instance: Instance, windows: Windows, seed: int, broken: str = "") -> None:
        self.lab, self.instance, self.windows, self.broken = lab, instance, windows, broken
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.commits: list[str] = []
        self.kills = 0
        self.trace: deque[str] = deque(maxlen=25)
        """What was done last, with times, for whoever has to find out."""
        self.client = Client(
            run_dir=instance.run_dir,
            config_dir=instance.config_dir,
            state_dir=instance.state_dir,
            bpffs_dir=instance.bpffs_dir,
        )

    def _note(self, what: str) -> None:
        self.trace.append(f"{time.monotonic():.1f} {what}")

    # -- the files -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The first commit: what everything comes back to at the end."""
        self._git("init", "-q", "-b", "main")
        self.instance.write(self._stable(full=True), "stable.yaml")
        self.instance.write("apiVersion: revproxy/v1\nsettings: {xdp_mode: native}\n", "settings.yaml")
        for number in range(0, TRANSIENT, 2):
            self.instance.write(self._transient(number), f"p{number}.yaml")
        self._commit("the beginning")

    def back_to_the_beginning(self) -> None:
        """Check the first commit out."""
        self._checkout(self.commits[0])
        self.settle()

    def edit(self) -> None:
        """Change, add or remove one or two files."""
        for _ in range(self.chance.choice((1, 1, 2))):
            what = self.chance.random()
            if what < 0.35:
                self.instance.write(self._stable(), "stable.yaml")
            elif what < 0.45:
                stats, fast = (self.chance.choice(("true", "false")) for _ in range(2))
                self.instance.write(
                    "apiVersion: revproxy/v1\nsettings:"
                    f" {{xdp_mode: native, stats_enabled: {stats}, fast_path: {fast},"
                    f" connection_timeout_sec: {self.chance.choice((300, 400))}}}\n",
                    "settings.yaml",
                )
            else:
                number = self.chance.randrange(TRANSIENT)
                path = self.instance.config_dir / f"p{number}.yaml"
                if path.exists() and self.chance.random() < 0.4:
                    path.unlink()
                else:
                    self.instance.write(self._transient(number), path.name)

    def break_and_mend(self) -> None:
        """A file that is wrong for a moment: what is applied stays."""
        path = self.instance.config_dir / "broken.yaml"
        path.write_text(self.chance.choice(("apiVersion: revproxy/v1\nproxies: [{", "proxies:\n  - nme: web\n")))
        time.sleep(self.chance.random())
        path.unlink()

    def commit_or_checkout(self) -> None:
        """Commit what is there, or go to another commit."""
        if self.chance.random() < 0.4:
            self._commit(f"edit {len(self.commits)}")
        else:
            self._checkout(self.chance.choice(self.commits))

    def checkout_back_and_forth(self) -> None:
        """Several checkouts right after each other."""
        for _ in range(4):
            self._checkout(self.chance.choice(self.commits))

    def _stable(self, full: bool = False) -> str:
        return (
            "apiVersion: revproxy/v1\nproxies:\n"
            + self._proxy("tcp", TCP_LISTEN, "tcp", self._targets(TCP_PORT, full), full)
            + self._proxy("udp", UDP_LISTEN, "udp", self._targets(UDP_PORT, full), full)
        )

    def _transient(self, number: int) -> str:
        protocol, port = (("tcp", TCP_PORT), ("udp", UDP_PORT))[number % 2]
        listen = FIRST_PORT + number
        return f"apiVersion: revproxy/v1\nproxies:\n{self._proxy(f'p{number}', listen, protocol, self._targets(port))}"

    def _targets(self, port: int, full: bool = False) -> str:
        count = 3 if full else self.chance.choice((1, 2, 3))
        chosen = self.chance.sample(self.lab.backends, count)
        return ", ".join(f"{{ip: {each.ip4}, port: {port}, weight: {self.chance.randint(1, 5)}}}" for each in chosen)

    def _proxy(self, name: str, port: int, protocol: str, targets: str, full: bool = False) -> str:
        routes = range(0 if full else self.chance.choice((0, 3, 40)))
        lines = [
            f"  - name: {name}",
            f"    listen: {{interfaces: [eth0], port: {port}, protocol: {protocol}}}",
            f"    mode: {'dnat' if full else self.chance.choice(('dnat', 'dnat', 'fullnat'))}",
            f"    balance: {self.chance.choice(('maglev', 'source', 'random'))}",
            f"    default_target: [{targets}]",
            "    source_routes:" if routes else "",
            *(
                f"      - {{source: 198.51.{number}.0/24, target: [{targets}]}}"
                if self.chance.random() < 0.7
                else f"      - {{source: 198.51.{number}.0/24, action: deny}}"
                for number in routes
            ),
        ]
        return "\n".join(line for line in lines if line) + "\n"

    def _files(self) -> str:
        """What the files say in short."""
        lines = [line.strip() for path in sorted(self.instance.config_dir.glob("*.yaml")) for line in _lines(path)]
        return " ".join(line for line in lines if line.startswith(("- name", "mode", "settings")))

    def _git(self, *words: str) -> str:
        identity = ("-c", "user.name=soak", "-c", "user.email=soak@localhost")
        command = ["git", "-C", str(self.instance.config_dir), *identity, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def _commit(self, message: str) -> None:
        self._git("add", "-A")
        self._git("commit", "-q", "--allow-empty", "-m", message)
        self.commits.append(self._git("rev-parse", "HEAD"))

    def _checkout(self, commit: str) -> None:
        self._git("checkout", "-q", "-f", commit)
        self._git("clean", "-q", "-f")

    # -- what others do to the kernel ----------------------------------------------------------------------------

    def drift(self) -> None:
        """Somebody meddles; it is put right before anything else happens. New connections may fail meanwhile."""
        self.settle()
        with self.windows.excused():
            choices = [self._delete_entries, self._delete_entries, self._remove_xdp]
            if "fast_path: false" not in (self.instance.config_dir / "settings.yaml").read_text():
                choices.append(self._flush_qdisc)  # else every reply needs the filters
            self.chance.choice(choices)()
            time.sleep(RESYNC_SEC + 0.5)
            self.settle(REPAIR_SEC)

    def _delete_entries(self) -> None:
        maps = Maps(self.instance.bpffs_dir)
        maps.open()
        try:
            name = self.chance.choice(DELETABLE)
            keys = maps[name].items()[0]
            chosen = [index for index in range(len(keys)) if self.chance.random() < 0.5]
            maps[name].delete_many(keys[chosen])
            self._note(f"{len(chosen)} of {len(keys)} entries of {name} deleted")
            self.done[f"entries of {name} deleted"] += len(chosen)
        finally:
            maps.close()

    def _interface(self) -> str:
        return self.chance.choice(self.lab.proxy_interfaces)

    def _flush_qdisc(self) -> None:
        """XDP goes on serving what is established."""
        interface = self._interface()
        self._note(f"clsact of {interface} deleted")
        self.lab.proxy.run("tc", "qdisc", "del", "dev", interface, "clsact", check=False)
        self.done["qdiscs deleted"] += 1

    def _remove_xdp(self) -> None:
        """TC goes on serving."""
        interface = self._interface()
        self._note(f"XDP of {interface} off")
        self.lab.proxy.run("ip", "link", "set", "dev", interface, "xdp", "off")
        self.done["XDP programs removed"] += 1

    # -- the process ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon."""
        self.instance.start_daemon("--resync", str(RESYNC_SEC), ready=False)

    def kill(self) -> None:
        """End it without a word, at any moment, often in the middle of a commit; start it again."""
        daemon = self.instance.daemon
        assert daemon is not None
        if self.chance.random() < 0.6:
            self.edit()
            time.sleep(self.chance.random() * 0.6)
        daemon.send(signal.SIGKILL)
        daemon.wait()
        self._check_log()
        self.kills += 1
        if self.broken == "kill":  # as if the data plane went with its daemon
            self.instance.ctl("down")
        time.sleep(self.chance.random())
        self.start()

    def restart(self) -> None:
        """End it as systemd does, once it is at work; start it again."""
        self.settle()
        daemon = self.instance.daemon
        assert daemon is not None
        assert self.instance.stop_daemon() == 0, daemon.output()
        self._check_log()
        self.start()

    def _check_log(self) -> None:
        daemon = self.instance.daemon
        assert daemon is not None
        found = [line for line in daemon.output().splitlines() if _is_ours(line)]
        assert not found, "the daemon logged mistakes of its own:\n" + "\n".join(found)

    def end(self) -> None:
        """End the daemon for good."""
        assert self.instance.stop_daemon() == 0
        self._check_log()

    # -- looking -------------------------------------------------------------------------------------------------

    def settle(self, timeout_sec: float = 60.0) -> None:
        """Until the daemon says Synced, with nothing left to do."""
        said: list[Any] = []

        def synced() -> bool:
            try:
                status, differences = self.client.status(), self.client.diff()
            except RevproxyError as error:
                said[:] = [str(error)]
                return False
            said[:] = [status.sync, status.errors, differences.changes[:3]]
            return str(status.sync) == "Synced" and not differences.changes and status.pid is not None

        try:
            wait_for(synced, "Synced", timeout_sec=timeout_sec)
        except TimeoutError:
            assert self.instance.daemon is not None
            raise AssertionError(f"not Synced: {said}\n{self.instance.daemon.output()[-3000:]}") from None

    def act(self, kills: bool) -> None:
        """Any of it."""
        actions: list[tuple[int, Callable[[], None]]] = [
            (40, self.edit),
            (4, self.break_and_mend),
            (16, self.commit_or_checkout),
            (4, self.checkout_back_and_forth),
            (10, self.drift),
            *([(8, self.kill), (4, self.restart)] if kills else []),
        ]
        action = self.chance.choices([each for _, each in actions], [weight for weight, _ in actions])[0]
        self._note(action.__name__)
        action()
        self._note(f"{action.__name__} done: {self._files()}")
        self.done[action.__name__] += 1
        if self.chance.random() < 0.5:
            self.settle()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _is_ours(line: str) -> bool:
    return any(word in line for word in ("look_failed", "timer_failed", "Traceback", "internal error", "call_failed"))
