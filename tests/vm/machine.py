"""One QEMU machine without KVM: started, given jobs through a shared folder, stopped.

The host writes a job's command into ``share/jobs/N``, the guest runs it and writes output and status there. The root
disk is thrown away with the machine. It runs at a low priority.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm import fetch, images

# Nehalem: QEMU 7.2 emulates AVX2 wrong (numpy's argsort comes out of order), so the machine must not have it.
ARCHITECTURES: Final = {
    "amd64": ("qemu-system-x86_64", "-machine", "q35", "-cpu", "Nehalem", "-append", "console=ttyS0"),
    "arm64": (
        "qemu-system-aarch64",
        "-machine",
        "virt,gic-version=3",
        "-cpu",
        "cortex-a72",
        "-append",
        "console=ttyAMA0",
    ),
}
# An emulated machine may stand still for a while when the host is busy: no_timer_check and tsc=reliable keep the kernel
# from taking that for broken timers.
KERNEL_OPTIONS: Final = (
    "loglevel=6 panic=-1 mitigations=off nokaslr audit=0 no_timer_check tsc=reliable nowatchdog "
    "rcupdate.rcu_cpu_stall_suppress=1"
)
BOOT_SEC: Final = 900  # half a minute on an idle host
PROCESSORS: Final = 2
# One thread for both processors. With one for each, QEMU 7.2 goes on with what it had translated of code that the other
# one changes: Linux 6.12 died of a breakpoint that it had taken out again (int3 in bpf_dispatcher_xdp_func, where
# BPF_PROG_TEST_RUN puts its program in), once in 25 runs of tests/kernel/test_events.py's test of both processors;
# 175 went well with one thread, which is no slower.
ACCELERATION: Final = "tcg,thread=single,tb-size=512"
NICE: Final = 15
"""Of the machine towards the host. At 19 it stands still beside anything else."""
MEMORY: Final = "3G"


class MachineError(Exception):
    """The machine did not do what it was to do; the message has its last words. ``processor_sec``: how much of the
    host's processors it had had until it ended, or was stopped. ``died``: it ended without having been told to."""

    def __init__(self, message: str, processor_sec: float = 0.0, died: bool = False) -> None:
        super().__init__(message)
        self.processor_sec, self.died = processor_sec, died


