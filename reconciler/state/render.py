"""A plan in words, for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from reconciler.state.diff import Action, Change, yaml_lines
from reconciler.state.plan import Plan

_SIGNS: dict[Action, str] = {
    "create": "+",
    "attach": "+",
    "update": "~",
    "replace": "~",
    "delete": "-",
    "detach": "-",
}
_COLOURS = {"+": "\033[32m", "~": "\033[33m", "-": "\033[31m"}

Paint = Callable[[str, str], str]


def plan_text(plan: Plan, color: bool = False) -> str:
    """What an apply would do: object by object, the operations per map, live connections, and a summary line."""
    if plan.empty:
        return "No changes: the kernel is as the files say.\n"

    def paint(sign: str, line: str) -> str:
        return f"{_COLOURS[sign]}{line}\033[0m" if color else line

    lines = [line for change in plan.changes for line in _change(change, paint)]
    lines += ["", *_operations(plan)]
    lines += [
        f"{_number(each.connections, 'live connection')} of {each.proxy} to {each.target} {_fate(each.connections)}."
        for each in plan.touched
    ]
    lines += [f"Plan: {summary(plan)}."]
    return "\n".join(lines) + "\n"


def summary(plan: Plan) -> str:
    """ "3 to create, 1 to update"; "nothing to do" for an empty plan."""
    counts = Counter(change.action for change in plan.changes)
    return ", ".join(f"{counts[action]} to {action}" for action in _SIGNS if counts[action]) or "nothing to do"


def _change(change: Change, paint: Paint) -> Iterator[str]:
    sign = _SIGNS[change.action]
    place = f"  # {change.place.file}:{change.place.line}" if change.place else ""
    yield paint(sign, f"{sign} {change.action} {change.object} {change.name}") + place
    if change.before is None or change.after is None:
        value = change.after if change.before is None else change.before
        yield from (f"    {line}" for line in yaml_lines(value))
    elif isinstance(change.before, dict) and isinstance(change.after, dict):
        for key in {**change.before, **change.after}:
            before, after = change.before.get(key), change.after.get(key)
            if before != after:
                yield f"    {key}: {_inline(before)} -> {_inline(after)}"
    else:
        yield f"    {_inline(change.before)} -> {_inline(change.after)}"


def _inline(value: object) -> str:
    return "none" if value is None else "".join(yaml_lines([value])).removeprefix("[").removesuffix("]")


def _operations(plan: Plan) -> Iterator[str]:
    parts = [f"{count} {name}" for name, count in plan.counts.items()]
    yield f"{_number(len(plan.operations), 'operation')}: {', '.join(parts)}."
    if plan.switch is None:
        yield "No switch: packets choose as before."


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _fate(count: int) -> str:
    return "stays where it is until it ends" if count == 1 else "stay where they are until they end"
