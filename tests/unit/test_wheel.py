"""What is in the package that `make wheel` builds."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from this checkout, without fetching anything."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.parametrize(("folder", "pattern"), [("bpf", "**/*.[ch]"), ("schema", "*.json"), ("config.d", "*")])
def test_files_read_at_run_time_are_in_the_wheel(wheel: zipfile.ZipFile, folder: str, pattern: str) -> None:
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob(pattern) if path.is_file()}
    packed = {name.removeprefix("reconciler/_data/") for name in wheel.namelist()}
    assert wanted - packed == set()
    assert wanted


def test_every_module_is_in_the_wheel_and_tests_are_not(wheel: zipfile.ZipFile) -> None:
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "reconciler").rglob("*.py")}
    assert wanted - set(wheel.namelist()) == set()
    assert {name.split("/")[0] for name in wheel.namelist()} == {"reconciler", "revproxy-0.1.0.dist-info"}


def test_both_programs_are_entry_points(wheel: zipfile.ZipFile) -> None:
    text = wheel.read("revproxy-0.1.0.dist-info/entry_points.txt").decode()
    assert "revproxyctl = reconciler.start:revproxyctl" in text
    assert "revproxyd = reconciler.start:revproxyd" in text


def test_it_works_in_a_fresh_environment(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Installed, away from the checkout: both programs start, files are checked, the data plane compiles."""
    fresh = tmp_path / "venv"
    base = Path(sys.base_prefix) / "bin" / "python3"
    subprocess.run([base, "-m", "venv", "--system-site-packages", "--without-pip", fresh], check=True)
    (site,) = fresh.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", fresh / "bin" / "python", "--quiet", "install", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel.filename)], check=True)
    # What it depends on is this environment's; after its own, so that the package itself is the wheel's.
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies) + "\n")

    def run(*words: str | Path) -> str:
        done = subprocess.run([*map(str, words)], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    python, programs = fresh / "bin" / "python", fresh / "bin"
    where = run(
        python, "-c", "import reconciler.resources as r; print(r.__file__); print(r.directory('config.d'))"
    ).split()
    assert all(path.startswith(str(fresh)) for path in where), where
    assert "valid: " in run(programs / "revproxyctl", "validate", where[1])
    assert "--config-dir" in run(programs / "revproxyd", "--help")
    compiling = "from reconciler import resources; from reconciler.kernel.compiler import compile_programs"
    run(python, "-c", f"{compiling}; compile_programs(resources.bpf_dir())")


def test_the_same_wheel_comes_out_of_a_source_distribution(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Which holds everything that git does, but for what is about git and this project's CI."""
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path)]
    subprocess.run([*build, "--target", "sdist"], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    tree = tmp_path / archive.name.removesuffix(".tar.gz")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=False, capture_output=True, text=True).stdout
    missing = {name for name in listed.splitlines() if (ROOT / name).is_file() and not (tree / name).is_file()}
    assert {name.split("/")[0] for name in missing} <= {".ci", ".pre-commit-hooks.yaml"}
    subprocess.run([*build, "--target", "wheel"], cwd=tree, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(built).namelist()) == sorted(wheel.namelist())
