"""Finds out which of the installed providers are at home on this machine."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from preemptd.events import Event, ProvidersProbed
from preemptd.provider import Detection, Found, Machine, Provider
from preemptd.registry.plugins import Chosen, Loaded, one_line

DMI_NAMES = (
    "bios_date",
    "bios_vendor",
    "bios_version",
    "board_asset_tag",
    "board_name",
    "board_vendor",
    "chassis_asset_tag",
    "chassis_vendor",
    "product_name",
    "product_version",
    "sys_vendor",
)
"""The world-readable ones: product_uuid and the serial numbers are root's."""

PROBE_AGAIN = (4.0, 25.0)
"""Seconds before the second and the third probe: a machine that starts is busy, and its network may be late."""

logger = logging.getLogger(__name__)


ONLY_NAMED = "only used when named"
NOT_DETECTED = "not detected here"
EXPECTED = frozenset({ONLY_NAMED, NOT_DETECTED})
"""Reasons to leave a provider out that are no news."""


@dataclass(frozen=True, slots=True)
class Choice:
    chosen: tuple[Chosen, ...]
    to_probe: tuple[Chosen, ...] = ()
    """Those to ask by network, because no platform was found without; empty when one was, or some were named."""
    left_out: Mapping[str, str] = field(default_factory=dict)


def read_machine(environ: Mapping[str, str], dmi_root: str = "/sys/class/dmi/id") -> Machine:
    """Collect what can be known without network and privilege. Machines without DMI (Firecracker) have none: {}."""
    dmi = {}
    for name in DMI_NAMES:
        text = _read_dmi(os.path.join(dmi_root, name))
        if text:
            dmi[name] = text
    return Machine(environ, dmi)


def _read_dmi(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(4096).decode(errors="replace").strip()
    except OSError:
        return ""


def choose(loaded: Loaded, named: Sequence[str], machine: Machine) -> Choice:
    """Choose who watches: the *named* ones, and they alone; else all that say that they are at home here.

    A machine stands on one platform. Those are the providers that have a `probe`, and for them the environment counts
    more than DMI. Where none of them is found, they are to be probed. The others (SLURM, signal files) come on top.
    """
    if named:
        picked = {name: Chosen(loaded.providers[name], "named by the user", None) for name in dict.fromkeys(named)}
        left_out: dict[str, str] = {}
        return Choice(_without_stood_down(picked, left_out), left_out=left_out)
    left_out = dict(loaded.left_out)
    candidates = {name: provider for name, provider in loaded.providers.items() if not provider.opt_in}
    left_out |= {name: ONLY_NAMED for name, provider in loaded.providers.items() if provider.opt_in}
    detections = _detections(candidates, machine, left_out)
    platforms = {name for name in detections if _has_probe(candidates[name])}
    by_environment = {name for name in platforms if detections[name].found is Found.ENVIRONMENT}
    picked = {}
    for name in sorted(detections, key=lambda name: (detections[name].found is not Found.ENVIRONMENT, name)):
        if by_environment and name in platforms - by_environment:
            left_out[name] = f"{detections[name].why}, but the environment names {', '.join(sorted(by_environment))}"
        else:
            picked[name] = Chosen(candidates[name], detections[name].why, detections[name].found)
    unsure = () if platforms else filter(_has_probe, candidates.values())
    to_probe = tuple(Chosen(provider, "to be asked by network", Found.PROBE) for provider in unsure)
    return Choice(_without_stood_down(picked, left_out), to_probe, left_out)


def _has_probe(provider: type[Provider]) -> bool:
    return provider.probe is not Provider.probe


def _detections(
    candidates: Mapping[str, type[Provider]], machine: Machine, left_out: dict[str, str]
) -> Mapping[str, Detection]:
    detections: dict[str, Detection] = {}
    for name, provider in candidates.items():
        try:
            detection: object = provider.detect(machine)
        except Exception as error:  # noqa: BLE001  # the plug-in border: a bug in one provider hides no other
            left_out[name] = f"its detect() raised {one_line(error)}"
            continue
        if isinstance(detection, Detection):
            detections[name] = detection
        else:
            left_out[name] = NOT_DETECTED if detection is None else f"its detect() returned {detection!r:.80}"
    return detections


def _without_stood_down(picked: Mapping[str, Chosen], left_out: dict[str, str]) -> tuple[Chosen, ...]:
    kept = []
    for name, chosen in picked.items():
        instead = sorted(chosen.provider.stands_down_for & picked.keys())
        if instead:
            left_out[name] = f"stands down for {', '.join(instead)}, which does its work here"
        else:
            kept.append(chosen)
    return tuple(kept)


def probe(providers: Sequence[Provider], limit: float = 1.0) -> Mapping[str, str]:
    """Ask each provider's network at the same time; return the reasons of those that answered within *limit* seconds.

    Blocks for *limit* at the most, whatever the providers do; never raises.
    """
    answers: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()
    end = time.monotonic() + limit
    asked = sum(_ask(provider, answers) for provider in providers)
    found: dict[str, str] = {}
    for _ in range(asked):
        try:
            name, answer = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        if isinstance(answer, Detection):
            found[name] = answer.why
    return found


def probe_all(
    providers: Sequence[Provider],
    put: Callable[[Event], None],
    limit: float = 1.0,
    again: Sequence[float] = PROBE_AGAIN,
) -> Callable[[], None]:
    """As `probe`, in a thread of its own, and *again* so many seconds later each, until something is found.

    Puts a `ProvidersProbed` within *limit* seconds each time. Returns what ends it before its time.
    """
    over = threading.Event()

    def ask() -> None:
        for left, pause in zip(range(len(again), -1, -1), (0.0, *again), strict=True):
            if over.wait(pause):
                return
            found = probe(providers, limit)
            is_last = bool(found) or not providers or left == 0
            put(ProvidersProbed(found, is_last))
            if is_last:
                return

    try:
        threading.Thread(target=ask, name="probe", daemon=True).start()
    except RuntimeError as error:  # no more threads here
        logger.debug("nobody is probed: %s", error)
        put(ProvidersProbed({}))
    return over.set


def _ask(provider: Provider, answers: "queue.SimpleQueue[tuple[str, object]]") -> bool:
    def ask() -> None:
        try:
            answer: object = provider.probe()
        except Exception as error:  # noqa: BLE001  # the plug-in border: a probe that fails found nothing
            logger.debug("probe of provider %s raised %s", provider.name, one_line(error))
            answer = None
        answers.put((provider.name, answer))

    try:
        threading.Thread(target=ask, name=f"probe {provider.name}", daemon=True).start()
    except RuntimeError as error:  # no more threads here
        logger.debug("probe of provider %s not started: %s", provider.name, error)
        return False
    return True
