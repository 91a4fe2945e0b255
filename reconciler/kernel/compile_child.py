"""The compiler's short-lived process: C in, instructions out as JSON on standard output.

A process of its own because clang's memory (120 MiB) and bcc's at-exit hook should not stay in a daemon, and because
clang writes its messages to file descriptor 2 instead of into an exception. Needs no privilege: the maps are numbers
(see ``bpf/maps.h``) until the loader puts descriptors in their place.

Argument: a JSON object ``{"source": DIR, "functions": [NAME], "defines": {NAME: VALUE}, "assertions": [LINE]}``.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
from pathlib import Path

UAPI = Path("/usr/include")


def build_tree(source: Path, tree: Path) -> None:
    """Lay out what bcc takes for a kernel source: our shim, and linux-libc-dev's UAPI headers.

    ``uapi/linux/bpf.h`` stays empty, since bcc brings its own.
    """
    for header in (source / "shim" / "include").rglob("*.h"):
        place = tree / "include" / header.relative_to(source / "shim" / "include")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(header.read_bytes())
    uapi = tree / "include" / "uapi" / "linux"
    uapi.mkdir(parents=True)
    for header in (UAPI / "linux").iterdir():
        (uapi / header.name).symlink_to(header)
    (uapi / "bpf.h").unlink(missing_ok=True)
    (uapi / "bpf.h").touch()
    arch_headers = UAPI / f"{os.uname().machine}-linux-gnu"
    (tree / "include" / "uapi" / "asm").symlink_to(arch_headers / "asm")


def compile_source(request: dict[str, object], tree: Path) -> dict[str, str]:
    """Instructions of each function, base64."""
    source = Path(str(request["source"]))
    build_tree(source, tree)
    (tree / "layout_assertions.h").write_text("\n".join(request["assertions"]) + "\n")  # type: ignore[arg-type]  # JSON
    os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    from bcc import BPF  # after the variable is set, which bcc reads when it compiles

    defines: dict[str, int] = request["defines"]  # type: ignore[assignment]  # JSON
    flags = [f"-I{source}", f"-I{tree}", f"-I{UAPI}", f"-I{UAPI}/{os.uname().machine}-linux-gnu"]
    flags += ["-DCONFIG_BPF_SYSCALL", "-Wno-unused-function", "-Werror", "-Wno-macro-redefined"]
    flags += [f"-D{name}={value}" for name, value in defines.items()]
    if os.uname().machine != "x86_64":
        flags.append("-DWEAK_ORDER")
    module = BPF(src_file=str(source / "revproxy.c"), cflags=flags)
    functions: list[str] = request["functions"]  # type: ignore[assignment]  # JSON
    return {name: base64.b64encode(module.dump_func(name)).decode() for name in functions}


def main() -> int:
    """Compile what the argument asks for. Status 0 with JSON on stdout, 1 with messages on stderr."""
    request = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="revproxy-build-") as tree:
        try:
            functions = compile_source(request, Path(tree))
        except Exception as error:  # bcc raises bare Exception; its words go to the parent
            print(error, file=sys.stderr)
            return 1
    json.dump(functions, sys.stdout)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
