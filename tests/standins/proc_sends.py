"""Calls procfs.send() as another user, or where system calls for pidfds fail; prints what came back.

proc_sends.py UID FAILING PID START SIGNUM all|caught; UID 0 stays as it is; FAILING such as pidfd_open=38,... or "-".
"""

import contextlib
import ctypes
import errno
import os
import signal
import struct
import sys

from preemptd.model import ProcessId
from preemptd.procfs import machine_life, send

# Newer system calls have the same number on all architectures but Alpha.
NUMBERS = {"pidfd_open": 434, "pidfd_send_signal": 424}
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
BPF_LD_W_ABS, BPF_JMP_JEQ_K, BPF_RET_K = 0x20, 0x15, 0x06
RET_ERRNO, RET_ALLOW = 0x00050000, 0x7FFF0000


def fail(calls: dict[str, int]) -> None:
    """Let each of the system *calls* fail with its errno from now on."""
    program = [struct.pack("HBBI", BPF_LD_W_ABS, 0, 0, 0)]
    for name, error in calls.items():
        program.append(struct.pack("HBBI", BPF_JMP_JEQ_K, 0, 1, NUMBERS[name]))
        program.append(struct.pack("HBBI", BPF_RET_K, 0, 0, RET_ERRNO | error))
    program.append(struct.pack("HBBI", BPF_RET_K, 0, 0, RET_ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filters) == 0, os.strerror(ctypes.get_errno())


def really_fails(name: str) -> str:
    try:
        if name == "pidfd_open":
            os.close(os.pidfd_open(os.getpid()))
        else:
            with open("/dev/null") as no_process, contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(no_process.fileno(), 0)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "works"


def main(uid: str, failing: str, pid: str, start: str, signum: str, who: str) -> None:
    if int(uid):
        os.setgroups([])
        os.setuid(int(uid))
    calls = {name: int(error) for name, _, error in (item.partition("=") for item in failing.split(",")) if error}
    if calls:
        fail(calls)
    print(" ".join(f"{name}:{really_fails(name)}" for name in calls))
    print(send(ProcessId(int(pid), int(start)), int(signum), only_if_caught=who == "caught").name)
    print(machine_life())


if __name__ == "__main__":
    main(*sys.argv[1:])
