"""EC2's metadata service: tokens, addresses, and who it is that answers."""

import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from preemptd.errors import ConfigError
from preemptd.notices import Kind
from preemptd.provider import Found, Machine, State, Surroundings
from preemptd_providers._imds import Imds, Settings
from preemptd_providers.ec2 import Ec2, Ec2Options, SpotWatch
from tests.ec2_parts import ACTION, ENDPOINT, TOKEN, noticed, watch_of
from tests.metadata_server import Exchange, Fault, FaultyEc2, hang, hang_up, raw, status


@pytest.fixture
def server() -> Iterator[FaultyEc2]:
    with FaultyEc2() as server:
        yield server


MakeProvider = Callable[..., Ec2]


@pytest.fixture
def provider_at() -> Iterator[MakeProvider]:
    made = []

    def make(url: str, **environ: str) -> Ec2:
        provider = Ec2(Ec2Options(), Surroundings({ENDPOINT: url, **environ}))
        made.append(provider)
        return provider

    yield make
    for provider in made:
        provider.close()


@pytest.fixture
def watch(server: FaultyEc2, provider_at: MakeProvider) -> SpotWatch:
    return watch_of(provider_at(server.url))


def test_an_expired_token_is_renewed_in_the_same_look_with_one_token_header(
    server: FaultyEc2, watch: SpotWatch
) -> None:
    watch.observe()
    server.forget_tokens()
    server.announcement.announce()
    server.asked.clear()

    notice = noticed(watch.observe())

    assert notice.kind is Kind.TERMINATE
    assert server.asked_paths() == [ACTION, TOKEN, ACTION]
    assert "," not in server.asked[-1].headers["x-aws-ec2-metadata-token"]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed_watch(server: FaultyEc2, clock: Clock) -> Iterator[SpotWatch]:
    watch = SpotWatch(Imds(Settings.of({ENDPOINT: server.url}), clock), "ec2", 1.0)
    yield watch
    watch.close()


def test_a_token_is_renewed_at_four_fifths_of_its_life(server: FaultyEc2, timed_watch: SpotWatch, clock: Clock) -> None:
    timed_watch.observe()
    clock.now += 0.74 * 21600
    timed_watch.observe()
    assert server.asked_paths().count(TOKEN) == 1

    clock.now += 0.12 * 21600
    timed_watch.observe()

    assert server.asked_paths().count(TOKEN) == 2


def test_a_renewal_that_fails_goes_on_with_the_old_token_until_that_ends(
    server: FaultyEc2, timed_watch: SpotWatch, clock: Clock
) -> None:
    timed_watch.observe()
    server.fault, server.fault_on = status(503), "token"
    clock.now += 0.86 * 21600
    assert timed_watch.observe().state is State.CLEAR

    clock.now += 0.15 * 21600

    assert timed_watch.observe().state is State.UNKNOWN


@pytest.mark.parametrize("code", [403, 404, 405])
def test_imdsv1_is_used_where_there_are_no_tokens(code: int, provider_at: MakeProvider) -> None:
    with FaultyEc2() as server:
        server.allow_v1 = True
        server.fault, server.fault_on = status(code), "token"
        provider = provider_at(server.url)
        watch = watch_of(provider)

        assert [watch.observe().state, watch.observe().state] == [State.CLEAR, State.CLEAR]
        assert server.asked_paths().count(TOKEN) == 1
        assert "IMDSv1" in provider.describe()


def test_imdsv1_is_never_used_when_it_is_disabled(provider_at: MakeProvider) -> None:
    with FaultyEc2() as server:
        server.allow_v1 = True
        server.fault, server.fault_on = status(404), "token"
        watch = watch_of(provider_at(server.url, AWS_EC2_METADATA_V1_DISABLED="true"))

        observation = watch.observe()

        assert observation.state is State.UNKNOWN
        assert "AWS_EC2_METADATA_V1_DISABLED" in str(observation.error)
        assert server.asked_paths() == [TOKEN]


@pytest.mark.parametrize("code", [400, 500, 503])
def test_imdsv1_is_not_used_for_other_failures_of_the_put(code: int, server: FaultyEc2, watch: SpotWatch) -> None:
    server.fault, server.fault_on = status(code), "token"

    assert watch.observe().state is State.UNKNOWN
    assert server.asked_paths() == [TOKEN]


def test_a_put_without_an_answer_names_the_hop_limit(server: FaultyEc2, provider_at: MakeProvider) -> None:
    server.fault, server.fault_on = hang, "token"
    provider = provider_at(server.url, AWS_METADATA_SERVICE_TIMEOUT="0.2")

    observation = watch_of(provider).observe()

    assert "hop limit?" in str(observation.error)
    assert "hop limit?" in provider.describe()


def test_a_throttled_look_hands_on_how_long_to_wait(server: FaultyEc2, watch: SpotWatch) -> None:
    server.fault = status(429, {"Retry-After": "4"})

    assert watch.observe().retry_after == 4


