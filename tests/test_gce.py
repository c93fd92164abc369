"""GCE's preemption and maintenance notices, heard from a server that speaks as GCE's does."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from preemptd.notices import Kind, Level
from preemptd.provider import Observation, State, Surroundings
from preemptd_providers._gce_server import KeyWatch
from preemptd_providers.gce import Gce, GceOptions, MaintenanceWatch, PreemptedWatch
from tests.metadata_server import FaultyGce, body, status
from tests.waiting import wait_until

TERMINATE = "TERMINATE_ON_HOST_MAINTENANCE"
MIGRATE = "MIGRATE_ON_HOST_MAINTENANCE"
MakeProvider = Callable[..., Gce]


@pytest.fixture
def server() -> Iterator[FaultyGce]:
    with FaultyGce() as server:
        yield server


@pytest.fixture
def provider_at() -> Iterator[MakeProvider]:
    made = []

    def make(url: str, lead: float = 120.0, notice_s: float = 3600.0, **environ: str) -> Gce:
        provider = Gce(GceOptions(notice_s=notice_s), Surroundings({"GCE_METADATA_HOST": url, **environ}, lead=lead))
        made.append(provider)
        return provider

    yield make
    for provider in made:
        provider.close()


@pytest.fixture
def preempted(server: FaultyGce, provider_at: MakeProvider) -> KeyWatch:
    return watches_of(provider_at(server.url))[0]


@pytest.fixture
def maintenance(server: FaultyGce, provider_at: MakeProvider) -> KeyWatch:
    server.announced = {"maintenance-event": ("NONE", TERMINATE)}
    return watches_of(provider_at(server.url))[1]


def watches_of(provider: Gce) -> tuple[KeyWatch, KeyWatch]:
    first, second, *_ = provider.watches()
    assert isinstance(first, PreemptedWatch)
    assert isinstance(second, MaintenanceWatch)
    return first, second


def observe_in_thread(watch: KeyWatch) -> Callable[[], Observation]:
    """Begin an observation; the function that is returned waits for its end."""
    seen: list[Observation] = []
    thread = threading.Thread(target=lambda: seen.append(watch.observe()))
    thread.start()

    def result() -> Observation:
        thread.join(20)
        return seen[0]

    return result


def test_false_is_clear_and_the_next_look_hangs(server: FaultyGce, preempted: KeyWatch) -> None:
    assert preempted.observe().state is State.CLEAR
    assert preempted.waits
    assert "wait_for_change" not in server.asked[0].query


def test_a_hanging_look_ends_when_the_value_turns_true(server: FaultyGce, preempted: KeyWatch) -> None:
    preempted.observe()
    result = observe_in_thread(preempted)
    wait_until(lambda: server.waiting == 1)
    server.announcement.announce()

    notice = result().notice

    assert notice is not None
    assert (notice.event_id, notice.kind, notice.level) == ("gce:preempted", Kind.PREEMPT, Level.ACT)
    assert notice.remaining is None
    assert server.asked[1].query["last_etag"] == server.etag("FALSE")
    assert server.asked[1].query["timeout_sec"] == "60"


def test_a_value_that_was_true_before_the_first_look_is_heard_at_once(server: FaultyGce, preempted: KeyWatch) -> None:
    server.announcement.announce()

    assert preempted.observe().state is State.NOTICE


@pytest.mark.parametrize("wish", [None, 120.0])
def test_the_end_is_as_far_away_as_the_machine_was_made_with(server: FaultyGce, wish: float | None) -> None:
    options = GceOptions(preemption_notice_s=wish)
    provider = Gce(options, Surroundings({"GCE_METADATA_HOST": server.url}))
    server.announcement.announce()

    notice = watches_of(provider)[0].observe().notice
    provider.close()

    assert notice is not None
    assert notice.remaining == wish


def test_hangs_that_return_at_once_unchanged_become_polls(server: FaultyGce, preempted: KeyWatch) -> None:
    server.waits = False
    states = [preempted.observe().state for _ in range(4)]

    assert set(states) == {State.CLEAR}
    assert not preempted.waits
    assert preempted.interval == 1.0
    assert ["wait_for_change" in request.query for request in server.asked] == [False, True, False, False]


def test_an_answer_without_an_etag_becomes_polls(server: FaultyGce, preempted: KeyWatch) -> None:
    server.fault = status(200, {"ETag": ""}, b"FALSE")
    for _ in range(2):
        preempted.observe()

    assert not preempted.waits
    assert all("wait_for_change" not in request.query for request in server.asked)


def test_after_an_outage_the_first_look_is_a_plain_one(server: FaultyGce, preempted: KeyWatch) -> None:
    preempted.observe()
    server.waits = False
    server.fault = status(503, {"Retry-After": "1"})
    failed = preempted.observe()
    assert (failed.state, failed.retry_after, preempted.waits) == (State.UNKNOWN, 1.0, False)

    server.fault = None
    server.announcement.announce()

    assert preempted.observe().state is State.NOTICE
    assert "wait_for_change" not in server.asked[-1].query


@pytest.mark.parametrize("flavor", ["", "google", "Google, Google", "Amazon"])
def test_an_answer_without_googles_flavor_means_nothing(flavor: str, server: FaultyGce, preempted: KeyWatch) -> None:
    server.fault = status(200, {"Metadata-Flavor": flavor}, b"TRUE")

    observation = preempted.observe()

    assert observation.state is State.UNKNOWN
    assert "Metadata-Flavor" in str(observation.error)


def test_close_breaks_a_hang(server: FaultyGce, provider_at: MakeProvider) -> None:
    provider = provider_at(server.url)
    watch, _ = watches_of(provider)
    watch.observe()
    result = observe_in_thread(watch)
    wait_until(lambda: server.waiting == 1)
    began = time.monotonic()

    provider.close()

    assert result().state is State.UNKNOWN
    assert time.monotonic() - began < 5


def test_the_two_keys_hang_side_by_side_on_connections_of_their_own(
    server: FaultyGce, provider_at: MakeProvider
) -> None:
    server.announced["maintenance-event"] = ("NONE", TERMINATE)
    watches = watches_of(provider_at(server.url))
    for watch in watches:
        watch.observe()
    results = [observe_in_thread(watch) for watch in watches]
    wait_until(lambda: server.waiting == 2)
    server.announcement.announce()

    assert [result().state for result in results] == [State.NOTICE, State.NOTICE]


def test_a_maintenance_that_terminates_is_advice_until_the_lead_is_left(
    server: FaultyGce, provider_at: MakeProvider
) -> None:
    server.announced = {"maintenance-event": ("NONE", TERMINATE)}
    _, watch = watches_of(provider_at(server.url, lead=77.0))
    assert watch.observe().state is State.CLEAR
    server.announcement.announce()

    notice = watch.observe().notice

    assert notice is not None
    assert (notice.event_id, notice.kind, notice.level) == ("gce:maintenance-terminate", Kind.MAINTENANCE, Level.ADVISE)
    assert (notice.remaining, notice.act_within) == (3600.0, 77.0)


def test_the_maintenance_comes_nearer_while_the_value_stays(server: FaultyGce, maintenance: KeyWatch) -> None:
    server.announcement.announce()
    server.waits = False
    notices = [maintenance.observe().notice for _ in range(3)]

    ends = {round(n.observed + n.remaining, 6) for n in notices if n is not None and n.remaining is not None}
    assert len(ends) == 1


def test_a_second_maintenance_has_its_whole_notice(server: FaultyGce, maintenance: KeyWatch) -> None:
    server.announcement.announce()
    maintenance.observe()
    server.announcement.revoke()
    assert maintenance.observe().state is State.CLEAR
    server.announcement.announce()

    notice = maintenance.observe().notice

    assert notice is not None
    assert notice.remaining == 3600.0


def test_a_live_migration_is_advice_for_good(server: FaultyGce, maintenance: KeyWatch) -> None:
    server.announced = {"maintenance-event": ("NONE", MIGRATE)}
    server.announcement.announce()

    notice = maintenance.observe().notice

    assert notice is not None
    assert (notice.level, notice.act_within, notice.remaining) == (Level.ADVISE, None, None)


def test_a_key_that_the_server_lacks_is_no_answer(server: FaultyGce, preempted: KeyWatch) -> None:
    server.fault = status(404)

    observation = preempted.observe()

    assert observation.state is State.UNKNOWN
    assert "GKE" in str(observation.error)


def test_the_words_of_one_key_mean_nothing_at_the_other(server: FaultyGce, provider_at: MakeProvider) -> None:
    preempted, maintenance = watches_of(provider_at(server.url))
    server.fault = body(b"NONE")
    assert preempted.observe().state is State.UNKNOWN

    server.fault = body(b"TRUE")
    assert maintenance.observe().state is State.UNKNOWN
