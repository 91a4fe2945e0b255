"""Writes the manual pages: the templates of man/ with what the command line and the JSON Schema say (make man).

A line ``@NAME@`` in a template is replaced. What is generated comes from where the programs have it: options, commands
and exit statuses from click's tree, keys with their defaults from the schema. So the pages can't fall behind.

Arguments: the directory to write to, and optionally the date for the pages' foot (YYYY-MM-DD).
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

ROOT: Final = Path(__file__).resolve().parents[1]
PAGES: Final = ("revproxyctl.1", "revproxyd.8", "revproxy.yaml.5")
_EXIT_STATUS: Final = re.compile(r"\s*\bExit\s+status:?\s+(.*?)\.?\s*$", re.DOTALL)
_USUAL_STATUS: Final = "0, or 1 for trouble"


def escape(text: str) -> str:
    """Plain text as roff: nothing in it is taken for a request, and hyphens can be copied from the page."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def prose(text: str) -> str:
    """Escaped text of one paragraph, with `what is in backticks` in bold."""
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", escape(" ".join(text.split())))


# -- click ---------------------------------------------------------------------------------------------------


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group that is not hidden, with the words that lead to it, in order of their names."""
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            if not inner.hidden:
                yield (*path, name), inner
                yield from commands(inner, (*path, name))


def own_options(command: click.Command, common: set[str]) -> list[click.Option]:
    """Its options without those that every command takes."""
    found = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    return [each for each in found if not common & set(each.opts)]


def option_entry(option: click.Option, command: click.Command) -> str:
    """An option as a tagged paragraph."""
    with click.Context(command) as context:
        record = option.get_help_record(context)
    names = [rf"\fB{escape(name)}\fR" for name in (*option.opts, *option.secondary_opts)]
    names.sort(key=lambda name: name.startswith(r"\fB\-\-"))
    metavar = "" if option.is_flag or option.count else rf" \fI{escape(_metavar(option, command))}\fR"
    return f".TP\n{', '.join(names)}{metavar}\n{prose(record[1] if record else option.help or '')}\n"


def _metavar(parameter: click.Parameter, command: click.Command) -> str:
    with click.Context(command) as context:
        try:
            text = parameter.make_metavar(context)  # type: ignore[call-arg,unused-ignore]  # click 8.2
        except TypeError:
            text = parameter.make_metavar()  # type: ignore[call-arg,unused-ignore]  # before
    return text.removesuffix(" RANGE")  # the help says which


def usage(words: Sequence[str], command: click.Command, common: set[str]) -> str:
    """The command as it is typed, arguments included, options of its own named."""
    parts = [rf"\fB{escape(' '.join(words))}\fR"]
    for option in own_options(command, common):
        name = rf"\fB{escape(max(option.opts, key=len))}\fR"
        value = "" if option.is_flag or option.count else rf" \fI{escape(_metavar(option, command))}\fR"
        parts.append(f"{name}{value}" if option.required else f"[{name}{value}]")
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    parts += [rf"\fI{escape(_metavar(each, command))}\fR" for each in arguments]
    if isinstance(command, click.Group) and not command.invoke_without_command:
        parts.append(r"\fICOMMAND\fR")
    return " ".join(parts)


def exit_status(command: click.Command) -> str:
    """What its help says of exit statuses."""
    found = _EXIT_STATUS.search(_help(command))
    return " ".join(found[1].split()) if found else _USUAL_STATUS


def _help(command: click.Command) -> str:
    return (command.help or command.short_help or "").partition("\f")[0].strip()


def help_paragraphs(command: click.Command) -> str:
    """Its help, as paragraphs, without the sentence on exit statuses, which have a section of their own."""
    lines = []
    for paragraph in re.split(r"\n\s*\n", _EXIT_STATUS.sub("", _help(command))):
        if paragraph.lstrip().startswith("\b"):
            kept = paragraph.split("\b", 1)[1].strip("\n")
            lines += [".PP", ".nf", escape(kept), ".fi"]
        elif paragraph.strip():
            lines += [".PP", prose(paragraph)]
    return "\n".join(lines[1:]) + "\n"


def common_options(root: click.Command) -> str:
    """The options that every command takes."""
    found = [each for each in root.params if isinstance(each, click.Option) and not each.hidden]
    help_option = root.get_help_option(click.Context(root, **root.context_settings))
    return "".join(option_entry(option, root) for option in (*found, help_option) if option)


def command_sections(root: click.Group) -> str:
    """A subsection for each command."""
    common = _common(root)
    parts = []
    for words, command in commands(root):
        parts.append(f".SS {usage(words, command, common)}\n{help_paragraphs(command)}")
        parts += [option_entry(option, command) for option in own_options(command, common)]
    return "".join(parts)


def status_table(root: click.Group) -> str:
    """Commands and their exit statuses."""
    return "".join(
        rf".TP{chr(10)}\fB{escape(' '.join(words))}\fR{chr(10)}{prose(exit_status(command))}{chr(10)}"
        for words, command in commands(root)
        if not isinstance(command, click.Group) or command.invoke_without_command
    )


def _common(root: click.Command) -> set[str]:
    return {name for each in root.params for name in each.opts} | {"--help"}


# -- the schema ----------------------------------------------------------------------------------------------


def objects(schema: Mapping[str, Any]) -> dict[str, tuple[list[str], Mapping[str, Any]]]:
    """Every kind of mapping a file may hold, by the schema's name for it: the paths it stands at, and itself."""
    found: dict[str, tuple[list[str], Mapping[str, Any]]] = {"": ([""], schema)}
    waiting = [""]
    while waiting:
        paths, definition = found[waiting.pop(0)]
        for key, value in definition["properties"].items():
            for name, inner, suffix in _mappings(value, schema, key):
                below = [f"{path}.{key}{suffix}".lstrip(".") for path in paths]
                if name in found:
                    found[name][0].extend(path for path in below if path not in found[name][0])
                else:
                    found[name] = (below, inner)
                    waiting.append(name)
    return found


