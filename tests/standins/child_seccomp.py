"""Runs a command under a seccomp filter that answers ENOSYS to every pidfd call, as kernels before 5.3 do."""

import contextlib
import ctypes
import os
import platform
import struct
import sys

PIDFD_SEND_SIGNAL, PIDFD_OPEN, PIDFD_GETFD = 424, 434, 438
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[platform.machine()]
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ENOSYS = 0x7FFF0000, 0x00050000 | 38


def instruction(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


program = b"".join(
    [
        instruction(LOAD, 0, 0, 4),  # architecture
        instruction(JUMP_IF_EQUAL, 0, 4, ARCHITECTURE),
        instruction(LOAD, 0, 0, 0),  # number of the system call
        instruction(JUMP_IF_EQUAL, 3, 0, PIDFD_SEND_SIGNAL),
        instruction(JUMP_IF_EQUAL, 2, 0, PIDFD_OPEN),
        instruction(JUMP_IF_EQUAL, 1, 0, PIDFD_GETFD),
        instruction(RETURN, 0, 0, ALLOW),
        instruction(RETURN, 0, 0, ENOSYS),
    ]
)
buffer = ctypes.create_string_buffer(program)
fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
prctl = ctypes.CDLL(None, use_errno=True).prctl
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0)):
    if prctl(*[a if isinstance(a, bytes) else ctypes.c_ulong(a) for a in arguments]):
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
with contextlib.suppress(OSError):
    os.pidfd_open(os.getpid())
    sys.exit("pidfd_open works")
os.execvp(sys.argv[1], sys.argv[1:])
