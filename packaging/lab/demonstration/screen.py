"""What a person sees of the demonstration: headings, command lines, their output, and what was verified."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TextIO

_BOLD, _DIM, _RED, _GREEN, _CYAN = "1", "2", "31", "32", "36"
_PROMPT_COLOURS = {"client$": _CYAN, "proxy#": _BOLD}
WIDTH = 110


class Screen:
    """Prints at once, line by line. ``color`` None: on a terminal only, and not if NO_COLOR is set (no-color.org)."""

    def __init__(self, stream: TextIO = sys.stdout, *, color: bool | None = None) -> None:
        self._stream = stream
        self._color = stream.isatty() and not os.environ.get("NO_COLOR") if color is None else color

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._color and text else text

    def _print(self, text: str = "") -> None:
        print(text, file=self._stream, flush=True)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._print()
        for line in textwrap.wrap(" ".join(text.split()), WIDTH):
            self._print(line)

    def picture(self, text: str) -> None:
        """Lines as they are."""
        self._print()
        self._print(text.rstrip("\n"))

    def heading(self, text: str) -> None:
        """The title of a step."""
        self._print()
        self._print(self._paint(f"== {text} {'=' * max(2, WIDTH - 4 - len(text))}", _BOLD))

    def command(self, prompt: str, line: str) -> None:
        """A command line, as it was typed behind ``prompt``."""
        self._print()
        self._print(f"{self._paint(prompt, _PROMPT_COLOURS.get(prompt, _BOLD))} {self._paint(line, _BOLD)}")

    def output(self, text: str) -> None:
        """What a command printed."""
        for line in text.rstrip("\n").splitlines():
            self._print(f"  {self._paint(line, _DIM)}".rstrip())

    def verified(self, text: str) -> None:
        """Something that was found to hold."""
        self._print(f"{self._paint('✓', _GREEN)} {text}")

    def failed(self, text: str, details: str = "") -> None:
        """Something that did not hold, and what helps to find out why."""
        self._print()
        self._print(f"{self._paint('✗', _RED)} {text}")
        for line in details.rstrip("\n").splitlines():
            self._print(f"    {line}".rstrip())
