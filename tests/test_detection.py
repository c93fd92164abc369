import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue

import pytest

from preemptd.events import Event, ProvidersProbed
from preemptd.provider import Detection, Found, Machine, Options, Provider, Surroundings
from preemptd.registry import (
    Loaded,
    choose,
    probe,
    probe_all,
    read_machine,
)
from tests.waiting import wait_until

NOWHERE = Surroundings({})

# Who is at home here


class Cloud(Provider):
    """Found by its variable, else by DMI; may be asked by network."""

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        if cls.name.upper() in machine.environ:
            return Detection(Found.ENVIRONMENT, "its variable")
        return Detection(Found.MACHINE, "its DMI") if machine.dmi.get("sys_vendor") == cls.name else None

    def probe(self) -> Detection | None:
        return Detection(Found.PROBE, f"{self.name} answers")


class Blue(Cloud):
    name = "blue"


class Green(Cloud):
    name = "green"


class Scheduler(Provider):
    name = "scheduler"

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        return Detection(Found.ENVIRONMENT, "its job") if "JOB" in machine.environ else None


class Files(Provider):
    name = "files"
    stands_down_for = frozenset({"scheduler"})

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        return Detection(Found.MACHINE, "its directory") if "DIRECTORY" in machine.environ else None


class Shy(Scheduler):
    name = "shy"
    opt_in = True


class Faulty(Provider):
    name = "faulty"

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        raise KeyError(len(machine.environ))


class Chatty(Provider):
    name = "chatty"

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        return len(machine.environ)  # type: ignore[return-value]  # the fault that is tested


ALL = Loaded({p.name: p for p in (Blue, Green, Scheduler, Files, Shy, Faulty, Chatty)}, {"dead": "does not load"})


def chosen(environ: str, vendor: str = "", named: tuple[str, ...] = ()) -> list[str]:
    machine = Machine(dict.fromkeys(environ.split(), "1"), {"sys_vendor": vendor})
    choice = choose(ALL, named, machine)
    return [c.provider.name for c in choice.chosen] + [f"{c.provider.name}?" for c in choice.to_probe]


def test_the_order_of_trust_is_name_then_environment_then_dmi_then_network() -> None:
    assert chosen("BLUE", "green", named=("green",)) == ["green"]
    assert chosen("BLUE", "green") == ["blue"]
    assert chosen("", "green") == ["green"]
    assert chosen("") == ["blue?", "green?"]


def test_a_scheduler_and_signal_files_come_on_top_of_the_cloud() -> None:
    assert chosen("JOB", "green") == ["scheduler", "green"]
    assert chosen("DIRECTORY BLUE") == ["blue", "files"]
    assert chosen("JOB") == ["scheduler", "blue?", "green?"]


def test_one_stands_down_where_another_does_its_work_even_if_both_were_named() -> None:
    assert chosen("DIRECTORY JOB", "blue") == ["scheduler", "blue"]
    assert chosen("", named=("files", "scheduler")) == ["scheduler"]
    assert chosen("", named=("files",)) == ["files"]


def test_who_wants_to_be_named_is_never_chosen_otherwise() -> None:
    assert "shy" not in chosen("JOB", "green")
    assert chosen("", named=("shy",)) == ["shy"]


def test_each_that_is_left_out_has_its_reason() -> None:
    machine = Machine({"BLUE": "1", "JOB": "1", "DIRECTORY": "1"}, {"sys_vendor": "green"})

    assert choose(ALL, (), machine).left_out == {
        "dead": "does not load",
        "green": "its DMI, but the environment names blue",
        "files": "stands down for scheduler, which does its work here",
        "shy": "only used when named",
        "faulty": "its detect() raised KeyError: 3",
        "chatty": "its detect() returned 3",
    }


def test_the_machine_is_read_from_dmi_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    (tmp_path / "product_name").write_bytes(b"\xff\n")
    (tmp_path / "bios_vendor").mkdir()
    (tmp_path / "board_name").write_text("\n")
    (tmp_path / "product_uuid").write_text("secret")

    assert read_machine({"A": "b"}, str(tmp_path)) == Machine(
        {"A": "b"}, {"sys_vendor": "Amazon EC2", "product_name": "\N{REPLACEMENT CHARACTER}"}
    )
    assert read_machine({}, str(tmp_path / "none")).dmi == {}


# The network


class Hanging(Provider):
    name = "hanging"
    released: threading.Event

    def probe(self) -> Detection | None:
        self.released.wait(60)
        return Detection(Found.PROBE, "far too late")


@pytest.fixture
def hanging() -> Iterator[Provider]:
    provider = Hanging(Options(), NOWHERE)
    provider.released = threading.Event()
    yield provider
    provider.released.set()


class Nowhere(Provider):
    name = "nowhere"

    def probe(self) -> Detection | None:
        raise OSError("network is down")


class Absurd(Provider):
    name = "absurd"

    def probe(self) -> Detection | None:
        return True  # type: ignore[return-value]  # the fault that is tested


def asked(*types: type[Provider]) -> list[Provider]:
    return [provider(Options(), NOWHERE) for provider in types]


def test_all_are_asked_at_once_and_a_hanging_one_costs_the_limit_alone(hanging: Provider) -> None:
    began = time.monotonic()
    found = probe([hanging, *asked(Blue, Nowhere, Absurd, Green)], limit=0.3)

    assert found == {"blue": "blue answers", "green": "green answers"}
    assert 0.3 <= time.monotonic() - began < 5


def test_nobody_waits_when_all_have_answered() -> None:
    began = time.monotonic()
    found = probe(asked(Nowhere, Blue), limit=60)

    assert found == {"blue": "blue answers"}
    assert time.monotonic() - began < 20


def test_the_daemon_gets_one_event(hanging: Provider) -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    probe_all([hanging, *asked(Blue)], events.put, limit=0.1)
    found: Mapping[str, str] = {"blue": "blue answers"}

    assert events.get(timeout=20) == ProvidersProbed(found)
    assert events.empty()


def test_a_probe_that_is_to_come_ends_when_nobody_waits_for_it() -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    before = set(threading.enumerate())
    end = probe_all(asked(Nowhere), events.put, again=(600.0,))
    first = events.get(timeout=20)
    end()

    assert first == ProvidersProbed({}, last=False)
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_with_nobody_to_ask_the_event_comes_all_the_same() -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    probe_all([], events.put)

    assert events.get(timeout=20) == ProvidersProbed({})
