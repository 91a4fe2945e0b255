"""A reverse proxy for TCP and UDP in the kernel, and the reconciler that keeps it equal to a directory of files.

``reconciler.Client`` does everything the command line does; ``reconciler.errors`` holds what it raises and
``reconciler.answers`` what it returns. Nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reconciler.client import Client as Client
    from reconciler.errors import RevproxyError as RevproxyError

__version__ = "0.1.0"
__all__ = ["Client", "RevproxyError", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from reconciler.client import Client

        return Client
    if name == "RevproxyError":
        from reconciler.errors import RevproxyError

        return RevproxyError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
