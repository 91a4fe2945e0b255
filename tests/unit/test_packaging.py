"""What the packages say agrees with what the programs are and need."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from reconciler import __version__
from reconciler.config import load
from reconciler.places import REQUIRE_SIGNED, Places
from tests.readme import block

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "packaging" / "systemd"
DEBIAN = ROOT / "packaging" / "debian"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")


@pytest.fixture
def units(tmp_path: Path) -> dict[str, Path]:
    """The units as a package installs them."""
    for name in ("revproxyd.service", "revproxy-gitpull.service", "revproxy-gitpull.timer"):
        shutil.copy(SYSTEMD / name, tmp_path)
    script = [str(SYSTEMD / "instance.sh"), str(SYSTEMD / "revproxyd.service")]
    made = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    (tmp_path / "revproxyd@.service").write_text(made)
    return {path.name: path for path in tmp_path.iterdir()}


@needs_systemd
@pytest.mark.parametrize("unit", ["revproxyd.service", "revproxyd@edge.service", "revproxy-gitpull.timer"])
def test_systemd_has_nothing_to_say_about_a_unit(units: dict[str, Path], unit: str) -> None:
    for path in units.values():  # the programs need not be installed here
        path.write_text(re.sub(r"^(ExecStart=)\S+", r"\1/bin/true", path.read_text(), flags=re.MULTILINE))
    place = units["revproxyd.service"].parent / unit
    if not place.exists():
        place.symlink_to("revproxyd@.service")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", place], capture_output=True, text=True, check=False)
    # The rest is about units of this host.
    own = [line for line in (done.stdout + done.stderr).splitlines() if "revproxy" in line]
    assert (own, done.returncode) == ([], 0), done.stderr


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_readmes_drop_in(units: dict[str, Path]) -> None:
    drop_in = units["revproxyd.service"].parent / "revproxyd.service.d"
    drop_in.mkdir()
    (drop_in / "override.conf").write_text(block("signed"))
    assert f"\nEnvironment={REQUIRE_SIGNED}=/" in block("signed")
    test_systemd_has_nothing_to_say_about_a_unit(units, "revproxyd.service")


@needs_systemd
@pytest.mark.parametrize("unit", ["revproxyd.service", "revproxyd@.service", "revproxy-gitpull.service"])
def test_exposure_is_at_most_two(units: dict[str, Path], unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", units[unit]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for .*: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= 2.0
    assert done.returncode == 0


def test_the_service_uses_the_default_places(units: dict[str, Path]) -> None:
    text, places = units["revproxyd.service"].read_text(), Places()
    assert f"RuntimeDirectory={places.run_dir.name}\n" in text
    assert f"StateDirectory={places.state_dir.name}\n" in text
    assert f"BindPaths=-{places.bpffs_dir}\n" in text
    assert "REVPROXY_" not in text
    for line in ("Type=notify", "Restart=on-failure", "ExecReload=/bin/kill -HUP $MAINPID", "User=revproxy"):
        assert f"\n{line}\n" in text
    assert re.search(r"^WatchdogSec=\d+$", text, re.MULTILINE)


def test_an_instance_has_every_place_to_itself(units: dict[str, Path]) -> None:
    text = units["revproxyd@.service"].read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("#", "Documentation", "ExecStart="))]
    for line in lines:
        for place in re.findall(r"(?:/run|/var/lib|/sys/fs/bpf)/revproxy\S*", line):
            assert place.endswith("-%i"), line
    for line in ("RuntimeDirectory=revproxy-%i", "StateDirectory=revproxy-%i", "BindPaths=-/sys/fs/bpf/revproxy-%i"):
        assert line in lines
    for name in ("CONFIG", "RUN", "STATE", "BPFFS"):
        assert [line for line in lines if line.startswith(f"Environment=REVPROXY_{name}_DIR=") and "%i" in line]
    assert '"--access-log /var/log/revproxy-%i/' in text, "it may write to no other one"


def test_every_capability_has_its_reason(units: dict[str, Path]) -> None:
    text = units["revproxyd.service"].read_text()
    for name in re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)[0].split():
        assert re.search(rf"^#   {name}  ", text, re.MULTILINE), name


def test_the_debian_package_depends_on_what_the_python_package_does() -> None:
    control = (DEBIAN / "control").read_text()
    depends = control.partition("\nDepends:\n")[2].partition("\nRecommends:")[0]
    told = {
        match[1]: match[2]
        for match in re.finditer(r"^ (python3-[\w.-]+)(?: \(>= (?:\d+:)?([\d.]+)\))?,", depends, re.MULTILINE)
    }
    needed = {}
    for requirement in PROJECT["dependencies"]:
        name, _, version = requirement.partition(">=")
        needed[f"python3-{name.strip().lower().replace('_', '-')}"] = version.strip()
    assert needed.items() <= told.items()
    assert set(told) - set(needed) == {"python3-bpfcc"}
    assert " linux-libc-dev,\n" in depends  # the compiler's headers


def test_versions_agree() -> None:
    first = (DEBIAN / "changelog").read_text().splitlines()[0]
    found = re.match(r"revproxy \(([^)]+)\) ", first)
    assert found
    assert found[1] == PROJECT["version"] == __version__


def test_the_packaged_example_is_off_valid_and_names_the_schema(tmp_path: Path) -> None:
    script = [str(ROOT / "packaging" / "example.sh"), str(ROOT / "config.d" / "10-web.yaml")]
    text = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert text.startswith("# yaml-language-server: $schema=/usr/share/revproxy/schema/revproxy-v1.schema.json\n")
    (tmp_path / "example.yaml.disabled").write_text(text)
    assert load(tmp_path).proxies == ()
    (tmp_path / "example.yaml").write_text(text)
    assert [proxy.name for proxy in load(tmp_path).proxies] == ["web"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_made_and_the_shell_can_read_them(tmp_path: Path, shell: str) -> None:
    program = shutil.which("revproxyctl", path=str(ROOT / ".venv" / "bin")) or shutil.which("revproxyctl")
    assert program
    subprocess.run([ROOT / "packaging" / "completions.sh", program, "revproxyctl", tmp_path], check=True)
    places = {
        "bash": "bash-completion/completions/revproxyctl",
        "zsh": "zsh/vendor-completions/_revproxyctl",
        "fish": "fish/vendor_completions.d/revproxyctl.fish",
    }
    script = tmp_path / places[shell]
    assert "_REVPROXYCTL_COMPLETE" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", script], check=True)


def test_a_completion_that_zsh_loads_completes_at_once(tmp_path: Path) -> None:
    """As click 8.1.3 writes it, which is Debian 12's, it would do so from the second time on."""
    program = tmp_path / "program"
    script = "#compdef some-program\n\n_some_program_completion() {\n    echo completes\n}\n\n"
    script += "compdef _some_program_completion some-program;\n\n"
    program.write_text(f"#!/bin/sh\nprintf %s {shlex.quote(script)}\n")
    program.chmod(0o755)
    subprocess.run([ROOT / "packaging" / "completions.sh", program, "some-program", tmp_path], check=True)
    text = (tmp_path / "zsh" / "vendor-completions" / "_some-program").read_text()
    assert "loadautofunc" in text
    if shutil.which("zsh"):
        load = f"fpath=({tmp_path}/zsh/vendor-completions); autoload -U _some-program; _some-program"
        assert subprocess.run(["zsh", "-fc", load], capture_output=True, text=True, check=True).stdout == "completes\n"