def _mappings(
    value: Mapping[str, Any], schema: Mapping[str, Any], name: str, suffix: str = ""
) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """The mappings a value may be or hold: name, definition, and [] for each list around it."""
    if "$ref" in value:
        name = value["$ref"].removeprefix("#/$defs/")
        value = schema["$defs"][name]
    if "properties" in value:
        yield name, value, suffix
    if isinstance(items := value.get("items"), dict):
        yield from _mappings(items, schema, name, suffix + "[]")
    choices = [one for word in ("oneOf", "anyOf") for one in value.get(word, ()) if one.keys() - {"required"}]
    kinds = {kind: found for one in choices for kind, *found in _mappings(one, schema, name, suffix)}
    yield from ((kind, definition, path) for kind, (definition, path) in kinds.items())


def key_sections(schema: Mapping[str, Any]) -> str:
    """A subsection for each kind of mapping, a tagged paragraph for each of its keys."""
    parts = []
    for paths, definition in objects(schema).values():
        title = ", ".join(path for path in paths) or "The file"
        parts.append(rf'.SS "{escape(title)}"{chr(10)}')
        if paths != [""] and definition.get("description"):
            parts.append(prose(definition["description"]) + "\n")
        required = definition.get("required", ())
        for key, value in definition["properties"].items():
            parts.append(_key(key, value, schema, key in required))
    return "".join(parts)


def _key(key: str, value: Mapping[str, Any], schema: Mapping[str, Any], required: bool) -> str:
    referred = schema["$defs"][value["$ref"].removeprefix("#/$defs/")] if "$ref" in value else {}
    whole = {**referred, **value}
    facts = ["required"] if required else []
    if "default" in value and not required and value["default"] is not None:
        facts.append(f"default: `{json.dumps(value['default'], ensure_ascii=False)}`".replace('"', ""))
    kind = " | ".join(map(str, whole["enum"])) if "enum" in whole else whole.get("title", whole.get("type", ""))
    text = whole.get("description", "").removesuffix(" Required.")
    note = f" ({prose('; '.join(facts))})" if facts else ""
    return f".TP\n\\fB{escape(key)}\\fR: {prose(kind)}{note}\n{prose(text)}\n"


