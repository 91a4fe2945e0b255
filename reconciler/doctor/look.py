"""Gathers what ``doctor`` judges. What can't be looked at is left out and said, so that it works without root too."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler.config import files as config_files
from reconciler.doctor.sight import GitSight, InterfaceSight, PlaceSight, Sight, SystemSight
from reconciler.errors import ConfigError, HostError, KernelError, RevproxyError
from reconciler.kernel import compiler, privilege
from reconciler.places import Places
from reconciler.runtime.git import commit_time
from reconciler.runtime.snapshot import standing
from reconciler.state.desired import desired, sysctl_names, target_addresses

if TYPE_CHECKING:
    from reconciler import answers
    from reconciler.config.model import Config
    from reconciler.errors import Problem

_ANYWHERE: Final = {4: "192.0.2.1", 6: "2001:db8::1"}  # documentation addresses: only the default route leads there


def look(places: Places, daemon_pid: int | None = None, daemon_trouble: str = "", daemon_failure: str = "") -> Sight:
    """Look at everything, from the calling thread's network namespace. Changes nothing that stays."""
    config: Config | None = None
    problems: tuple[Problem, ...] = ()
    try:
        config = config_files.load(places.config_dir)
    except ConfigError as error:
        problems = error.problems
    system = _system(places)
    sight = Sight(
        system=system,
        places=places,
        config=config,
        problems=problems,
        git=_git(places.config_dir),
        daemon_pid=daemon_pid,
        daemon_trouble=daemon_trouble,
        daemon_failure=daemon_failure,
        run_dir=_place(places.run_dir),
        state_dir=_place(places.state_dir),
        settings=_place(Path("/proc/sys/net")),
        cpus=os.cpu_count() or 1,
    )
    return sight if system.bcc is None else _with_network(sight)


def _place(directory: Path) -> PlaceSight:
    there = next(each for each in (directory, *directory.parents) if each.exists())
    mount = next(each for each in (there, *there.parents) if each.is_mount() or each == each.parent)
    found = os.statvfs(there)
    full = (found.f_blocks > 0 and not found.f_bavail) or (found.f_files > 0 and not found.f_favail)
    return PlaceSight(str(mount), bool(found.f_flag & os.ST_RDONLY), full)


# -- the system ----------------------------------------------------------------------------------------------


def _system(places: Places) -> SystemSight:
    missing = tuple(privilege.missing())
    bcc = compiler.usable_bcc()
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    trials, where, point, trouble, occupied = None, None, "/sys/fs/bpf", "", False
    if bcc is not None:
        from reconciler.kernel import bpffs
        from reconciler.kernel.doctor import trials as try_all
        from reconciler.kernel.gateway import Gateway

        point = str(bpffs.mount_point_for(places.bpffs_dir))
        try:
            found = bpffs.locate(places.bpffs_dir)
            where = None if found is None else str(found)
            occupied = found is None and bpffs.is_occupied(Path(point))
        except KernelError as error:
            trouble = str(error)
        if not {"CAP_NET_ADMIN", "CAP_BPF"} & set(missing):
            trials = try_all(Gateway())
    return SystemSight(
        release=os.uname().release,
        missing_capabilities=missing,
        trials=trials,
        lockdown=_lockdown(),
        memlock_bytes=None if limit == resource.RLIM_INFINITY else limit,
        bpffs=where,
        bpffs_point=point,
        bpffs_trouble=trouble,
        bpffs_occupied=occupied,
        bcc=bcc,
        headers=Path("/usr/include/linux/bpf.h").exists(),
    )


def _lockdown() -> str:
    text = _read("/sys/kernel/security/lockdown") or "[none]"
    return text.partition("[")[2].partition("]")[0]


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _git(directory: Path) -> GitSight | None:
    committed = commit_time(directory)
    if committed is None:
        return None
    now, locks = time.time(), standing(directory)
    lock, identity = locks[0] if locks else ("", None)
    return GitSight(committed - now, str(lock), now - identity[3] / 1e9 if identity else None)


# -- the network ---------------------------------------------------------------------------------------------


def _with_network(sight: Sight) -> Sight:
    from reconciler.kernel import host, sysctls
    from reconciler.kernel.doctor import neighbours

    own, conflicts = _programs(sight)
    addresses = target_addresses(sight.config) if sight.config else frozenset()
    facts = host.host_facts(addresses, (), own)
    wanted, refused = None, ""
    if sight.config:
        names = sysctl_names(sight.config, facts.interfaces)
        facts = replace(facts, sysctls=sysctls.read_all(names))
        # Without privileges nobody can tell our programs from others'.
        known = facts if conflicts is not None else replace(facts, foreign_xdp={})
        try:
            wanted = desired(sight.config, known, tag="")
        except RevproxyError as error:
            refused = str(error)
    return replace(
        sight,
        host=facts,
        interfaces={
            name: _interface(name, None if conflicts is None else conflicts.get(name, ())) for name in facts.interfaces
        },
        neighbours=neighbours(),
        way_back={version: host.route_to(ip_address(text)).ifindex for version, text in _ANYWHERE.items()},
        wanted=wanted,
        refused=refused,
    )


def _programs(sight: Sight) -> tuple[frozenset[int], dict[str, tuple[answers.Conflict, ...]] | None]:
    """Ids of our own programs, and what of others' is in their way, by interface."""
    if sight.system.trials is None or sight.system.missing_capabilities or sight.system.bpffs_trouble:
        return frozenset(), None
    from reconciler.interfaces import conflicts
    from reconciler.runtime.live import Live

    settings = sight.config.settings if sight.config else None
    try:
        live = Live(sight.places.bpffs_dir)
    except HostError:
        return frozenset(), None  # no bpf(): the trials have said so
    try:
        found = live.interfaces()
        own = live.programs.own().ids
    finally:
        live.close()
    return own, {facts.name: tuple(conflicts(status, settings)) for facts, status in found}


def _interface(name: str, conflicts: tuple[answers.Conflict, ...] | None) -> InterfaceSight:
    from reconciler.kernel import ethtool, sysctls

    queues = ethtool.queues(name)
    filters = [sysctls.read(f"net/ipv4/conf/{each}/rp_filter") or "0" for each in ("all", name)]
    return InterfaceSight(
        conflicts=conflicts,
        lro=ethtool.large_receive_offload(name),
        queues_now=queues.now if queues else None,
        queues_most=queues.most if queues else None,
        rp_filter=max(int(each) for each in filters),
    )
