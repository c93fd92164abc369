"""Trainings in a booted machine, and what they and preemptd write down."""

from tests.lab.systemd.booted import OUT, PYTHON, Machine
from tests.waiting import wait_until

LOADER = "/srv/repo/tests/lab/systemd/loader.py"


def training(name: str, user: str, *how: str) -> str:
    """Write a unit for a training."""
    command = " ".join((PYTHON, LOADER, f"{OUT}/{name}", *how))
    return f"[Service]\nType=exec\nUser={user}\nKillMode=mixed\nExecStart={command}\n"


def start_training(machine: Machine, name: str, user: str, *how: str) -> None:
    machine.write(f"/etc/systemd/system/{name}.service", training(name, user, *how))
    machine.systemctl("daemon-reload")
    machine.systemctl("start", name)
    await_said(machine, name, "ready")


def said(machine: Machine, name: str, what: str) -> list[dict[str, object]]:
    return [line for line in machine.lines(f"{OUT}/{name}") if line["what"] == what]


def await_said(machine: Machine, name: str, what: str, count: int = 1) -> list[dict[str, object]]:
    try:
        wait_until(lambda: len(said(machine, name, what)) >= count, 40, f"{name} says {what}", pause=0.02)
    except AssertionError as error:
        raise AssertionError(
            f"{error}; {machine.run('journalctl', '--no-pager', '--lines=80', check=False)}"
        ) from error
    return said(machine, name, what)


def await_event(machine: Machine, journal: str, event: str, count: int = 1, **fields: object) -> dict[str, object]:
    """Wait for the *count*th line of a preemptd's journal."""

    def look() -> list[dict[str, object]]:
        lines = [line for line in machine.lines(f"/var/lib/{journal}/journal.jsonl") if line["event"] == event]
        return [line for line in lines if fields.items() <= line.items()]

    wait_until(lambda: len(look()) >= count, 40, f"{journal}: {event} {fields}")
    return look()[count - 1]
