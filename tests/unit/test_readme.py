"""What README.md says of files and commands is so. What it says to type is tried in tests/e2e/test_readme.py."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from ruamel.yaml import YAML

from reconciler import Client
from reconciler.cli import app
from reconciler.daemon import command as daemon
from reconciler.places import Places
from tests.clirunner import CliRunner
from tests.readme import block, commands, rows

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SCHEMA = json.loads((ROOT / "schema" / "revproxy-v1.schema.json").read_text())
YAML_BLOCKS = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
HERE_DOCUMENTS = re.findall(r"<<'EOF'\n(.*?)^EOF$", README, re.DOTALL | re.MULTILINE)


def reference() -> Any:
    """The example with every key, parsed."""
    found = re.search(r"<!-- reference -->\n```yaml\n(.*?)```", README, re.DOTALL)
    assert found
    return YAML(typ="safe", pure=True).load(found[1])


def keys_of(value: Any) -> Iterator[str]:
    """Every key at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)


@pytest.mark.parametrize("text", [*YAML_BLOCKS, *HERE_DOCUMENTS])
def test_yaml_is_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "readme.yaml"
    file.write_text(text)
    result = CliRunner().invoke(app, ["validate", str(file)])
    assert result.exit_code == 0, result.output


def test_everything_to_type_has_a_name_and_a_test_that_types_it() -> None:
    fences = re.findall(r"(?:<!-- (.*?) -->\n)?```(\w*)\n.*?```", README, re.DOTALL)
    assert {language for _, language in fences} == {"sh", "yaml", "ini", "text"}
    assert [each for each in fences if not each[0]] == []
    names = [name for name, _ in fences]
    assert len(set(names)) == len(names)
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__))
    quoted = set(re.findall(r'"([a-zA-Z][^"\n]*)"', tests))
    typed = quoted | {f"task: {each}" for each in quoted} | {f"task: {each}, then" for each in quoted}
    assert set(names) - typed == {"make", "make demo"}, "those are checked here, and in test_demo.py"


def test_nothing_to_type_stands_outside_of_the_named_blocks() -> None:
    assert re.findall(r"^ {4,}\S.*$", re.sub(r"```.*?```", "", README, flags=re.DOTALL), re.MULTILINE) == []


def test_the_example_configuration_is_valid() -> None:
    result = CliRunner().invoke(app, ["validate", str(ROOT / "config.d")])
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output


def test_the_example_configuration_names_the_schema() -> None:
    for file in (ROOT / "config.d").iterdir():
        found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", file.read_text())
        assert found, file
        assert (file.parent / found[1]).resolve() == ROOT / "schema" / "revproxy-v1.schema.json"


def test_the_reference_has_every_key_and_no_other() -> None:
    objects = [SCHEMA, *(each for each in SCHEMA["$defs"].values() if "properties" in each)]
    assert set(keys_of(reference())) == {key for each in objects for key in each["properties"]}


def test_the_settings_shown_are_the_defaults() -> None:
    properties = SCHEMA["$defs"]["settings"]["properties"]
    assert reference()["settings"] == {key: value["default"] for key, value in properties.items()}


def test_the_values_of_every_choice_are_named() -> None:
    section = README.partition("\n## Configuration\n")[2].partition("\n## ")[0]
    choices = {
        value
        for each in SCHEMA["$defs"].values()
        for one in each.get("properties", {}).values()
        for value in one.get("enum", ())
    }
    assert choices
    assert {value for value in choices if not re.search(rf"\b{value}\b", section)} == set()


def test_every_command_is_there_with_options_it_has() -> None:
    told = {each.name: each.options for each in commands()}
    assert set(told) == set(_runnable(app))
    for name, options in told.items():
        command: click.Command = app
        for word in name.split():
            assert isinstance(command, click.Group)
            command = command.commands[word]
        common = {option for each in app.params for option in each.opts} | {"--help"}
        assert (
            options == {option for each in command.params for option in each.opts if option.startswith("--")} - common
        ), name


def test_common_options_and_those_of_the_daemon_exist() -> None:
    of_daemon = {option for each in daemon.params for option in each.opts}
    of_command_line = {option for each in app.params for option in each.opts}
    assert {"--output", "-q", "-v", "--no-color"} <= of_command_line
    mentioned = set(re.findall(r"`(--[a-z-]+)[` ]", README))
    every = {option for each in _commands(app) for param in each.params for option in param.opts}
    assert mentioned - every == {"--detach-on-exit", "--log-format", "--log-level", "--resync"}
    assert mentioned - every < of_daemon


def test_every_method_of_the_client_is_named() -> None:
    section = README.partition("The same from Python:")[2].partition("Other languages")[0]
    named = set(re.findall(r"`(\w+)\(\)`", section))
    assert named == {name for name, each in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}


def _runnable(group: click.Group, prefix: str = "") -> Iterator[str]:
    """Every command that does something by itself."""
    for name, command in group.commands.items():
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield prefix + name
        if isinstance(command, click.Group):
            yield from _runnable(command, f"{prefix}{name} ")


def _commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from _commands(inner)


def test_the_places_are_the_defaults() -> None:
    told = {cells[0].strip("`"): (cells[1].strip("`"), cells[2].strip("`")) for cells in rows("Files and directories")}
    places = Places()
    assert told == {
        f"--{name}-dir": (f"REVPROXY_{name.upper()}_DIR", str(getattr(places, f"{name}_dir")))
        for name in ("config", "run", "state", "bpffs")
    }


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_first_commands_are_targets_that_tests_run() -> None:
    lines = [line.partition("#")[0].split() for line in block("make").splitlines()]
    assert lines == [["make", "demo"], ["make", "test"]]  # tests/e2e/test_demo.py, and this


def test_make_has_the_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = set(re.findall(r"(?:^    |^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "setup", "lab"} <= told
    assert told - targets == set()


def test_what_is_told_of_benchmarks_and_the_soak_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where it would begin: they take minutes."""
    told = [("bench", arguments) for arguments in re.findall(r'make bench ARGS="?([^`"]+)"?`', README)]
    told += [("soak", arguments) for arguments in re.findall(r"`make soak`[^`]*`ARGS=\"([^\"]+)\"`", README)]
    assert {name for name, _ in told} == {"bench", "soak"}
    monkeypatch.syspath_prepend(ROOT / "packaging" / "lab")
    for name, arguments in [*told, ("bench", "lab --cell nosuch")]:
        monkeypatch.setattr(sys, "argv", [name, *arguments.split(), "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"tests.{name}", run_name="__main__")
        assert ended.value.code == (2 if "nosuch" in arguments else 0), arguments