@dataclass(frozen=True)
class Machine:
    """A machine by its folder; ``kernel`` as typed (``6.1``, ``newest``), ``arch`` ``amd64`` or ``arm64``."""

    folder: Path
    kernel: str
    arch: str

    @property
    def place(self) -> Path:
        """Where this machine's process id, console and shared folder are."""
        return self.folder / "machines" / f"{self.kernel}-{self.arch}"

    @property
    def share(self) -> Path:
        """The folder that the guest sees as ``/share``."""
        return self.place / "share"

    def pid(self) -> int | None:
        """The running machine's process, None if none runs."""
        try:
            number = int((self.place / "pid").read_text())
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
            command = Path(f"/proc/{number}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        # Empty for a moment while nice becomes QEMU: only another program's command line says that it is not ours.
        return None if state == "Z" or (command and str(self.place).encode() not in command) else number

    def prepare(self, say: Callable[[str], None]) -> None:
        """Make what the machine boots from, where it isn't there."""
        say(f"kernel {self.kernel} for {self.arch}")
        kernel = fetch.fetch_kernel(self.folder, self.arch, self.kernel)
        say(f"Linux {self.release}; initial RAM disk and root file system")
        images.initramfs(self.folder, kernel, self.arch)
        images.root_image(self.folder, self.arch)

    @property
    def release(self) -> str:
        """The kernel's, like ``6.1.0-50-amd64``."""
        return (self.folder / "kernels" / f"{self.kernel}-{self.arch}" / "release").read_text().strip()

    def _command(self) -> list[str]:
        kernel = fetch.fetch_kernel(self.folder, self.arch, self.kernel)
        cache = self.folder / "cache" / self.arch
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_programs(cache / "programs")
        program, *machine, console = ARCHITECTURES[self.arch]
        modules = (kernel / "lib/modules" / self.release).resolve()
        command = ["nice", "-n", str(NICE), program, *machine, f"{console} {KERNEL_OPTIONS}"]
        command += ["-accel", ACCELERATION, "-smp", str(PROCESSORS), "-m", MEMORY]
        image = kernel / "boot" / f"vmlinuz-{self.release}"
        if not image.exists():  # since Linux 7.3
            image = modules / "vmlinuz"
        command += ["-kernel", str(image)]
        command += ["-initrd", str(images.initramfs(self.folder, kernel, self.arch))]
        command += ["-nodefaults", "-nographic", "-no-reboot", "-serial", f"file:{self.place / 'console'}"]
        command += ["-device", "virtio-rng-pci"]
        image = images.root_image(self.folder, self.arch)
        command += ["-drive", f"file={image},format=raw,if=none,id=root,snapshot=on,cache=unsafe"]
        command += ["-device", "virtio-blk-pci,drive=root"]
        for tag, path, options in (
            ("share", self.share, ""),
            ("cache", cache, ""),
            ("modules", modules, ",readonly=on"),
        ):
            command += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{options}"]
            command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        return command

    @property
    def boot_sec(self) -> float:
        """How long the boot of the machine that is up took."""
        return (self.share / "up").stat().st_mtime - (self.place / "pid").stat().st_mtime

    def processor_sec(self) -> float:
        """How much of the host's processors it has had; 0 when it does not run."""
        number = self.pid()
        if number is None:
            return 0.0
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def start(self, say: Callable[[str], None]) -> None:
        """Boot, unless it runs, and wait until it is up. Raises :class:`MachineError`."""
        if self.pid() is None:
            self._launch(say)
        began = time.monotonic()
        while not (self.share / "up").exists():
            number = self.pid()
            if number is None or time.monotonic() - began > BOOT_SEC:
                self.stop()
                raise MachineError(f"Linux {self.release} did not come up.\n{self.last_words()}")
            self._reap(number)
            time.sleep(0.2)
        say(f"Linux {self.release} is up, {self.boot_sec:.0f} s after its start")

    def _launch(self, say: Callable[[str], None]) -> None:
        self.prepare(say)
        shutil.rmtree(self.place, ignore_errors=True)
        (self.share / "jobs").mkdir(parents=True)
        shutil.copytree(images.GUEST, self.share / "guest")
        with (self.place / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        (self.place / "pid").write_text(str(process.pid))
        # Where each session is a scheduling group (sched(7)), a process's own niceness counts within its session only.
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text(str(NICE))

    @staticmethod
    def _take_programs(place: Path) -> None:
        """Give the machine what this checkout has compiled: it takes what its own compiler and headers would make too
        (:mod:`reconciler.kernel.codecache`), and compiles the rest."""
        place.mkdir(mode=0o700, exist_ok=True)
        for made in (images.CHECKOUT / ".pytest_cache" / "programs").glob("*.json"):
            shutil.copy2(made, place)

    def last_words(self) -> str:
        """The end of the console and what QEMU said."""
        texts = []
        for name in ("qemu.log", "console"):
            path = self.place / name
            if path.exists():
                texts += path.read_text(errors="replace").splitlines()[-15:]
        return "\n".join(texts)

    def run(
        self,
        command: str,
        limit_sec: float,
        environment: Mapping[str, str] | None = None,
        tests: Sequence[str] | None = (),
    ) -> int:
        """Run a shell command in ``/revproxy``; its output goes to standard output as it comes. Its exit status.

        ``/revproxy`` is made a copy of this checkout first, but not if ``tests`` is None: what runs there already can
        be looked at then. Raises :class:`MachineError` when the machine dies, or when the time is over: it is stopped.
        """
        jobs = self.share / "jobs"
        job = jobs / f"{len(list(jobs.iterdir())) + 1:03}"
        job.mkdir()
        variables = "".join(f"export {name}='{value}'\n" for name, value in (environment or {}).items())
        (job / "command").write_text(f"{variables}{command}\n")
        if tests is not None:
            pack_checkout(job / "checkout.tar", tests)
        (job / "ready").touch()
        output, status, shown, processor_sec = job / "output", job / "status", 0, 0.0
        end = time.monotonic() + limit_sec
        while True:
            done = status.exists()
            if output.exists():
                with output.open("rb") as stream:
                    stream.seek(shown)
                    fresh = stream.read()
                shown += len(fresh)
                sys.stdout.write(fresh.decode(errors="replace"))
                sys.stdout.flush()
            if done:
                (job / "checkout.tar").unlink(missing_ok=True)
                return int(status.read_text())
            number = self.pid()
            if number is None:
                died = not (self.share / "poweroff").exists()
                raise MachineError(f"the machine ended.\n{self.last_words()}", processor_sec, died)
            processor_sec = self.processor_sec() or processor_sec
            if time.monotonic() > end:
                self.stop()
                text = f"not done in {limit_sec:.0f} s: the machine was stopped.\n{self.last_words()}"
                raise MachineError(text, processor_sec)
            self._reap(number)
            time.sleep(0.2)

    def stop(self) -> None:
        """Switch it off; as a rule it does so itself. Can be repeated."""
        number = self.pid()
        if number is None:
            return
        (self.share / "poweroff").touch()
        for wait_sec, kill in ((15, signal.SIGTERM), (5, signal.SIGKILL)):
            end = time.monotonic() + wait_sec
            while self._runs(number) and time.monotonic() < end:
                time.sleep(0.2)
            if not self._runs(number):
                break
            os.kill(number, kill)
        (self.place / "pid").unlink(missing_ok=True)

    def _runs(self, number: int) -> bool:
        self._reap(number)
        return self.pid() == number

    @staticmethod
    def _reap(number: int) -> None:
        """A child of ours that has ended must not count as running."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(number, os.WNOHANG)


def pack_checkout(path: Path, tests: Sequence[str] = ()) -> None:
    """All files of this checkout that git knows or would take, and what Python compiled of them: in an emulated machine
    that would take minutes. ``tests``: of these also as pytest compiles them."""
    source = images.CHECKOUT
    words = ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\0")
    for words in (
        ["compileall", "-q", "reconciler", "packaging/lab", "tests"],
        ["pytest", "--collect-only", "-q", *tests],
    ):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        command = [sys.executable, "-m", *words]
        subprocess.run(command, cwd=source, env=environment, check=False, capture_output=True)
    files = [source / name for name in listed if name and (source / name).exists()]
    folders = {file.parent for file in files if file.suffix == ".py"}
    files += [compiled for folder in sorted(folders) for compiled in (folder / "__pycache__").glob("*.pyc")]
    with tarfile.open(path, "w") as archive:
        for file in files:
            archive.add(file, file.relative_to(source), recursive=False)
