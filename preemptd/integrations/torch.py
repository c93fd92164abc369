"""For PyTorch: all ranks stop at the same step, and DataLoader workers live through the signals of their trainer.

from preemptd.integrations.torch import agree, shield_worker

loader = DataLoader(data, num_workers=4, worker_init_fn=shield_worker)
for step, batch in enumerate(loader):
    train(batch)
    if agree():
        save(path)
        preemptd.saved(step, path)
        break
"""

import functools
import logging
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, MutableMapping
from multiprocessing.process import BaseProcess
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader

import preemptd
from preemptd.integrations.agreement import Agreement, Client, Rank, Store

LOOKS_EVERY = 2.0
"""Seconds after which a DataLoader worker knows that its trainer is gone."""

logger = logging.getLogger("preemptd")

# One owner of what each group has agreed on, so that a callback and the script may both ask.
_answers: MutableMapping[object, Callable[[], bool]] = weakref.WeakKeyDictionary()
_joining = threading.RLock()


def agree(*, group: object | None = None) -> bool:
    """Say whether all ranks are to save and leave now: True at the same call on all of them, and at all later calls.

    Every rank of *group* (None: all) makes the same calls, one a step; any of them may have been told. Without a
    process group this is `preemptd.should_preempt()`. Waits for the other ranks once, when a notice has come.
    """
    members = group if group is not None else dist.group.WORLD if dist.is_available() else None
    try:
        answer = _answers.get(members)
    except TypeError:  # no group, or none that this rank is in: what stands for that knows no weak references
        return preemptd.should_preempt()
    return answer() if answer is not None else _join(members)


def agree_on(client: Client, topic: str) -> Callable[[], bool]:
    """Return what all ranks ask as they ask `agree`, where not notices count but what *client* is told."""
    return _answer_of(dist.group.WORLD if dist.is_available() else None, client, topic)


def _join(members: object) -> bool:
    with _joining:
        if members not in _answers:
            _watch_forks()
            preemptd.should_preempt()  # in the main thread, which alone can catch signals
            _answers[members] = _answer_of(members)
        answer = _answers[members]
    return answer()


def _answer_of(members: object, client: Client = preemptd, topic: str = "preemptd") -> Callable[[], bool]:
    groups = dist.distributed_c10d._world.pg_map  # noqa: SLF001  # torch names no other way to a group's own store
    _, store = groups.get(members, (None, None))
    if store is None or dist.get_world_size(members) == 1:  # MPI has none
        return client.should_preempt
    rank = Rank(dist.get_rank(members), dist.get_world_size(members), str(dist.get_rank()))
    reference = weakref.ref(members)
    agreement = Agreement(
        rank,
        _opening(store, f"{topic}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank.of}"),
        client,
        lambda: reference() in groups,
        outlived=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )
    try:
        agreement.start()
    except RuntimeError as error:
        logger.warning("rank %s cannot agree with the others, and goes by its own notice: %s", rank.name, error)
        return client.should_preempt
    return agreement.agree


def _opening(store: object, prefix: str) -> Callable[[], Store]:
    """Open *store* by a connection of its own: on a shared one a question waits for what others wait for."""
    stores = [store]  # to be let go of then: who holds it keeps its server, and the port, beyond the group's end

    def open_store() -> Store:
        shared: Any = stores.pop()
        own: Store = dist.PrefixStore(prefix, shared.clone() if hasattr(shared, "clone") else shared)  # torch < 2.8
        return own

    return open_store


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    """In a child: its calls are not the rank's."""
    global _joining  # noqa: PLW0603  # another thread may have held it
    _joining = threading.RLock()
    for members in list(_answers):
        _answers[members] = preemptd.should_preempt


def shield_worker(worker_id: int) -> None:  # noqa: ARG001  # what DataLoader calls it with
    """Let a DataLoader worker live until its trainer ends it: for ``DataLoader(worker_init_fn=shield_worker)``.

    Signals to a whole process group (Ctrl-C, torchrun's and timeout's SIGTERM) are for the trainer, which needs its
    workers until it has saved. A worker_init_fn of your own calls this first.
    """
    trainer = multiprocessing.parent_process()
    if trainer is None:  # this is no worker: it is the trainer, for which the signals are
        return
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)  # for threads that are there already and do not block it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(trainer,), name="preemptd-shield", daemon=True).start()


class _Shielded:
    """Stands for a DataLoader's worker_init_fn; a class, so that spawned workers can be sent it."""

    def __init__(self, init: Callable[[int], object] | None) -> None:
        self._init = init

    def __call__(self, worker_id: int) -> None:
        shield_worker(worker_id)
        if self._init is not None:
            self._init(worker_id)


def shield(loader: object) -> None:
    """Have the workers that *loader*, if it is a DataLoader, will start call `shield_worker`, and then their own."""
    init = getattr(loader, "worker_init_fn", None)
    if isinstance(loader, DataLoader) and init is not shield_worker and not isinstance(init, _Shielded):
        loader.worker_init_fn = _Shielded(init)


def _end_with(trainer: BaseProcess) -> None:
    """End when the trainer says so, which waits for that, or is gone: torch's own watchdog misses it by forkserver."""
    while trainer.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, LOOKS_EVERY)
        if received is not None and received.si_pid == trainer.pid:
            break
    os._exit(0)
