"""Handles SIGUSR1 in the way its argument names, says "ready", and answers "alive" to each line on stdin."""

import asyncio
import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

USR1 = signal.SIGUSR1


def got(*_: object) -> None:
    """Be a handler in Python."""


def answer() -> None:
    print("ready", os.getpid(), flush=True)
    for line in sys.stdin:
        if line == "restore\n":
            signal.signal(USR1, signal.SIG_DFL)
        elif line == "handle\n":
            signal.signal(USR1, got)
        elif line == "exec\n":
            os.execv(sys.executable, [sys.executable, __file__, "python", "the", "second", "program"])
        print("alive", flush=True)


def answer_in_a_thread() -> None:
    threading.Thread(target=answer, daemon=True).start()


def by_asyncio() -> None:
    async def serve() -> None:
        asyncio.get_running_loop().add_signal_handler(USR1, got)
        await asyncio.get_running_loop().run_in_executor(None, answer)

    asyncio.run(serve())


def by_sigwait() -> None:
    def answer_when_it_waits() -> None:
        while masks()["SigBlk"] >> (USR1 - 1) & 1:
            time.sleep(0.01)
        answer()

    signal.pthread_sigmask(signal.SIG_BLOCK, {USR1})
    threading.Thread(target=answer_when_it_waits, daemon=True).start()
    while True:
        signal.sigwait({USR1})


def masks() -> dict[str, int]:
    with open("/proc/self/status") as status:
        return {line[:6]: int(line[7:], 16) for line in status if line.startswith("Sig") and line[3:6] != "Q:\t"}


def by_sigwait_in_thread() -> None:
    def wait() -> None:
        while True:
            signal.sigwait({USR1})

    signal.pthread_sigmask(signal.SIG_BLOCK, {USR1})
    threading.Thread(target=wait, daemon=True).start()
    answer()


def by_bystander() -> None:
    """Block it where nobody else does: a library has started a thread before, as `import wandb` does."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {USR1})
    answer()


def by_all_blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    answer()


def by_c_handler() -> None:
    libc = ctypes.CDLL(None)
    libc.signal(USR1, ctypes.cast(libc.abs, ctypes.c_void_p))
    answer()


def by_faulthandler() -> None:
    with tempfile.TemporaryFile() as stacks:
        faulthandler.register(USR1, stacks)
        answer()


def by_restored() -> None:
    signal.signal(USR1, signal.signal(USR1, got))
    answer()


def by_ignored() -> None:
    signal.signal(USR1, signal.SIG_IGN)
    answer()


def by_python() -> None:
    signal.signal(USR1, got)
    answer()


def by_fork_child() -> None:
    signal.signal(USR1, got)
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        answer()


def exec_none() -> None:
    os.execv(sys.executable, [sys.executable, __file__, "none"])


def by_exec_child() -> None:
    signal.signal(USR1, got)
    exec_none()


def by_inherited_ignore() -> None:
    signal.signal(USR1, signal.SIG_IGN)
    exec_none()


def by_spawning() -> None:
    """Handle nothing, and start other programs all the time: everything is blocked in each vfork."""
    answer_in_a_thread()
    while True:
        subprocess.run(["true"], check=False)


def main(way: str, *_: str) -> None:
    {"none": answer}.get(way, globals().get(f"by_{way}", answer))()


if __name__ == "__main__":
    main(*sys.argv[1:])