def example(text: str) -> str:
    """A file as it is."""
    return ".EX\n" + escape(text).replace("\n\n", "\n.sp\n") + ".EE\n"


# -- kernels -------------------------------------------------------------------------------------------------


def kernel_table(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """What ran on which kernel, as text in columns: a row for each feature, below it which kernels these were."""
    names = [".".join(each["release"].split(".")[:2]) for each in kept.values()]
    rows = {"": [str(each["arch"]) for each in kept.values()]}
    for name in dict.fromkeys(feature for each in kept.values() for feature in each["features"]):
        rows[name] = [_cell(each["features"].get(name, {})) for each in kept.values()]
    efforts = [list(each["effort"].values()) for each in kept.values()]
    for place, title in ((0, "instructions of the largest"), (2, "most the verifier goes through")):
        rows[title] = [f"{max(each[place] for each in effort):,}" if effort else "-" for effort in efforts]
        allowed = [each.get("ceilings") for each in kept.values()]
        rows[("size" if place == 0 else "effort") + " that would fail a test"] = [
            f"{each[place // 2]:,}" if each else "-" for each in allowed
        ]
    wide = max(len(each) for each in rows)
    columns = [max(len(name), *(len(row[place]) for row in rows.values())) for place, name in enumerate(names)]
    lines = [
        "  ".join([title.ljust(wide), *(cell.rjust(width) for cell, width in zip(cells, columns, strict=True))])
        for title, cells in (("Linux", names), *rows.items())
    ]
    releases = escape(", ".join(each["release"] for each in kept.values()))
    return ".EX\n" + escape("\n".join(lines)) + f"\n.EE\n.PP\nThese are {releases}.\n"


def _cell(counts: Mapping[str, int]) -> str:
    """Passed of those that could run; ``no`` where all were left out, the kernel having no such thing."""
    tried = counts.get("passed", 0) + counts.get("failed", 0)
    if not tried:
        return "no" if counts.get("skipped") else "-"
    return "yes" if not counts["failed"] else "no" if not counts["passed"] else f"{counts['passed']} of {tried}"


# -- pages ---------------------------------------------------------------------------------------------------


def values(day: str) -> dict[str, str]:
    """What stands for each ``@NAME@``."""
    sys.path.insert(0, str(ROOT))
    from reconciler import __version__
    from reconciler.cli import app
    from reconciler.daemon import command as daemon

    schema = json.loads((ROOT / "schema" / "revproxy-v1.schema.json").read_text())
    return {
        "DATE": day,
        "VERSION": __version__,
        "COMMON_OPTIONS": common_options(app),
        "COMMANDS": command_sections(app),
        "EXIT_STATUS": status_table(app),
        "DAEMON_OPTIONS": common_options(daemon),
        "KEYS": key_sections(schema),
        "EXAMPLE": example((ROOT / "config.d" / "10-web.yaml").read_text().partition("\n")[2]),
        "KERNELS": kernel_table(json.loads((ROOT / "man" / "kernels.json").read_text())),
        "SHARED": (ROOT / "man" / "shared.in").read_text(),
    }


def page(template: str, filled: Mapping[str, str]) -> str:
    """A template with its values; raises KeyError for a name that has none."""
    for _ in range(2):  # what is put in may name values itself
        template = re.sub(r"@([A-Z_]+)@", lambda found: filled[found[1]], template)
    return re.sub(r"\n{2,}", "\n", template)


def write(directory: Path, day: str) -> list[Path]:
    """Write all pages; the files."""
    directory.mkdir(parents=True, exist_ok=True)
    filled = values(day)
    written = []
    for name in PAGES:
        file = directory / name
        file.write_text(page((ROOT / "man" / f"{name}.in").read_text(), filled))
        written.append(file)
    return written


if __name__ == "__main__":
    for file in write(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else time.strftime("%F")):
        print(file)
