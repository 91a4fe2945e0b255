"""Plans that are saved and applied later, exactly as they are or not at all."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconciler import __version__, answers, report
from reconciler.answers import PlanFile, SavedPlan, from_json
from reconciler.config.files import parse_sources
from reconciler.errors import RevproxyError, StaleError
from reconciler.runtime.clock import now
from reconciler.runtime.git import Commit
from reconciler.runtime.view import Origin
from reconciler.state import fingerprint

if TYPE_CHECKING:
    from reconciler.config.model import Config
    from reconciler.runtime.commits import Planned
    from reconciler.runtime.view import View

FORMAT: Final = "revproxy-plan/v1"


def save(view: View, planned: Planned | None, tag: str) -> SavedPlan:
    """What is planned, with all that is needed to do just that. ``planned`` None: nothing is to be done."""
    shown = answers.PlanAnswer(warnings=view.warnings) if planned is None else report.plan(planned.plan, view.warnings)
    commit = planned.commit if planned else None
    made = SavedPlan(
        format=FORMAT,
        version=__version__,
        tag=tag,
        made=now(),
        state=fingerprint.of_state(view.observed),
        work=fingerprint.of_operations(planned.plan.operations if planned else ()),
        plan=shown,
        files=tuple(
            PlanFile(Path(file.path).name, base64.b64encode(file.content).decode()) for file in view.config.files
        ),
        commit=commit.id if commit else None,
        author=commit.author if commit else None,
        message=commit.subject if commit else None,
    )
    return replace(made, digest=digest(made))


def digest(saved: SavedPlan) -> str:
    """Of all it holds: what a person reads in it is to be what is done."""
    text = json.dumps(answers.to_json(replace(saved, digest="")), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def parse(document: Any) -> SavedPlan:
    """A saved plan from its JSON. Raises :class:`RevproxyError` if it is none, :class:`StaleError` if another version
    made it."""
    if not isinstance(document, dict) or not str(document.get("format", "")).startswith("revproxy-plan/"):
        raise RevproxyError("this is no plan that `revproxyctl plan --out` made")
    if document["format"] != FORMAT or document.get("version") != __version__:
        other = f"version {document.get('version', 'unknown')} ({document['format']})"
        raise StaleError(f"the plan was made by {other}, this is {__version__}: make it anew")
    try:
        saved = from_json(SavedPlan, document)
    except ValueError as error:
        raise RevproxyError(f"the plan is damaged: {error}") from error
    if saved.digest != digest(saved):
        raise RevproxyError("the plan was edited or damaged since it was made: edit the files, and make it anew")
    return saved


def load(path: Path) -> SavedPlan:
    """A saved plan from a file. Raises what :func:`parse` does."""
    try:
        return parse(json.loads(path.read_bytes()))
    except OSError as error:
        raise RevproxyError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise RevproxyError(f"{path}: this is no plan that `revproxyctl plan --out` made: {error}") from error
    except StaleError as error:
        raise StaleError(f"{path}: {error}") from error
    except RevproxyError as error:
        raise RevproxyError(f"{path}: {error}") from error


def config(saved: SavedPlan, directory: Path) -> Config:
    """The configuration it was made of, as if the files stood in ``directory``. Raises :class:`ConfigError`."""
    try:
        sources = {str(directory / file.name): base64.b64decode(file.content, validate=True) for file in saved.files}
    except (binascii.Error, ValueError) as error:
        raise RevproxyError(f"the plan is damaged: {error}") from error
    return parse_sources(sources)


def origin(saved: SavedPlan) -> Origin:
    """Where its files come from."""
    commit = Commit(saved.commit, saved.author or "", saved.message or "") if saved.commit else None
    return Origin("plan", stored=True, commit=commit)


def check(saved: SavedPlan, view: View, planned: Planned | None, tag: str) -> None:
    """``view`` and ``planned`` are what the plan's files would take now. Raises :class:`StaleError` if that is anything
    but what was planned."""
    if saved.tag != tag:
        raise StaleError("the plan was made by another build of the programs: make it anew")
    if saved.state != fingerprint.of_state(view.observed):
        at = f"that was at {saved.made}, now it is at revision {view.observed.revision.number}"
        raise StaleError(
            f"the plan is stale: the kernel is not what it was when the plan was made ({at}); make it anew"
        )
    if saved.work != fingerprint.of_operations(planned.plan.operations if planned else ()):
        raise StaleError("the plan is stale: on this host as it is now it would do something else; make it anew")
