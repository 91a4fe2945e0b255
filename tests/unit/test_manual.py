"""The manual pages say everything: every command, option and key, and they render without a warning."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from reconciler.cli import app
from reconciler.daemon import command as daemon
from reconciler.places import VARIABLES
from tests.readme import block

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "schema" / "revproxy-v1.schema.json").read_text())
PAGES = ("revproxyctl.1", "revproxyd.8", "revproxy.yaml.5")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manpages", ROOT / "packaging" / "manpages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages by name."""
    return {file.name: file for file in generator.write(tmp_path_factory.mktemp("man"), "2026-01-31")}


def text(page: Path) -> str:
    """As a reader sees it: no roff, one space between words."""
    source = re.sub(r"^\.\\\".*$", "", page.read_text(), flags=re.MULTILINE)
    source = re.sub(r"^\.(SS|SH|BR|IR|B|I|BI|TH) ?", "", source, flags=re.MULTILINE)
    source = re.sub(r"\\f.|\\&", "", source).replace("\\-", "-").replace("\\e", "\\")
    return " ".join(source.split())


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield " ".join((*path, name)), inner
            yield from commands(inner, *path, name)


def options(command: click.Command) -> list[str]:
    return [name for each in command.params if isinstance(each, click.Option) and not each.hidden for name in each.opts]


def test_all_pages_are_made(pages: dict[str, Path]) -> None:
    assert tuple(pages) == PAGES
    for page in pages.values():
        assert "2026-01-31" in page.read_text().splitlines()[1]
        assert not re.search(r"@[A-Z_]+@", page.read_text())


def test_every_command_has_a_section_with_its_options_and_its_exit_status(pages: dict[str, Path]) -> None:
    source = pages["revproxyctl.1"].read_text().replace("\\-", "-")
    sections = {}
    for part in source.partition("\n.SH COMMANDS\n")[2].partition("\n.SH ")[0].split(".SS ")[1:]:
        name = re.match(r"\\fB([a-z -]+)\\fR", part)
        assert name, part
        sections[name[1]] = part
    shown = {name: command for name, command in commands(app) if not command.hidden}
    assert len(shown) > 8
    assert set(sections) == set(shown)
    common = {*options(app), "--help"}
    statuses = source.partition("\n.SH EXIT STATUS\n")[2].partition("\n.SH ")[0]
    for name, command in shown.items():
        for option in set(options(command)) - common:
            assert f"\\fB{option}\\fR" in sections[name], (name, option)
        assert command.help
        assert command.help.split(".")[0].split()[0] in sections[name]
        if not isinstance(command, click.Group) or command.invoke_without_command:
            assert f"\n\\fB{name}\\fR\n" in statuses, name
    assert "0 in sync, 1 differences, 2 trouble" in statuses


@pytest.mark.parametrize(("page", "command"), [("revproxyctl.1", app), ("revproxyd.8", daemon)])
def test_common_options_and_variables(pages: dict[str, Path], page: str, command: click.Command) -> None:
    source = pages[page].read_text().replace("\\-", "-")
    section = source.partition("\n.SH OPTIONS\n")[2].partition("\n.SH ")[0]
    for option in (*options(command), "-h", "--help"):
        assert f"\\fB{option}\\fR" in section, option
    for variable in VARIABLES.values():
        assert variable in source.partition("\n.SH ENVIRONMENT\n")[2].partition("\n.SH ")[0]


def schema_keys(definition: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from definition.get("properties", {}).items()


def test_every_key_is_there_with_description_and_default(pages: dict[str, Path]) -> None:
    shown = text(pages["revproxy.yaml.5"])
    keys = [item for each in (SCHEMA, *SCHEMA["$defs"].values()) for item in schema_keys(each)]
    assert len(keys) > 20
    for key, value in keys:
        described = value["description"].removesuffix(" Required.").replace("`", "")
        found = re.search(rf"\.TP {re.escape(key)}: [^.]*?" + r".*?" + re.escape(" ".join(described.split())), shown)
        assert found, key
        if value.get("default") not in (None, {}, []) and not isinstance(value["default"], dict):
            assert json.dumps(value["default"]).replace('"', "") in found[0], key


def test_kinds_of_mappings_stand_at_all_their_paths(pages: dict[str, Path]) -> None:
    shown = text(pages["revproxy.yaml.5"])
    assert '"settings"' in shown
    assert '"proxies[].listen"' in shown
    assert '"proxies[].default_target[], proxies[].source_routes[].target[]"' in shown


def test_what_looks_like_roff_is_text(generator: ModuleType) -> None:
    assert generator.escape(".ip\n'x\\y --z") == "\\&.ip\n\\&'x\\ey \\-\\-z"


def test_the_table_of_kernels_says_what_ran_where(generator: ModuleType, pages: dict[str, Path]) -> None:
    def counts(passed: int, failed: int, skipped: int = 0) -> dict[str, int]:
        return {"passed": passed, "failed": failed, "skipped": skipped}

    old = {"release": "6.1.0-9-amd64", "arch": "amd64", "features": {"load": counts(0, 2)}, "effort": {}}
    new = {"release": "6.12.1+deb13-arm64", "arch": "arm64", "effort": {"tc": [10, 20, 3000], "xdp": [40, 40, 50]}}
    new["ceilings"] = [8192, 150000]
    new["features"] = {"load": counts(2, 0, 1), "wire": counts(3, 1), "none": counts(0, 0, 4)}
    lines = generator.kernel_table({"a": old, "b": new}).splitlines()
    assert [re.split(r"  +", line.strip()) for line in lines[1:-3]] == [
        ["Linux", "6.1", "6.12"],
        ["amd64", "arm64"],
        ["load", "no", "yes"],
        ["wire", "\\-", "3 of 4"],
        ["none", "\\-", "no"],
        ["instructions of the largest", "\\-", "40"],
        ["size that would fail a test", "\\-", "8,192"],
        ["most the verifier goes through", "\\-", "3,000"],
        ["effort that would fail a test", "\\-", "150,000"],
    ]
    assert lines[-1] == "These are 6.1.0\\-9\\-amd64, 6.12.1+deb13\\-arm64."
    for each in json.loads((ROOT / "man" / "kernels.json").read_text()).values():
        assert re.split(r"[-+]", each["release"])[0] in text(pages["revproxyd.8"])


def test_a_template_with_an_unknown_name_is_refused(generator: ModuleType) -> None:
    with pytest.raises(KeyError):
        generator.page("@NOTHING@\n", {})


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    "command",
    [
        ("groff", "-ww", "-man", "-Kutf8", "-Tutf8"),
        ("man", "--warnings", "-E", "UTF-8", "-l", "-P", "cat"),
        ("mandoc", "-T", "lint", "-W", "warning"),
    ],
    ids=lambda command: str(command[0]),
)
def test_it_renders_without_warnings(pages: dict[str, Path], name: str, command: tuple[str, ...]) -> None:
    if not shutil.which(command[0]):
        pytest.skip(f"no {command[0]} here")
    env = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    done = subprocess.run([*command, pages[name]], capture_output=True, text=True, env=env, check=False)
    printed = done.stdout if command[0] == "mandoc" else ""
    assert (done.returncode, done.stderr, printed) == (0, "", "")


def test_what_the_readme_says_to_type_for_git_is_what_the_manual_says(pages: dict[str, Path]) -> None:
    assert escape_block(block("git")) in pages["revproxyd.8"].read_text()


def escape_block(commands: str) -> str:
    return commands.replace("-", "\\-")