def test_botocores_number_of_attempts_is_made_within_one_look(provider_at: MakeProvider) -> None:
    with FaultyEc2() as server:
        failures = iter(range(2))

        def fail_twice(exchange: Exchange) -> None:
            if next(failures, None) is None:
                server.fault = None
            hang_up(exchange)

        server.fault = fail_twice
        watch = watch_of(provider_at(server.url, AWS_METADATA_SERVICE_NUM_ATTEMPTS="4"))

        assert watch.observe().state is State.CLEAR


def test_the_token_goes_nowhere_but_into_its_header(
    server: FaultyEc2, provider_at: MakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    provider = provider_at(server.url)
    watch = watch_of(provider)
    watch.observe()
    token = server.asked[-1].headers["x-aws-ec2-metadata-token"]
    server.fault = status(500)

    told = str(watch.observe()) + provider.describe() + caplog.text + repr(provider) + repr(watch)

    assert token not in told


BASES = [
    ({}, ("http://169.254.169.254", "http://[fd00:ec2::254]")),
    ({"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6"}, ("http://[fd00:ec2::254]",)),
    ({"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "ipv4"}, ("http://169.254.169.254",)),
    ({"AWS_IMDS_USE_IPV6": "true"}, ("http://[fd00:ec2::254]",)),
    ({"AWS_IMDS_USE_IPV6": "true", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "ipv4"}, ("http://169.254.169.254",)),
    ({ENDPOINT: "http://[::1]:8/", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "ipv6"}, ("http://[::1]:8",)),
]


@pytest.mark.parametrize(("environ", "bases"), BASES)
def test_the_address_follows_botocores_variables(environ: Mapping[str, str], bases: tuple[str, ...]) -> None:
    assert Settings.of(environ).bases == bases


@pytest.mark.parametrize(
    "environ",
    [
        {ENDPOINT: "nonsense"},
        {"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "ipv5"},
        {"AWS_METADATA_SERVICE_TIMEOUT": "soon"},
        {"AWS_METADATA_SERVICE_NUM_ATTEMPTS": "-1"},
    ],
)
def test_a_variable_that_cannot_be_used_is_named(environ: Mapping[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(environ))):
        Ec2(Ec2Options(), Surroundings(environ))


@pytest.mark.parametrize(
    ("machine", "found"),
    [
        (Machine({}, {}), None),
        (Machine({ENDPOINT: "http://x"}, {}), Found.ENVIRONMENT),
        (Machine({}, {"sys_vendor": "Amazon EC2"}), Found.MACHINE),
        (Machine({}, {"bios_vendor": "Amazon EC2"}), Found.MACHINE),
        (Machine({}, {"bios_vendor": "Xen", "bios_version": "4.11.amazon"}), Found.MACHINE),
        (Machine({}, {"sys_vendor": "Amazon Kindle"}), None),
        (Machine({"AWS_EC2_METADATA_DISABLED": "TRUE"}, {"sys_vendor": "Amazon EC2"}), None),
        (Machine({"AWS_METADATA_SERVICE_TIMEOUT": "x"}, {"sys_vendor": "Amazon EC2"}), Found.MACHINE),
    ],
)
def test_detection_by_environment_and_dmi(machine: Machine, found: Found | None) -> None:
    detection = Ec2.detect(machine)

    assert (detection.found if detection else None) is found


def test_a_probe_finds_a_server_that_gives_tokens(server: FaultyEc2, provider_at: MakeProvider) -> None:
    provider = provider_at(server.url)

    detection = provider.probe()

    assert detection is not None
    assert detection.found is Found.PROBE
    assert provider.describe() == f"{server.url}: IMDSv2"


OTHER_SERVERS = {
    "404": status(404),
    "500": status(500),
    "a web server": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"),
    "TTL not a number": status(200, {"X-aws-ec2-metadata-token-ttl-seconds": "long"}, b"token"),
    "token not a token": status(200, {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}, b"<a page>"),
    "silence": hang,
}


@pytest.mark.parametrize("fault", OTHER_SERVERS.values(), ids=OTHER_SERVERS.keys())
def test_a_probe_finds_nothing_at_other_servers_and_is_back_within_a_second(
    fault: Fault, server: FaultyEc2, provider_at: MakeProvider
) -> None:
    server.fault = fault
    provider = provider_at(server.url)
    began = time.monotonic()

    assert provider.probe() is None
    assert time.monotonic() - began < 3  # 0.9 on an idle machine


@pytest.mark.parametrize("code", [403, 404, 405])
def test_a_probe_says_that_something_answers_without_being_ec2s(
    code: int, server: FaultyEc2, provider_at: MakeProvider
) -> None:
    server.fault = status(code)
    provider = provider_at(server.url)

    assert provider.probe() is None
    assert "gives no IMDSv2 token" in provider.describe()


def test_a_probe_asks_nobody_when_the_sdk_may_not(server: FaultyEc2, provider_at: MakeProvider) -> None:
    assert provider_at(server.url, AWS_EC2_METADATA_DISABLED="true").probe() is None
    assert server.asked == []
