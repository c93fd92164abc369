"""Our child process: does what one line on stdin asks for, and says in JSON lines on stdout how it goes."""

import ctypes
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from tqdm import tqdm

from preemptd.discretion import discreet
from preemptd.sync.folder import read_marker, scan
from preemptd.sync.layout import Entry, Generation, Manifest, SyncError, Writer
from preemptd.sync.restoring import Arrival, Plan, plan
from preemptd.sync.sending import Job, Sending, claim, clean, missing
from preemptd.sync.store import Moved, Store

_PR_SET_PDEATHSIG = 1
SAY_EVERY = 0.25
"""Seconds between two words on how far it is."""
LONGEST = 300
"""Characters of an error: some servers answer with pages."""
Order = Mapping[str, object]


class Voice:
    """Says lines to whoever has started us; any thread may."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def say(self, event: str, **fields: object) -> None:
        line = b"\n" + json.dumps({"event": event, **fields}).encode() + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except OSError:  # nobody is there any more: what is half done must not be finished behind their back
                os._exit(1)


class Progress:
    """How far a transfer is."""

    def __init__(self, voice: Voice, what: str) -> None:
        self._voice = voice
        self._what = what
        self._lock = threading.Lock()
        self._total = 0
        self._moved: dict[str, int] = {}
        self._began = self._said = time.monotonic()

    def begin(self, total: int) -> Callable[[str], Moved]:
        with self._lock:
            self._total, self._moved = total, {}
        return lambda path: lambda moved: self._note(path, moved)

    def _note(self, path: str, moved: int) -> None:
        with self._lock:
            self._moved[path] = moved
            now, done = time.monotonic(), sum(self._moved.values())
            if now - self._said < SAY_EVERY and done < self._total:
                return
            self._said = now
        seconds = now - self._began
        text = tqdm.format_meter(done, self._total, seconds, ncols=78, prefix=self._what, unit="B", unit_scale=True)
        self._voice.say("progress", done=done, total=self._total, text=text)


def fetch(order: Order, voice: Voice) -> None:
    """Claim the URL, and bring its newest whole generation into the directory, if that is older or empty."""
    directory, url = str(order["directory"]), str(order["url"])
    store = Store(url)
    last = store.contents().last_writer
    writer = Writer(1 if last is None else last.epoch + 1, secrets.token_hex(4))
    if removed := claim(store, writer):
        voice.say("warning", text=f"{url} was full: {removed} bytes that torn uploads had left there were removed")
    voice.say("claimed", epoch=writer.epoch, token=writer.token)
    if not order["fetch"]:
        voice.say("done", what="left")
        return
    contents = store.contents()
    for generation in contents.generations:
        why = _fetch_one(store, generation, directory, url, voice)
        if not why:
            return
        voice.say("warning", text=f"generation {generation.number} at {url} is passed over: {why}")
    if contents.generations:
        raise SyncError(f"none of the {len(contents.generations)} generations there is whole", "torn")
    voice.say("done", what="nothing")


def _fetch_one(store: Store, generation: Generation, directory: str, url: str, voice: Voice) -> str:
    """Have the directory hold *generation*; say why that cannot be, for it is not whole; empty: it does."""
    try:
        manifest = store.read_manifest(generation)
    except (ValueError, FileNotFoundError) as error:
        return _words(error)
    arrival, state = Arrival(directory, manifest), scan(directory)
    wanted = plan(manifest, state, read_marker(directory, url))
    if wanted.kept:
        _say_done(voice, "kept", manifest, 0, wanted.kept)
        return ""
    if gone := missing(manifest, store.data()):
        return f"{gone[0]} is not there"
    arrival.clean()
    try:
        _bring(store, arrival, wanted, voice)
        arrival.settle(wanted, url)
    except SyncError as error:
        return str(error)
    finally:
        arrival.clean()
    _say_done(voice, "restored", manifest, sum(entry.size for entry in wanted.fetch), "", len(wanted.set_aside))
    return ""


def _bring(store: Store, arrival: Arrival, wanted: Plan, voice: Voice) -> None:
    moved = Progress(voice, "restoring").begin(sum(entry.size for entry in wanted.fetch))
    for number, entry in enumerate(wanted.fetch):
        tell = moved(entry.path)
        arrival.take(number, entry, partial(_get, store, tell))
        tell(entry.size)


def _get(store: Store, moved: Moved, entry: Entry, path: str) -> None:
    store.get(entry.object, path, moved)


def send(order: Order, voice: Voice) -> None:
    """Bring the directory's newest state to the URL."""
    directory, url = str(order["directory"]), str(order["url"])
    epoch, token = int(str(order["epoch"])), str(order["token"])
    store = Store(url)
    sending = Sending(store, directory, url, Writer(epoch, token), Progress(voice, "uploading").begin)
    sent = sending.send(Job(str(order["job"]), int(str(order["attempt"]))))
    if sent.manifest is None:
        voice.say("done", what="nothing")
        return
    try:
        clean(store, sent.manifest)
    except Exception as error:  # noqa: BLE001 - what a store's client raises is its own affair; the state is there
        voice.say("warning", text=f"old generations at {url} could not be removed: {_words(error)}")
    _say_done(voice, "sent", sent.manifest, sent.bytes, "")


def _say_done(voice: Voice, what: str, manifest: Manifest, moved: int, why: str, aside: int = 0) -> None:
    voice.say(
        "done",
        what=what,
        generation=manifest.generation.number,
        attempt=manifest.attempt,
        t=manifest.t,
        files=len(manifest.files),
        bytes=moved,
        size=manifest.size,
        aside=aside,
        why=why,
    )


def _words(error: BaseException) -> str:
    """Put into a line what a store's client or the disk says."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return discreet(f"{error.strerror}: {error.filename}")
    said = " ".join(str(error).split())
    name = type(error).__name__
    return discreet(said if said.startswith(name) else f"{name}: {said}" if said else name)[:LONGEST]


def main() -> None:
    """Never returns: clients of object stores leave threads that would hold us up."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)  # a platform that ends all processes must not end what saves the rest
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), *[ctypes.c_ulong(0)] * 3)
    voice = Voice(os.dup(1))
    os.dup2(2, 1)
    order: Order = json.loads(sys.stdin.buffer.read())
    if os.getppid() != order["parent"]:
        os._exit(1)
    status = 1
    try:
        {"fetch": fetch, "send": send}[str(order["do"])](order, voice)
        status = 0
    except SyncError as error:
        voice.say("failed", kind=error.kind, why=discreet(str(error)))
    except Exception as error:  # noqa: BLE001 - what a store's client raises is its own affair
        voice.say("failed", kind="store", why=_words(error))
    os._exit(status)
