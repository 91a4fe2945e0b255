"""Directories and files: what counts, what is refused, what is remembered."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.config import MAX_FILE_BYTES, Cache, build, files, load, parse_paths, parse_sources
from reconciler.config.document import Document
from reconciler.config.model import Fragment
from reconciler.errors import ConfigError

WEB = """\
apiVersion: revproxy/v1
proxies:
  - name: {name}
    listen: {{interfaces: [eth0], port: {port}}}
    default_target: {{ip: 10.0.0.1}}
"""


def web(name: str, port: int = 80) -> str:
    return WEB.format(name=name, port=port)


def refused(directory: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(directory)
    return [str(problem) for problem in caught.value.problems]


def test_files_count_by_suffix_in_name_order(tmp_path: Path) -> None:
    for number, name in enumerate(("20-b.yaml", "10-a.yml", "9.json")):
        (tmp_path / name).write_text(web(f"p{number}", 80 + number) if name != "9.json" else "{}")
    (tmp_path / "9.json").write_text('{"apiVersion": "revproxy/v1"}')
    for name in (".hidden.yaml", "notes.txt", "30-c.yaml~", "old.yaml.bak"):
        (tmp_path / name).write_text("no: [configuration")
    (tmp_path / "folder").mkdir()
    config = load(tmp_path)
    assert [proxy.name for proxy in config.proxies] == ["p1", "p0"]
    assert [file.path for file in config.files] == [str(tmp_path / n) for n in ("10-a.yml", "20-b.yaml", "9.json")]
    assert config.files[0].content == web("p1", 81).encode()
    assert config.files[0].digest == hashlib.sha256(config.files[0].content).digest()[:16]
    assert str(config.proxies[0].place) == f"{tmp_path}/10-a.yml:3:5"


def test_an_empty_directory_is_an_empty_configuration(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert load(tmp_path).proxies == ()
    assert load(tmp_path).settings == build.default_settings()


def test_no_directory(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == [f"{tmp_path}/none: there is no such directory"]
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file") == [f"{tmp_path}/file: can't be read: Not a directory"]


def test_links_to_directory_and_files(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "web.conf").write_text(web("web"))
    (tmp_path / "real" / "web.yaml").symlink_to(tmp_path / "web.conf")
    (tmp_path / "config.d").symlink_to("real")
    assert [proxy.name for proxy in load(tmp_path / "config.d").proxies] == ["web"]


def test_what_is_no_file_is_refused_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    os.mkfifo(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").symlink_to("nowhere")
    (tmp_path / "d.yaml").symlink_to("d.yaml")
    (tmp_path / "e.yaml").symlink_to("/proc/self/mem")  # a regular file whose reading fails, for root too
    (tmp_path / "f.yaml").write_bytes(b" " * 10_000_000)
    (tmp_path / "g.yaml").write_text("no: [configuration")
    (tmp_path / "i.yaml").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "h.yaml"))
        found = refused(tmp_path)
    assert [line.removeprefix(f"{tmp_path}/") for line in found if "g.yaml" not in line] == [
        "a.yaml:1:1: is a directory, not a file",
        "b.yaml:1:1: is not a regular file",
        "c.yaml:1:1: a symbolic link to nothing",
        "d.yaml:1:1: can't be read: Too many levels of symbolic links",
        "e.yaml:1:1: can't be read: Input/output error",
        f"f.yaml:1:1: too large: 10000000 bytes, the limit is {MAX_FILE_BYTES}",
        "h.yaml:1:1: is not a regular file",
        "i.yaml:1:1: is not a regular file",
    ]
    assert any(line.startswith(f"{tmp_path}/g.yaml:1:") for line in found)


def test_the_largest_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(web("web").encode().ljust(MAX_FILE_BYTES - 1, b" ") + b"\n")
    assert len(load(tmp_path).proxies) == 1
    with (tmp_path / "a.yaml").open("ab") as file:
        file.write(b"\n")
    assert refused(tmp_path) == [
        f"{tmp_path}/a.yaml:1:1: too large: {MAX_FILE_BYTES + 1} bytes, the limit is {MAX_FILE_BYTES}"
    ]


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml"))).write_text("a: [")
    assert refused(tmp_path)[0].encode().startswith(f"{tmp_path}/\\xff.yaml:1:".encode())


def test_a_name_with_line_breaks_stays_in_its_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb\x1b[31m\u2028.yaml").write_text("apiVersion: revproxy/v1\nx: 1\n")
    assert [line.partition(": ")[0] for line in refused(tmp_path)] == [f"{tmp_path}/a\\nb\\x1b[31m\\u2028.yaml:2:1"]


def test_a_link_to_itself_that_is_named_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").symlink_to("d.yaml")
    for named in (tmp_path, tmp_path / "d.yaml"):
        with pytest.raises(ConfigError, match=r"d\.yaml:1:1: can't be read: Too many levels of symbolic links"):
            parse_paths([named])


def test_paths_are_files_and_directories_each_once(tmp_path: Path) -> None:
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d" / "a.yaml").write_text(web("a", 80))
    (tmp_path / "b.conf").write_text(web("b", 81))
    (tmp_path / "link.yaml").symlink_to("b.conf")
    paths = [
        tmp_path / "config.d",
        tmp_path / "b.conf",
        tmp_path / "link.yaml",
        tmp_path / "config.d" / "a.yaml",
        tmp_path / "b.conf",
    ]
    assert [proxy.name for proxy in parse_paths(paths).proxies] == ["a", "b"]
    with pytest.raises(ConfigError, match=r"none\.yaml: can't be read: No such file or directory"):
        parse_paths([tmp_path / "none.yaml"])


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were parsed, as they are."""
    files: list[str] = []
    fragment = build.fragment

    def counting(document: Document) -> Fragment:
        files.append(Path(document.file).name)
        return fragment(document)

    monkeypatch.setattr(build, "fragment", counting)
    return files


