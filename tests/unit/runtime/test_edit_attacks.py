"""Edits of files as people leave them, on disks as they are: each is right to the byte, or refused with its place and
nothing changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.config.edit import (
    AddRoute,
    AddTarget,
    AttachInterfaces,
    Edit,
    RemoveProxy,
    RemoveTarget,
    SetSetting,
    SetWeight,
)
from reconciler.errors import ConfigError, EditError
from reconciler.runtime import editfiles
from reconciler.runtime.editfiles import carry_out

WEB = """\
apiVersion: revproxy/v1
proxies:
  - name: web   # the shop
    listen: {interfaces: [eth0], port: 80}
    default_target:
      - {ip: 10.0.0.1, port: 8080, weight: 1}
      - {ip: 10.0.0.3, port: 8080}
"""
EDITS: dict[str, tuple[Edit, str, str]] = {
    # the edit, what of the file it replaces, and by what
    "weight": (SetWeight("web", {"ip": "10.0.0.1"}, None, 7), "weight: 1", "weight: 7"),
    "interface": (AttachInterfaces(("eth1",), "web"), "[eth0]", "[eth0, eth1]"),
    "target": (
        AddTarget("web", {"ip": "10.0.0.9"}),
        "10.0.0.3, port: 8080}\n",
        "10.0.0.3, port: 8080}\n      - {ip: 10.0.0.9}\n",
    ),
    "no target": (RemoveTarget("web", {"ip": "10.0.0.3"}), "      - {ip: 10.0.0.3, port: 8080}\n", ""),
    "route": (
        AddRoute("web", "203.0.113.0/24", ()),
        "10.0.0.3, port: 8080}\n",
        "10.0.0.3, port: 8080}\n    source_routes:\n      - {source: 203.0.113.0/24, action: deny}\n",
    ),
    "no proxy": (RemoveProxy("web"), WEB[WEB.index("proxies:") :], "proxies: []\n"),
}
STYLES: dict[str, Callable[[str], bytes]] = {
    "as it is": str.encode,
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "byte order mark, CRLF": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "tabs before comments": lambda text: text.replace("web   #", "web\t#").encode(),
    "no line break at the end": lambda text: text.removesuffix("\n").encode(),
    "no line break at the end, CRLF": lambda text: text.removesuffix("\n").replace("\n", "\r\n").encode(),
    "lines behind": lambda text: (text + "\n\n# end\n").encode(),
    "markers": lambda text: ("%YAML 1.2\n---\n" + text + "...\n").encode(),
    "anchors": lambda text: text.replace("- {ip: 10.0.0.1", "- &a {ip: 10.0.0.1").encode(),
    "quotes": lambda text: text.replace("name: web", "\"name\": 'web'").encode(),
    "another alphabet": lambda text: text.replace("the shop", "der Läden \U0001f6d2").encode(),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_right_to_the_byte_in_every_style(tmp_path: Path, name: str, style: str) -> None:
    wanted, part, by = EDITS[name]
    assert WEB.count(part) == 1
    file = tmp_path / "web.yaml"
    file.write_bytes(STYLES[style](WEB))
    carry_out(tmp_path, wanted, None)
    assert file.read_bytes() == STYLES[style](WEB.replace(part, by))


WRONG: dict[str, tuple[bytes, str]] = {
    "UTF-16": (WEB.encode("utf-16"), "1:1: not UTF-8"),
    "Latin 1": (WEB.replace("shop", "shöp").encode("latin-1"), "3:25: not UTF-8"),
    "a NUL": (WEB.replace("shop", "sh\0p").encode(), "3:25: not YAML"),
    "a tab that indents": (WEB.replace("    listen", "\tlisten").encode(), "4:1: not YAML"),
    "a key twice": (WEB.replace("    default_target:", "    mode: dnat\n    mode: dnat\n    default_target:").encode(),
                    "6:5: the key 'mode' stands twice"),
    "a proxy twice": ((WEB + WEB[WEB.index("  - name") :]).encode(), "8:11: there is a proxy 'web' already"),
    "two documents": ((WEB + "---\n" + WEB).encode(), "8:1: a second document"),
    "an unknown key": (WEB.replace("listen:", "lisen:").encode(), "4:5: "),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_told_with_its_place_and_left_alone(tmp_path: Path, what: str) -> None:
    content, words = WRONG[what]
    file = tmp_path / "web.yaml"
    file.write_bytes(content)
    for wanted in (EDITS["weight"][0], SetSetting("fast_path", False)):
        with pytest.raises(ConfigError) as refused:
            carry_out(tmp_path, wanted, None)
        place = words.split(" ")[0]
        problems = [f"{each.file}:{each.line}:{each.column}: {each.message}" for each in refused.value.problems]
        if "in place" not in problems[0]:  # where it was to be edited, else
            assert any(each.startswith(f"{file}:{place}") for each in problems), (place, problems)
        assert words.split(": ", 1)[1] in str(refused.value)
    assert file.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["web.yaml"]


def test_a_file_that_is_replaced_or_goes_between_reading_and_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "web.yaml"
    check = editfiles.config_files.parse_sources
    other = WEB.replace("8080", "9090").encode()

    def replaced() -> None:
        draft = tmp_path / "draft"
        draft.write_bytes(other)
        draft.rename(file)

    def appended() -> None:
        with file.open("ab") as stream:
            stream.write(b"# more\n")

    def made_a_directory() -> None:
        file.unlink()
        file.mkdir()

    left: dict[Callable[[], object], bytes | None] = {
        replaced: other,
        file.unlink: None,
        appended: WEB.encode() + b"# more\n",
    }
    for meanwhile, content in left.items():
        file.write_bytes(WEB.encode())

        def then(*arguments: object, meanwhile: Callable[[], object] = meanwhile) -> object:
            meanwhile()
            return check(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(editfiles.config_files, "parse_sources", then)
        with pytest.raises(EditError, match="changed by somebody else meanwhile"):
            carry_out(tmp_path, EDITS["weight"][0], None)
        assert (file.read_bytes() if file.exists() else None) == content
        assert {each.name for each in tmp_path.iterdir()} <= {"web.yaml"}
    file.write_bytes(WEB.encode())
    monkeypatch.setattr(editfiles.config_files, "parse_sources", lambda *_: made_a_directory())
    with pytest.raises(EditError, match=r"web\.yaml: can't be written: Is a directory"):
        carry_out(tmp_path, EDITS["weight"][0], None)


def ctl(directory: Path, before: str, *words: str) -> subprocess.CompletedProcess[str]:
    """``revproxyctl`` on files in a mount namespace of its own, behind some commands; what files there are then, and
    whether the one has changed, is told at the end of the output."""
    program = Path(sys.executable).parent / "revproxyctl"
    script = f"""
        {before}
        status=0
        {program} --config-dir "{directory}" --run-dir "{directory}/none" "$@" || status=$?
        echo "left:" $(ls -A "{directory}")
        cmp "{directory}/web.yaml" "{directory.parent}/web.yaml" && echo unchanged
        exit $status
    """
    command = ["unshare", "--mount", "bash", "-ec", script, "bash", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    ("before", "words"),
    [
        ('mount -t tmpfs -o size=64k none "{0}"; cp "{1}" "{0}"; cat /dev/zero >"{0}/full" 2>/dev/null || true',
         "No space left on device"),
        ('mount --bind "{0}" "{0}"; mount -o remount,bind,ro "{0}"', "Read-only file system"),
        ('mount --bind "{0}/web.yaml" "{0}/web.yaml"', "Device or resource busy"),
    ],
    ids=["full disk", "read-only", "mounted file"],
)  # fmt: skip
def test_a_disk_that_takes_nothing(tmp_path: Path, before: str, words: str) -> None:
    source, directory = tmp_path / "web.yaml", tmp_path / "config.d"
    directory.mkdir()
    for path in (source, directory / "web.yaml"):
        path.write_text(WEB)
    for edit in (
        ("target", "weight", "web", "10.0.0.1:8080", "7", "--no-apply"),
        ("proxy", "remove", "web", "--no-apply"),
    ):
        done = ctl(directory, before.format(directory, source), *edit)
        assert done.returncode == 1, done.stdout + done.stderr
        assert f"web.yaml: can't be written: {words}" in done.stderr
        assert "Traceback" not in done.stderr
        *_, left, unchanged = done.stdout.splitlines()
        assert (set(left.split()[1:]) - {"full"}, unchanged) == ({"web.yaml"}, "unchanged")
