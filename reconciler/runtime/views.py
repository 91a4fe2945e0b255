"""Config and kernel to a View: what the files ask for on this host, what the kernel holds, how they differ."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler.config.files import parse_sources
from reconciler.runtime.orders import InForce
from reconciler.runtime.view import Origin, View
from reconciler.state.desired import Memo, desired
from reconciler.state.diff import changes_of, compare

if TYPE_CHECKING:
    from reconciler.config.model import Config
    from reconciler.runtime.configdir import ConfigDirectory
    from reconciler.runtime.knownrevision import KnownRevision
    from reconciler.runtime.live import Live
    from reconciler.runtime.originals import Originals
    from reconciler.runtime.steer import Steering
    from reconciler.state.objects import Observed


class Views:
    """Looks at both sides, from one thread. What it says of live state it has just read from the kernel."""

    def __init__(
        self, files: ConfigDirectory, live: Live, steering: Steering, originals: Originals, known: KnownRevision
    ) -> None:
        self.files, self.live, self.steering, self.originals = files, live, steering, originals
        self.known = known
        self._memo = Memo()
        self._orders = InForce(live)
        self.refused_xdp: frozenset[int] = frozenset()  # interfaces that turned out not to take native XDP
        self.retired = False  # when looked at last, something was kept only for connections

    def observe(self, *, routes_as_known: bool = False, connections_anew: bool = False) -> Observed:
        """What the kernel holds."""
        observed = self.live.observe(routes_as_known=routes_as_known, connections_anew=connections_anew)
        return self.known.supplement(self.originals.supplement(observed, self.live.read_sysctl))

    def take(
        self,
        config: Config | None = None,
        origin: Origin | None = None,
        *,
        routes_as_known: bool = False,
        connections_anew: bool = False,
    ) -> View:
        """Look at both sides. ``config`` None: load the files. ``origin``: where those of ``config`` come from.
        ``routes_as_known``: take the routes for what this process has read last and written since.
        ``connections_anew``: see :meth:`~reconciler.runtime.live.Live.runtime`. Raises :class:`ConfigError`,
        :class:`KernelError`, :class:`ForeignProgramError`."""
        if config is None and self.files.exists:
            config = self.files.load()
        observed = self.observe(routes_as_known=routes_as_known, connections_anew=connections_anew)
        if config is None:
            # A directory that is gone stands for "nothing", which is held; one that was never there is a mistake.
            config = parse_sources({}) if observed.state.proxies else self.files.load()
        facts = self.live.facts(config)
        runtime = replace(self.live.runtime(observed, anew=connections_anew), refused_xdp=self.refused_xdp)
        runtime = self.steering.facts(runtime, config, observed)
        wanted = desired(config, facts, runtime, tag=self.live.tag, memo=self._memo)
        allocation = observed.allocation
        self.retired = bool(allocation.retired_targets or allocation.retired_proxies)
        view = View(config, facts, runtime, observed, wanted, (), origin or Origin(), routes_as_known)
        # Where nothing is and nothing is wanted, not even the programs are.
        if not config.proxies and not observed.exists:
            return view
        manifest = self.live.manifest(observed.revision)
        view = view.with_lapsed(manifest)
        delta = compare(view.desired, observed)
        changes = changes_of(delta, view.desired, observed)
        if not changes:
            self.live.adopt(wanted.state)
        view = replace(view, changes=changes, delta=delta)
        return replace(view, changes=self._orders.differences(view, manifest))

    def compared(self) -> View:
        """Both sides, for somebody who asks: a directory that is gone says nothing. Raises :class:`ConfigError`."""
        if not self.files.exists:
            self.files.load()
        return self.take(connections_anew=True)
