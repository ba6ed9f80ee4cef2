"""Running OpenSearch without root: it refuses uid 0, and its folders may lie where others cannot go.

Root drops to `nobody`. Below a folder that `nobody` cannot pass (a checkout in a mode-700 home) the child keeps
one capability: CAP_DAC_READ_SEARCH, which passes folders and reads, never writes. Where that is not granted, or a
binary is not executable by others, CAP_DAC_OVERRIDE takes its place.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

from stack.component import Identity
from stack.errors import PreflightError

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
#: Needed to hand a capability on so that access(2) respects it; see `stack.launch`.
CAP_SETPCAP = 8
UNPRIVILEGED_USER = "nobody"


def _passable(path: Path) -> bool:
    """Whether every folder above `path` may be searched by others."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


def granted_capabilities() -> frozenset[int]:
    """Numbers of the capabilities that this process may hand on (permitted and in the bounding set)."""
    masks = {"CapPrm": 0, "CapBnd": 0}
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key in masks:
            masks[key] = int(value, 16)
    both = masks["CapPrm"] & masks["CapBnd"]
    return frozenset(number for number in range(64) if both >> number & 1)


def needed_capability(readable: Iterable[Path], executable: Path, granted: frozenset[int]) -> int | None:
    """The capability that lets `nobody` read below `readable` and start `executable`; None if none is needed.

    Raises PreflightError if one is needed and cannot be handed on.
    """
    program = executable.resolve()
    startable = bool(program.stat().st_mode & stat.S_IXOTH)
    blocked = [path for path in (*readable, program) if not _passable(path)]
    if startable and not blocked:
        return None
    usable = (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE) if startable else (CAP_DAC_OVERRIDE,)
    for capability in usable:
        if {capability, CAP_SETPCAP} <= granted:
            return capability
    raise PreflightError(
        f"OpenSearch refuses to run as root, and user {UNPRIVILEGED_USER} cannot reach {(*blocked, program)[0]}: "
        "run as an ordinary user, or put the data and cache folders where others may pass (SIGHTLOG_DATA_DIR, "
        "SIGHTLOG_CACHE_DIR)"
    )


def unprivileged(readable: Iterable[Path], executable: Path) -> Identity | None:
    """Whom a child that refuses root runs as: None for this user if it is not root."""
    if os.geteuid() != 0:
        return None
    user = pwd.getpwnam(UNPRIVILEGED_USER)
    capability = needed_capability(readable, executable, granted_capabilities())
    return Identity(user.pw_uid, user.pw_gid, () if capability is None else (capability,))


def hand_over(folder: Path, identity: Identity) -> None:
    """Give a folder of the stack, and all below it, to the identity."""
    for parent, _, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, file) for file in files)):  # noqa: PTH118 - hot for large indices
            status = os.lstat(path)
            if (status.st_uid, status.st_gid) != (identity.uid, identity.gid):
                os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
