"""What a machine boots from: a root file system as an ext4 image, and an initial RAM disk that finds it.

Both are made from folders, without mounting anything. The root holds Debian's packages and, at ``/opt/venv``, the
Python packages of ``packaging/requirements.lock`` for that architecture. It knows of no kernel and of no checkout.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tests.vm import fetch

CHECKOUT: Final = Path(__file__).parents[2]
LOCK: Final = CHECKOUT / "packaging" / "requirements.lock"
RECIPE: Final = "2"
"""Another one when :func:`fetch.fetch_root` or what follows here changes: images are made anew then."""
GUEST: Final = Path(__file__).parent / "guest"

# For the root disk and the folders shared with the host; what these need comes by itself.
BOOT_MODULES: Final = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "9pnet_virtio", "9p", "overlay")
_WHEELS: Final = {
    "amd64": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "arm64": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def root_image(folder: Path, arch: str) -> Path:
    """The root file system's image; made when packages, lock file or the recipe have changed."""
    name = _digest(fetch.ROOT_PACKAGES, fetch.ROOT_SUITE, LOCK.read_text(), RECIPE)
    image = folder / "images" / f"root-{arch}-{name}.ext4"
    if image.exists():
        return image
    image.parent.mkdir(parents=True, exist_ok=True)
    for old in image.parent.glob(f"root-{arch}-*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    tree = image.with_suffix(".tree")
    tree.mkdir()
    fetch.fetch_root(tree, arch)
    _finish_root(tree)
    _python_packages(tree, arch)
    draft = image.with_suffix(".new")
    used = sum(path.lstat().st_size for path in tree.rglob("*"))
    size = f"{used * 5 // 4 // 1024**2 + 1024}M"
    subprocess.run(
        ["/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(tree), str(draft), size], check=True
    )
    shutil.rmtree(tree)
    draft.rename(image)
    return image


def _finish_root(tree: Path) -> None:
    """What maintainer scripts would have done, as far as tests need it."""
    for name in ("passwd", "group"):
        shutil.copy(tree / "usr/share/base-passwd" / f"{name}.master", tree / "etc" / name)
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (tree / "etc/hostname").write_text("revproxy-vm\n")
    authorities = sorted((tree / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = tree / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(path.read_text() for path in authorities))
    for name in ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/lib/apt/lists", "var/cache/apt"):
        shutil.rmtree(tree / name, ignore_errors=True)
    for name in ("proc", "sys", "dev", "run", "tmp", "share", "cache", "revproxy"):
        (tree / name).mkdir(exist_ok=True)


def _python_packages(tree: Path, arch: str) -> None:
    venv = tree / "opt/venv"
    site = venv / "lib/python3.11/site-packages"
    site.mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to("/usr/bin/python3")
    (venv / "bin/python3").symlink_to("python")
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\nversion = 3.11.2\n")
    (site / "checkout.pth").write_text("/revproxy\n")
    for name, module in (("revproxyctl", "reconciler.cli"), ("revproxyd", "reconciler.daemon")):
        script = venv / "bin" / name
        script.write_text(
            f"#!/revproxy/.venv/bin/python\nimport sys\nfrom {module} import main\n"
            f"sys.argv[0] = {f'/revproxy/.venv/bin/{name}'!r}\nsys.exit(main())\n"
        )
        script.chmod(0o755)
    command = [sys.executable, "-m", "pip", "-qq", "--no-input", "install", "--require-hashes", "--only-binary=:all:"]
    command += ["--no-deps", "--target", str(site), "--python-version=3.11", "--implementation=cp"]
    command += [word for platform in _WHEELS[arch] for word in ("--platform", platform)]
    fetch.fetched(f"pip for {arch}", [*command, "-r", str(LOCK)])
    program = [sys.executable, "-m", "compileall", "-q", "-j", "1", "-s", str(tree), str(tree / "usr/lib/python3")]
    subprocess.run([*program, str(site), str(tree / "usr/lib/python3.11")], check=False, stdout=subprocess.DEVNULL)


# -- initial RAM disk ----------------------------------------------------------------------------------------


def initramfs(folder: Path, kernel: Path, arch: str) -> Path:
    """The kernel's RAM disk: busybox, the modules it needs, and the script that goes on to the root file system."""
    release = (kernel / "release").read_text().strip()
    script = (GUEST / "initramfs.sh").read_text()
    image = folder / "images" / f"initramfs-{release}-{_digest(script, *BOOT_MODULES)}.gz"
    if image.exists():
        return image
    image.parent.mkdir(parents=True, exist_ok=True)
    files: dict[str, tuple[int, bytes]] = {}
    for name in ("bin", "dev", "proc", "root", "modules"):
        files[name] = (stat.S_IFDIR | 0o755, b"")
    files["bin/busybox"] = (stat.S_IFREG | 0o755, _busybox(folder, arch).read_bytes())
    order = []
    for path in _modules(kernel / "lib/modules" / release, BOOT_MODULES):
        plain = path.name.removesuffix(".xz")
        content = path.read_bytes()
        files[f"modules/{plain}"] = (
            stat.S_IFREG | 0o644,
            lzma.decompress(content) if path.suffix == ".xz" else content,
        )
        order.append(plain)
    files["modules/order"] = (stat.S_IFREG | 0o644, "".join(f"{each}\n" for each in order).encode())
    files["init"] = (stat.S_IFREG | 0o755, script.encode())
    draft = image.with_suffix(".new")
    draft.write_bytes(gzip.compress(b"".join(_cpio(files)), 1))
    draft.rename(image)
    return image


def _busybox(folder: Path, arch: str) -> Path:
    place = folder / "images" / f"busybox-{arch}"
    found = place / "usr/bin/busybox"
    old = place / "bin/busybox"
    if not found.exists() and not old.exists():
        archive = fetch.Archive(folder, arch)
        archive.update()
        archive.unpack("busybox-static", place)
    return found if found.exists() else old


def _modules(tree: Path, wanted: Iterable[str]) -> list[Path]:
    """Their files and those of what they need, in the order in which to load them. What is built in has no file."""
    needs: dict[str, tuple[Path, list[str]]] = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        needs[_module(name)] = (tree / name, [_module(each) for each in rest.split()])
    order: list[Path] = []

    def add(name: str) -> None:
        if name not in needs:
            return
        path, others = needs[name]
        for other in others:
            add(other)
        if path not in order:
            order.append(path)

    for name in wanted:
        add(name.replace("-", "_"))
    return order


def _module(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def _cpio(files: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """The "newc" format of Documentation/driver-api/early-userspace/buffer-format.rst."""
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield header + b"\0" * (-len(header) % 4) + content + b"\0" * (-len(content) % 4)
