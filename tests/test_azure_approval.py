"""``--azure-approve``: what may begin before its time, and what never does."""

import json
from collections.abc import Mapping
from types import MappingProxyType

import pytest

from preemptd.errors import ProviderError
from preemptd.provider import Conclusion, Outcome, State
from preemptd.rehearsal.other_clouds import NAME
from tests.metadata_server import FaultyAzure, body, hang_up, status
from tests.test_azure import announced, azure_at, later, planned, server

__all__ = ["server"]

ACTED = frozenset({"azure:preempt", "azure:terminate", "azure:freeze", "azure:levitate-A1", "azure:reboot-A1"})
SAVED = Conclusion(Outcome(75), preempted=True, unsaved="", acted=ACTED)


def settled(
    server: FaultyAzure,
    event: Mapping[str, object] = MappingProxyType({}),
    conclusion: Conclusion = SAVED,
    *,
    approve: bool = True,
) -> str:
    provider = azure_at(server.url, approve=approve)
    (watch,) = provider.watches()
    assert announced(server, watch, **event).state is State.NOTICE
    watch.close()
    try:
        return provider.settle(conclusion, 5.0)
    finally:
        provider.close()


@pytest.mark.parametrize("type_", ["Preempt", "Terminate", "Reboot"])
def test_what_was_saved_for_is_approved_if_we_were_asked_to(server: FaultyAzure, type_: str) -> None:
    said = settled(server, {"EventType": type_})

    assert (said, server.approved) == (f"{type_} approved", ["A1"])


CONCLUSIONS = {
    "a normal end": (
        Conclusion(Outcome(0), preempted=False, unsaved="", acted=ACTED),
        "the command did not end as preempted",
    ),
    "nothing saved": (
        Conclusion(Outcome(1), preempted=True, unsaved="pid 7 is silent", acted=ACTED),
        "pid 7 is silent",
    ),
    "nobody says why": (Conclusion(Outcome(1), preempted=True, acted=ACTED), "nobody has said that it has saved"),
}


@pytest.mark.parametrize(("conclusion", "why"), CONCLUSIONS.values(), ids=CONCLUSIONS)
def test_nothing_is_approved_that_was_not_saved_for(server: FaultyAzure, conclusion: Conclusion, why: str) -> None:
    assert (settled(server, conclusion=conclusion), server.approved) == (f"Preempt not approved: {why}", [])


@pytest.mark.parametrize("type_", ["Preempt", "Reboot", "Freeze"])
def test_nothing_is_approved_that_was_not_acted_on(server: FaultyAzure, type_: str) -> None:
    others = Conclusion(Outcome(0), preempted=True, unsaved="", acted=frozenset({"slurm:preempt", "azure:redeploy-A1"}))

    assert (settled(server, {"EventType": type_}, others), server.approved) == ("", [])


def test_nothing_is_approved_unless_we_were_asked_to(server: FaultyAzure) -> None:
    assert (settled(server, approve=False), server.approved) == ("", [])


@pytest.mark.parametrize(
    "now", [[], [{"EventId": "A1", "EventType": "Preempt", "EventStatus": "Scheduled", "Resources": [NAME, "b"]}]]
)
def test_what_has_changed_since_it_was_looked_at_last_is_not_approved(
    server: FaultyAzure, now: list[dict[str, object]]
) -> None:
    provider = azure_at(server.url, approve=True)
    (watch,) = provider.watches()
    assert announced(server, watch).state is State.NOTICE
    watch.close()
    server.fault = body(json.dumps({"DocumentIncarnation": 2, "Events": now}).encode())

    assert provider.settle(SAVED, 5.0) == "Preempt not approved: it is not announced any more, or has changed"
    assert server.approved == []
    provider.close()


def test_who_approves_comes_last(server: FaultyAzure) -> None:
    assert azure_at(server.url, approve=True).settles_last
    assert not azure_at(server.url).settles_last


NEVER: Mapping[str, tuple[Mapping[str, object], str]] = {
    "a pause": ({"EventType": "Freeze"}, "goes on after it"),
    "a type that nobody knows": ({"EventType": "Levitate"}, "not known"),
    "two machines": ({"Resources": [NAME, "another"]}, "takes 2 machines"),
    "a machine that cannot be read": ({"Resources": [NAME, None]}, "takes 2 machines"),
    "no id": ({"EventId": None}, "cannot be read"),
    "no status": ({"EventStatus": 7}, "cannot be read"),
}


@pytest.mark.parametrize(("event", "why"), NEVER.values(), ids=NEVER)
def test_what_is_never_approved_says_why(server: FaultyAzure, event: Mapping[str, object], why: str) -> None:
    said = settled(server, event)

    assert server.approved == []
    assert "not approved: " in said
    assert why in said


def test_one_machine_that_is_named_twice_is_one(server: FaultyAzure) -> None:
    said = settled(server, {"Resources": [NAME, NAME.upper()]})

    assert (said, server.approved) == ("Preempt approved", ["A1"])


def test_what_has_begun_needs_no_approval(server: FaultyAzure) -> None:
    assert (settled(server, {"EventStatus": "Started", "NotBefore": ""}), server.approved) == ("", [])


def test_the_only_machine_that_is_named_may_be_another(server: FaultyAzure) -> None:
    server.fault, server.fault_on = status(500), "/compute"
    said = settled(server)

    assert (said, server.approved) == ("Preempt not approved: which machine this is could not be learned", [])


def test_of_two_events_only_that_begins_which_was_acted_on(server: FaultyAzure) -> None:
    server.events = [planned("Freeze", later(900)), planned("Reboot", later(90_000), EventId="tomorrow")]
    said = settled(server)

    assert (said, server.approved) == ("Preempt approved", ["A1"])


def test_a_maintenance_that_was_put_off_is_not_what_was_acted_on(server: FaultyAzure) -> None:
    provider = azure_at(server.url, approve=True)
    (watch,) = provider.watches()
    for event in (planned("Reboot", later(60), EventId="A1"), planned("Reboot", later(90_000), EventId="B2")):
        server.events = [event]
        watch.observe()
    said = provider.settle(SAVED, 5.0)
    provider.close()

    assert (said, server.approved) == ("", [])


@pytest.mark.parametrize("fault", [status(400), hang_up], ids=["400", "no answer"])
def test_an_approval_that_azure_does_not_take_is_an_error_that_names_it(server: FaultyAzure, fault: object) -> None:
    provider = azure_at(server.url, approve=True)
    (watch,) = provider.watches()
    announced(server, watch)
    server.fault = fault  # type: ignore[assignment]  # one of two faults

    with pytest.raises(ProviderError, match="Preempt not approved"):
        provider.settle(SAVED, 5.0)
    provider.close()