def test_the_pre_commit_hook_checks_whole_directories() -> None:
    (hook,) = YAML(typ="safe", pure=True).load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["id"] == "revproxy-validate"
    assert hook["entry"] == "revproxyctl validate"
    assert hook["language"] == "python"
    assert re.search(hook["files"], "config.d/web.yaml")
    assert not re.search(hook["files"], "README.md")


def test_a_later_build_is_a_newer_package(tmp_path: Path) -> None:
    """Else apt has nothing to do, and the daemon that runs stays the old one."""
    (tmp_path / "packaging" / "debian").mkdir(parents=True)
    script = shutil.copy(ROOT / "packaging" / "version.sh", tmp_path / "packaging")
    shutil.copy(DEBIAN / "changelog", tmp_path / "packaging" / "debian")
    now = 1_700_000_000

    def git(*words: str) -> None:
        date = {"GIT_COMMITTER_DATE": f"@{now} +0000", "GIT_AUTHOR_DATE": f"@{now} +0000"}
        command = ["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x@example.net", *words]
        subprocess.run(command, check=True, env={**os.environ, **date})

    def version() -> str:
        return subprocess.run([script], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    git("tag", f"v{__version__}")
    found = [version()]
    assert found == [__version__]
    for number in (1, 2):
        now += 60
        (tmp_path / "file").write_text(str(number))
        os.utime(tmp_path / "file", (now, now))
        found.append(version())
        assert found[-1].endswith(".modified")
        now += 60
        git("add", ".")
        git("commit", "--quiet", "--message", "more")
        found.append(version())
    assert re.fullmatch(rf"{re.escape(__version__)}\+git20231114\.221720\.[0-9a-f]{{9}}", found[-1])
    for before, after in pairwise(found):
        subprocess.run(["dpkg", "--compare-versions", after, "gt", before], check=True)
