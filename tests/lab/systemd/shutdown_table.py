"""What a shutdown of the host leaves of a training, by where it runs: the table of docs/systemd.md.

`python -m tests.lab.systemd.shutdown_table` (as root) makes it anew. It stands between `<!-- shutdown -->` and
`<!-- /shutdown -->`.
"""

import re
from dataclasses import dataclass
from functools import partial

from tests.conftest import ROOT
from tests.lab.systemd.booted import OUT, PREEMPTD, PYTHON, Machine, booted
from tests.lab.systemd.trainings import LOADER, await_said, said, training
from tests.waiting import wait_until

PAGE = ROOT / "docs" / "systemd.md"
TABLE = re.compile(r"(<!-- shutdown -->\n).*?(<!-- /shutdown -->)", re.DOTALL)
SAVES = {"short": 1.0, "long": 7.0}
"""Seconds that a save takes: less, and more, than logind's delay of 5 s."""
USERS = {"short": "alice", "long": "bob"}
ORDERED = "[Unit]\nAfter=preemptd.service\n"


@dataclass(frozen=True)
class Place:
    words: str
    key: str
    unit: str = ""
    """Of the training, if it has one of its own: its lines ``KillMode=`` and the like."""
    followed: bool = False
    """It is a target of preemptd.service."""
    session: str = ""
    """What stands before its command in a session's scope."""


PLACES = (
    Place("a unit of its own, `KillMode=control-group` (systemd's default)", "bare", "KillMode=control-group"),
    Place("the same, and `preemptd.service` has it as a target", "told", "KillMode=control-group", followed=True),
    Place("a unit of its own, `KillMode=mixed`", "mixed", "KillMode=mixed"),
    Place("the same, and `preemptd.service` has it as a target", "mixed-told", "KillMode=mixed", followed=True),
    Place("`preemptd-watch@.service`", "watch"),
    Place("a session (ssh, tmux)", "session", session=" "),
    Place("a session, under `preemptd watch`", "session-watch", session=f"{PREEMPTD} watch --"),
)


def start(machine: Machine) -> None:
    """Start a training of each kind in each place, and the daemon."""
    followed = [name(place, save) for place in PLACES for save in SAVES if place.followed]
    targets = "".join(f'[[target]]\nunit = "{one}.service"\n' for one in followed)
    machine.write("/etc/preemptd/preemptd.toml", targets)
    machine.run("install", "-d", "--owner=preemptd", f"{OUT}/state", "/var/lib/preemptd")
    machine.run("mount", "--bind", f"{OUT}/state", "/var/lib/preemptd")
    for place in PLACES:
        for save, seconds in SAVES.items():
            _prepare(machine, place, save, seconds)
    machine.systemctl("daemon-reload")
    of_their_own = [name(place, save) for place in PLACES for save in SAVES if place.unit]
    machine.systemctl("start", "preemptd", *(f"preemptd-watch@{user}" for user in USERS.values()), *of_their_own)
    for place in PLACES:
        for save in SAVES:
            await_said(machine, name(place, save), "ready")
    wait_until(partial(_all_are_watched, machine, followed), 40, "all are watched over", pause=0.2)


def _prepare(machine: Machine, place: Place, save: str, seconds: float) -> None:
    one, user = name(place, save), USERS[save]
    command = f"{PYTHON} {LOADER} {OUT}/{one} {seconds}"
    if place.unit:
        text = training(one, user, str(seconds)).replace("KillMode=mixed", place.unit)
        machine.write(f"/etc/systemd/system/{one}.service", ORDERED + text)
    elif place.session:  # which runs from now on
        scope = (*("--scope", "--quiet", f"--uid={user}", f"--slice=user-{user}.slice"), "-p", "SendSIGHUP=yes")
        shell = f"export HOME=/srv/{user} LOG={OUT}/{one}; cd; setsid {place.session} {command} >$LOG.log 2>&1 &"
        machine.run("systemd-run", *scope, "sh", "-c", shell)
    else:
        machine.write(f"/etc/preemptd/watch/{user}.env", f"COMMAND={command}\n")


def _all_are_watched(machine: Machine, followed: list[str]) -> bool:
    """Each preemptd has found its training, and holds logind's lock."""
    inhibitors = machine.run("systemd-inhibit", "--list", "--no-pager").count("trainings save their state")
    found = [line for line in machine.lines(f"{OUT}/state/journal.jsonl") if line["event"] == "target"]
    names = {str(line["name"]) for line in found if line["pid"] is not None}
    return inhibitors == 5 and names >= {f"unit {one}.service" for one in followed}


def name(place: Place, save: str) -> str:
    return f"{place.key}-{save}"


def left(machine: Machine, place: Place, save: str) -> str:
    """Say what became of it, and which signal said so to what was saved."""
    one = name(place, save)
    signals = [str(line["name"]) for line in said(machine, one, "signal")]
    return f"saved, told by {signals[0]}" if said(machine, one, "saved") else "**lost**"


def table(machine: Machine) -> str:
    head = " | ".join(f"save of {seconds:g} s" for seconds in SAVES.values())
    rows = [f"| {place.words} | " + " | ".join(left(machine, place, save) for save in SAVES) + " |" for place in PLACES]
    return "\n".join([f"| where the training runs | {head} |", "|---|---|---|", *rows, ""])


def main() -> None:
    with booted() as machine:
        machine.install()
        start(machine)
        machine.power_off()
        made = table(machine)
    print(made)
    if PAGE.exists():
        PAGE.write_text(TABLE.sub(lambda match: match[1] + made + match[2], PAGE.read_text()))


if __name__ == "__main__":
    main()
