"""``doctor``: looks at everything that can keep a revproxy from working, and says how to mend it.

``look.py`` gathers, ``judge_*.py`` judge what it gathered, ``sight.py`` is what lies between. What takes root is said
to be unchecked without it.
"""

from __future__ import annotations

from reconciler.answers import Diagnosis, Level
from reconciler.doctor.sight import Sight


def diagnose(sight: Sight) -> Diagnosis:
    """All findings about what was seen: system, files, interfaces, targets."""
    from reconciler.doctor.judge_network import network
    from reconciler.doctor.judge_places import places
    from reconciler.doctor.judge_system import files, system

    findings = (*system(sight), *places(sight), *files(sight), *network(sight))
    errors = sum(each.level is Level.ERROR for each in findings)
    warnings = sum(each.level is Level.WARNING for each in findings)
    return Diagnosis(errors == 0, errors, warnings, findings)
