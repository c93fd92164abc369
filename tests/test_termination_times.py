"""The clouds that put a time at a metadata key: Alibaba, Tencent, BytePlus, heard from servers that speak as theirs."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import pytest

from preemptd.errors import ConfigError
from preemptd.notices import Kind, Level
from preemptd.provider import Found, Machine, Provider, State, Surroundings, Watch
from preemptd.rehearsal.serving import MetadataServer
from preemptd_providers.alibaba import Alibaba
from preemptd_providers.byteplus import BytePlus
from preemptd_providers.tencent import Tencent
from tests.metadata_server import Fault, FaultyAlibaba, FaultyBytePlus, FaultyTencent, body, hang, raw, status

Server = FaultyAlibaba | FaultyTencent | FaultyBytePlus


@dataclass(frozen=True)
class Cloud:
    provider: type[Alibaba] | type[Tencent] | type[BytePlus]
    server: Callable[[], Server]


CLOUDS = {
    "alibaba": Cloud(Alibaba, FaultyAlibaba),
    "tencent": Cloud(Tencent, FaultyTencent),
    "byteplus": Cloud(BytePlus, FaultyBytePlus),
}


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> Cloud:
    return CLOUDS[request.param]


@pytest.fixture
def server(cloud: Cloud) -> Iterator[Server]:
    with cloud.server() as server:
        yield server


def provider_at(cloud: Cloud, server: MetadataServer) -> Provider:
    return cloud.provider(cloud.provider.options_type(), Surroundings({cloud.provider.endpoint: server.url}))


@pytest.fixture
def watch(cloud: Cloud, server: Server) -> Iterator[Watch]:
    provider = provider_at(cloud, server)
    (watch,) = provider.watches()
    yield watch
    provider.close()


def test_404_from_a_server_that_knows_the_machine_is_clear(watch: Watch) -> None:
    assert watch.observe().state is State.CLEAR


def test_the_time_is_acted_on_at_once(cloud: Cloud, server: Server, watch: Watch) -> None:
    server.announcement.announce()
    notice = watch.observe().notice

    assert notice is not None
    assert (notice.kind, notice.level, notice.event_id) == (
        Kind.TERMINATE,
        Level.ACT,
        f"{cloud.provider.name}:terminate",
    )
    assert notice.remaining is not None
    assert abs(notice.remaining - (server.announcement.deadline or 0.0) + time.time()) < 10


def test_404_from_a_server_that_knows_nothing_at_all_is_unknown(cloud: Cloud, server: Server, watch: Watch) -> None:
    watch.observe()
    server.fault = status(500)
    watch.observe()  # another one may answer after an outage
    server.fault, server.fault_on = status(404), cloud.provider.identity_path

    assert watch.observe().state is State.UNKNOWN


NO_TIME = {
    "no time": body(b"not-a-time"),
    "a day that is none": body(b"2030-02-31T00:00:00Z"),
    "a day that is none, in China": body(b"2030-02-31 00:00:00"),
    "no UTF-8": body(b"\xff\xfe"),
}


@pytest.mark.parametrize("fault", NO_TIME.values(), ids=NO_TIME)
def test_what_is_no_time_neither_tells_nor_takes_back(server: Server, watch: Watch, fault: Fault) -> None:
    server.fault = fault

    assert watch.observe().state is State.UNKNOWN


def test_a_time_that_is_too_far_away_counts_as_what_the_cloud_gives(cloud: Cloud, server: Server, watch: Watch) -> None:
    server.fault_on = cloud.provider.signal_path
    server.fault = body(b"2099-01-01 00:00:00" if cloud.provider is Tencent else b"2099-01-01T00:00:00Z")
    notice = watch.observe().notice

    assert notice is not None
    assert notice.remaining == cloud.provider.notice_seconds


def test_the_machine_is_asked_for_once_a_minute(cloud: Cloud, server: Server, watch: Watch) -> None:
    for _ in range(3):
        watch.observe()

    assert server.asked_paths().count(f"GET {cloud.provider.identity_path}") == 1


def test_tencents_time_is_that_of_china() -> None:
    assert Tencent.parse("2018-08-18 12:05:33") == datetime(2018, 8, 18, 4, 5, 33, tzinfo=timezone.utc)


def test_alibabas_token_is_asked_for_once_and_anew_when_it_is_refused() -> None:
    with FaultyAlibaba() as server:
        provider = provider_at(CLOUDS["alibaba"], server)
        (watch,) = provider.watches()
        first = watch.observe()
        server.tokens.clear()
        second = watch.observe()
        provider.close()

        assert (first.state, second.state) == (State.CLEAR, State.CLEAR)
        assert server.asked_paths().count("PUT /latest/api/token") == 2


def test_alibaba_without_tokens_is_read_without() -> None:
    with FaultyAlibaba() as server:
        server.is_hardened = False
        provider = provider_at(CLOUDS["alibaba"], server)
        (watch,) = provider.watches()

        assert [watch.observe().state for _ in range(3)] == [State.CLEAR] * 3
        assert server.asked_paths().count("PUT /latest/api/token") == 1
        provider.close()


def test_alibaba_is_read_where_the_answer_to_the_token_is_lost_on_its_way_into_a_container() -> None:
    with FaultyAlibaba() as server:
        server.is_hardened, server.fault, server.fault_on = False, hang, "/api/token"
        provider = provider_at(CLOUDS["alibaba"], server)
        (watch,) = provider.watches()

        assert [watch.observe().state for _ in range(3)] == [State.CLEAR] * 3
        assert server.asked_paths().count("PUT /latest/api/token") == 1
        provider.close()


def test_alibaba_that_wants_a_token_after_all_is_asked_for_one_at_the_next_look() -> None:
    with FaultyAlibaba() as server:
        server.fault, server.fault_on = hang, "/api/token"
        provider = provider_at(CLOUDS["alibaba"], server)
        (watch,) = provider.watches()
        lost = watch.observe()
        server.fault = None

        assert lost.state is State.UNKNOWN
        assert "HTTP 403 without a token (PUT " in str(lost.error)
        assert watch.observe().state is State.CLEAR
        provider.close()


RFC_3339 = ["2030-01-01T08:22:00Z", "2030-01-01T08:22:00.000Z", "2030-01-01T16:22:00+08:00"]


@pytest.mark.parametrize("text", RFC_3339)
@pytest.mark.parametrize("provider", [Alibaba, BytePlus])
def test_a_time_may_have_a_fraction_and_another_zone(provider: type[Alibaba] | type[BytePlus], text: str) -> None:
    assert provider.parse(text) == datetime(2030, 1, 1, 8, 22, tzinfo=timezone.utc)


@pytest.mark.parametrize("text", ["2030-01-01T08:22:00", "2030-01-01 08:22:00"])
def test_a_time_of_byteplus_that_names_no_zone_is_in_utc(text: str) -> None:
    assert BytePlus.parse(text) == datetime(2030, 1, 1, 8, 22, tzinfo=timezone.utc)


def test_without_the_servers_clock_there_is_never_more_time_than_the_cloud_gives(cloud: Cloud, server: Server) -> None:
    """Ours may be slow."""
    provider = provider_at(cloud, server)
    (watch,) = provider.watches()
    end = datetime.now(timezone(timedelta(hours=8 if cloud.provider is Tencent else 0))) + timedelta(minutes=25)
    text = end.strftime("%Y-%m-%d %H:%M:%S" if cloud.provider is Tencent else "%Y-%m-%dT%H:%M:%SZ").encode()
    server.fault = raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
    server.fault_on = "time"
    notice = watch.observe().notice
    provider.close()

    assert notice is not None
    assert notice.remaining == cloud.provider.notice_seconds


def test_the_variable_is_the_place(cloud: Cloud) -> None:
    found = cloud.provider.detect(Machine({cloud.provider.endpoint: "http://127.0.0.1:1"}))

    assert found is not None
    assert found.found is Found.ENVIRONMENT
    assert cloud.provider.detect(Machine({})) is None


def test_a_variable_that_is_no_address_is_named(cloud: Cloud) -> None:
    with pytest.raises(ConfigError, match=cloud.provider.endpoint):
        cloud.provider(cloud.provider.options_type(), Surroundings({cloud.provider.endpoint: "ftp://x"}))


@pytest.mark.parametrize(
    ("provider", "dmi"),
    [(Alibaba, {"product_name": "Alibaba Cloud ECS"}), (Tencent, {"sys_vendor": "Tencent Cloud"})],
)
def test_the_machines_own_strings_say_where_we_are(provider: type[Provider], dmi: dict[str, str]) -> None:
    found = provider.detect(Machine({}, dmi))

    assert found is not None
    assert found.found is Found.MACHINE
