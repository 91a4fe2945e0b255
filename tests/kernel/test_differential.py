"""The programs against a plain Python model: random and damaged packets, every byte compared; and past failures again.

``REVPROXY_DIFFERENTIAL_PACKETS`` says how many (100,000), ``REVPROXY_DIFFERENTIAL_SEED`` which. A sequence that differs
is made as short as possible and written as JSON, ready to be put into ``corpus/``.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.packetgenerator import Generator, Step, cut_everywhere, random_setting
from tests.kernel.packetmodel import Model
from tests.kernel.packetrunner import PEERS, Difference, Runner, Traces, shortest
from tests.kernel.packetsetting import Setting

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

CORPUS = Path(__file__).parent / "corpus"
PACKETS = int(os.environ.get("REVPROXY_DIFFERENTIAL_PACKETS", "100000"))
SEED = int(os.environ.get("REVPROXY_DIFFERENTIAL_SEED", "20250101"))
PER_SETTING, SHARES = 600, 4


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = Runner(f"rpdf-{os.getpid()}")
    yield runner
    runner.close()


def run_or_save(runner: Runner, name: str, setting: Setting, steps: Any, folder: Path) -> Traces:
    """Run; when it differs, save the shortest sequence that does and fail with where it is."""
    done: list[Step] = []

    def recorded(model: Model) -> Iterator[Step]:
        for step in steps(model):
            done.append(step)
            yield step

    try:
        return runner.run(setting, recorded)
    except Difference as difference:
        short = shortest(done, lambda fewer: differs(runner, setting, fewer))
        path = folder / f"{name}.json"
        path.write_text(as_json(name, str(difference), setting, short))
        message = difference if len(short) == len(done) else differs(runner, setting, short)
        raise AssertionError(f"{message}\n{len(short)} steps in {path}") from difference


def differs(runner: Runner, setting: Setting, steps: Sequence[Step]) -> Difference | None:
    try:
        runner.run(setting, steps)
    except Difference as difference:
        return difference
    return None


def as_json(name: str, about: str, setting: Setting, steps: Sequence[Step]) -> str:
    value = {"name": name, "about": about, "setting": setting.to_json(), "steps": [step.to_json() for step in steps]}
    return json.dumps(value, indent=1) + "\n"


@pytest.mark.parametrize("share", range(SHARES))
def test_random_packets_become_what_the_model_says(runner: Runner, share: int, tmp_path: Path) -> None:
    kinds: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    packets = number = 0
    while packets < PACKETS // SHARES:
        rng = random.Random(f"{SEED} {share} {number}")

        def steps(model: Model, rng: random.Random = rng) -> Iterator[Step]:
            generator = Generator(rng, model, PEERS)
            return islice(iter(generator.step, None), PER_SETTING)

        traces = run_or_save(runner, f"seed-{SEED}-{share}-{number}", random_setting(rng), steps, tmp_path)
        ran = [step for step in traces.steps if "verdict" in step]
        packets += len(ran)
        number += 1
        kinds.update(step["kind"].split(",")[0] for step in ran)
        verdicts.update(f"{step['hook']} {step['verdict']}" for step in ran)
        outcomes.update(traces.outcomes)
    print(f"{packets} packets, {number} settings\n{kinds}\n{verdicts}\n{outcomes}")
    if packets >= 20_000:  # the test must have been about something
        expected = {"redirect_xdp", "redirect_tc", "stack", "egress", "icmp"}
        expected |= {"drop_denied", "drop_no_target", "drop_conflict", "drop_no_port", "drop_loopback"}
        assert expected == set(outcomes)
        assert min(outcomes.values()) >= 5
        assert {"xdp tx", "xdp redirect", "xdp drop", "tc_ingress redirect", "tc_ingress drop"} <= set(verdicts)


def test_packets_cut_anywhere_become_what_the_model_says(runner: Runner, tmp_path: Path) -> None:
    """One of each kind that the programs rewrite, at every length."""
    rng = random.Random(SEED)
    setting = random_setting(rng)
    wanted = {"client", "known", "fragment", "icmp error"}

    def steps(model: Model) -> Iterator[Step]:
        generator = Generator(rng, model, PEERS)
        left = {(kind, version): 3 for kind in wanted for version in (8, 0x86)}
        for _ in range(5000):
            step = generator.step()
            yield step
            place = (step.kind, step.frame[12] if step.frame else 0)
            if left.get(place):
                left[place] -= 1
                yield from cut_everywhere(replace(step, gso=(0, 0)))
        assert not any(left.values())

    run_or_save(runner, "cut", setting, steps, tmp_path)


def corpus() -> list[Path]:
    return sorted(CORPUS.glob("*.json"))


@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.stem)
def test_past_failures_stay_mended(runner: Runner, path: Path) -> None:
    saved = json.loads(path.read_text())
    traces = runner.run(Setting.from_json(saved["setting"]), [Step.from_json(step) for step in saved["steps"]])
    for number, (step, trace) in enumerate(zip(saved["steps"], traces.steps, strict=True)):
        for said in ("verdict", "out"):
            assert step.get(said) == trace.get(said), f"step {number}: {said}"