def test_only_what_changed_is_parsed_again(tmp_path: Path, built: list[str]) -> None:
    for number in range(5):
        (tmp_path / f"{number}.yaml").write_text(web(f"p{number}", 80 + number))
    cache = Cache()
    first = load(tmp_path, cache)
    assert len(built) == 5
    before = (tmp_path / "3.yaml").stat()
    (tmp_path / "3.yaml").write_text(web("p3", 93))  # same length, and made to look as old
    os.utime(tmp_path / "3.yaml", ns=(before.st_atime_ns, before.st_mtime_ns))
    second = load(tmp_path, cache)
    assert built[5:] == ["3.yaml"]
    assert second.proxies[3].listen.ports == (93,)
    assert second == load(tmp_path)
    assert first.proxies[0] is second.proxies[0]


def test_of_thousands_of_files_the_one_that_was_edited_is_parsed(tmp_path: Path, built: list[str]) -> None:
    for number in range(2000):
        (tmp_path / f"{number:04}.yaml").write_text("apiVersion: revproxy/v1\n")
    cache = Cache()
    assert load(tmp_path, cache).proxies == ()
    assert len(built) == 2000
    (tmp_path / "1500.yaml").write_text(web("late"))
    found = load(tmp_path, cache)
    assert [each.name for each in found.proxies] == ["late"]
    assert len(found.files) == 2000
    assert built[2000:] == ["1500.yaml"]


def test_errors_are_remembered_too_and_do_not_stick(tmp_path: Path, built: list[str]) -> None:
    cache = Cache()
    for text, errors in ((web("Web"), 1), (web("Web"), 1), (web("web"), 0)):
        (tmp_path / "a.yaml").write_text(text)
        try:
            load(tmp_path, cache)
            found = 0
        except ConfigError as error:
            found = len(error.problems)
        assert found == errors
    assert built == ["a.yaml", "a.yaml"]


def test_what_is_not_used_any_more_is_forgotten(tmp_path: Path, built: list[str]) -> None:
    cache = Cache()
    parse_sources({"a.yaml": web("a").encode()}, cache)
    for _ in range(10):
        load(tmp_path, cache)
    parse_sources({"a.yaml": web("a").encode()}, cache)
    assert built == ["a.yaml", "a.yaml"]


@pytest.mark.parametrize(("large", "kept"), [(True, False), (False, True)])
def test_former_versions_of_large_files_are_forgotten(
    built: list[str], monkeypatch: pytest.MonkeyPatch, large: bool, kept: bool
) -> None:
    """With the next one that is right, so that undoing a mistake costs no parsing."""
    monkeypatch.setattr(files, "_LARGE_BYTES", 10 if large else 1 << 20)
    cache = Cache()
    right, wrong, other = ({"a.yaml": web(name).encode()} for name in ("web", "Web", "other"))
    parse_sources(right, cache)
    with pytest.raises(ConfigError):
        parse_sources(wrong, cache)
    parse_sources(right, cache)
    assert len(built) == 2
    parse_sources(other, cache)
    parse_sources(right, cache)
    assert len(built) == (3 if kept else 4)


def test_a_large_file(record_property: Callable[[str, object], None]) -> None:
    """20,000 routes: all there, and not read again; how long it took is told, not judged."""
    lines = [
        f"      - {{source: 10.{n >> 8}.{n & 255}.0/24, target: {{ip: 10.0.0.{n & 127}, port: 80}}}}"
        for n in range(20000)
    ]
    source = {"web.yaml": (web("web") + "    source_routes:\n" + "\n".join(lines)).encode()}
    cache = Cache()
    started = time.process_time()
    config = parse_sources(source, cache)
    parsed = time.process_time()
    again = parse_sources(source, cache)
    record_property("cpu_sec", f"{parsed - started:.2f} first, {time.process_time() - parsed:.4f} again")
    print(f"20,000 routes: {parsed - started:.2f} s, unchanged {time.process_time() - parsed:.4f} s")
    assert len(config.proxies[0].source_routes) == 20000
    assert config.proxies[0].source_routes[-1].place.line == 20006
    assert again.proxies[0] is config.proxies[0]


def test_what_anybody_may_write_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "config.d"
    directory.mkdir()
    for name in ("a.yaml", "b.yaml"):
        (directory / name).write_text(web(name[0], 80 + ord(name[0])))
    assert len(load(directory).proxies) == 2
    (directory / "b.yaml").chmod(0o666)
    (tmp_path / "real.yaml").write_text(web("c"))
    (tmp_path / "real.yaml").chmod(0o646)
    (directory / "c.yaml").symlink_to(tmp_path / "real.yaml")
    directory.chmod(0o1777)
    assert [line.partition(": can be written by anybody")[0] for line in refused(directory)] == [
        str(directory),
        f"{directory}/b.yaml:1:1",
        f"{directory}/c.yaml:1:1",
    ]
    assert f"`chmod o-w {directory}`" in refused(directory)[0]
    assert len(parse_paths([directory]).proxies) == 3, "files that are only looked at may be anybody's"
    for path in (directory, directory / "b.yaml", tmp_path / "real.yaml"):
        path.chmod(path.stat().st_mode & ~0o002)
    assert len(load(directory).proxies) == 3
