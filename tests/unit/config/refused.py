"""A file that is right, to be made wrong, and what is said of files that are."""

from __future__ import annotations

import pytest

from reconciler.config import parse_sources
from reconciler.errors import ConfigError

# Line 1 to 12; a case replaces some of its text.
BASE = """\
apiVersion: revproxy/v1
settings: {fast_path: true}
proxies:
  - name: web
    listen:
      interfaces: [eth0]
      addresses: [192.0.2.1]
      port: 80
    default_target: {ip: 10.0.0.1, port: 8080}
    source_routes:
      - source: 192.168.0.0/16
        target: {ip: 10.0.0.10, port: 8080}
"""
LISTEN_PORT = "port: 80\n"


def errors(**files: str | bytes) -> list[str]:
    """The errors of files; NAME stands for NAME.yaml."""
    sources = {f"{name}.yaml": text.encode() if isinstance(text, str) else text for name, text in files.items()}
    with pytest.raises(ConfigError) as caught:
        parse_sources(sources)
    return [str(problem) for problem in caught.value.problems]
