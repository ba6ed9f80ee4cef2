"""Becomes a supervised child: ties itself to its parent, drops privileges, then executes the given command.

Run as a file with `python -I -S launch.py PARENT_PID UID:GID:CAPS -- COMMAND...` (`-` for no change of user). A
process of its own instead of code between fork and exec, which may deadlock beside threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 1, 28, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2
#: Without it access(2), which Java asks before it opens a file, ignores the capabilities of a user that is not root.
SECBIT_NO_SETUID_FIXUP = 1 << 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, argument: int, third: int = 0) -> None:
    _check(libc.prctl(option, *(ctypes.c_ulong(n) for n in (argument, third, 0, 0))), f"prctl {option}")


def drop_privileges(uid: int, gid: int, capabilities: tuple[int, ...]) -> None:
    """Become `uid`:`gid` for good, and hand only `capabilities` through the next exec."""
    if capabilities:
        _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if capabilities:
        mask = sum(1 << number for number in capabilities)
        data = (_Data * 2)(_Data(mask, mask, mask), _Data(0, 0, 0))
        header = _Header(LINUX_CAPABILITY_VERSION_3, 0)
        _check(libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")
        for number in capabilities:
            _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def main(arguments: list[str]) -> None:
    """Never returns: the process becomes the command."""
    parent, identity, separator, *command = arguments
    if separator != "--":
        raise SystemExit("launch: expected PARENT_PID IDENTITY -- COMMAND...")
    if identity != "-":
        uid, gid, capabilities = identity.split(":")
        drop_privileges(int(uid), int(gid), tuple(int(n) for n in capabilities.split(",") if n))
    # After the change of user, which clears it. The child then ends with a supervisor that was killed.
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise SystemExit("launch: the supervisor is gone")
    os.execvpe(command[0], command, os.environ)


if __name__ == "__main__":
    main(sys.argv[1:])
