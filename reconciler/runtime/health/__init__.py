"""Health checks: what a target's condition is (``condition``), one check (``probe``), all of them (``checker``)."""
