"""A plan as text and as JSON."""

from __future__ import annotations

import json

from reconciler.state.facts import RuntimeFacts
from reconciler.state.objects import (
    Revision,
)
from reconciler.state.render import plan_text
from tests.unit.state.build import (
    WEB,
    applied,
    plan,
    proxy,
    route,
    targets,
    want,
    with_state,
)


def test_the_text_says_what_will_be_done() -> None:
    live = applied(want(WEB))
    edited = proxy(
        to=targets("10.0.0.1:8080", ("10.0.0.3:8080", 2), line=9),
        routes=(route("10.0.0.0/8", line=12),),
        timeout_sec=60,
    )
    facts = RuntimeFacts(busy_targets=frozenset({2}), connections={("web", "10.0.0.2:8080"): 2})
    assert plan_text(plan(want(edited), live, runtime=facts)) == (
        "~ update proxy web  # web.yaml:4\n"
        "    connection_timeout_sec: 300 -> 60\n"
        "- delete target web/10.0.0.2:8080\n"
        "    weight: 1\n"
        "+ create target web/10.0.0.3:8080  # web.yaml:9\n"
        "    weight: 2\n"
        "+ create route web/10.0.0.0/8  # web.yaml:12\n"
        "    action: deny\n"
        "\n"
        "6 operations: 1 control, 2 group, 1 proxy, 1 route, 1 target.\n"
        "2 live connections of web to 10.0.0.2:8080 stay where they are until they end.\n"
        "Plan: 2 to create, 1 to update, 1 to delete.\n"
    )


def test_the_text_of_a_repair_and_of_nothing() -> None:
    wanted = want(WEB)
    text = plan_text(plan(wanted, with_state(applied(wanted), attachments={})))
    assert "+ attach interface eth0\n    xdp: off\n    tc: true\n" in text
    assert "No switch: packets choose as before.\nPlan: 1 to attach.\n" in text
    assert plan_text(plan(wanted, applied(wanted))) == "No changes: the kernel is as the files say.\n"
    assert "\033[32m+ attach interface eth0\033[0m" in plan_text(
        plan(wanted, with_state(applied(wanted), attachments={})), color=True
    )


def test_the_json_can_be_written() -> None:
    facts = RuntimeFacts(connections={("web", "10.0.0.2:8080"): 2})
    found = plan(want(), applied(want(WEB)), runtime=facts, revision=Revision(7, 7, b"7" * 16)).to_json()
    assert json.loads(json.dumps(found)) == found
    assert found["revision"] == 7
    assert found["operations"] == sum(found["counts"].values())
    assert found["connections"] == [
        {
            "proxy": "web",
            "target": "10.0.0.2:8080",
            "connections": 2,
            "fate": "stay where they are until they end",
        }
    ]
