"""Where GCE's metadata server is looked for, and what is taken for it."""

import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preemptd.errors import ConfigError, ProviderError
from preemptd.provider import Found, Machine, Surroundings
from preemptd_providers._gce_server import Settings
from preemptd_providers._metadata import Answer
from preemptd_providers.gce import Gce, GceOptions, MaintenanceWatch, PreemptedWatch
from tests.metadata_server import Exchange, FaultyGce, hang, hang_up, status

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


@pytest.mark.parametrize(
    ("environ", "bases", "probe_bases"),
    [
        ({}, ("http://169.254.169.254", "http://metadata.google.internal"), None),
        ({"GCE_METADATA_HOST": "h:8080"}, ("http://h:8080",), None),
        ({"GCE_METADATA_HOST": "http://h:8080/"}, ("http://h:8080",), None),
        ({"GCE_METADATA_ROOT": "r"}, ("http://r",), None),
        ({"GCE_METADATA_ROOT": "r", "GCE_METADATA_HOST": "h"}, ("http://h",), None),
        ({"GCE_METADATA_IP": "10.1.1.1"}, ("http://10.1.1.1",), None),
        (
            {"GCE_METADATA_IP": "10.1.1.1", "GCE_METADATA_HOST": "h"},
            ("http://h", "http://10.1.1.1"),
            ("http://10.1.1.1", "http://h"),
        ),
    ],
)
def test_the_address_follows_google_auths_variables(
    environ: Mapping[str, str], bases: tuple[str, ...], probe_bases: tuple[str, ...] | None
) -> None:
    settings = Settings.of(environ)

    assert settings.bases == bases
    assert settings.probe_bases == (probe_bases or bases)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GCE_METADATA_HOST", "http://"),
        ("GCE_METADATA_IP", "a b:c"),
        ("GCE_METADATA_TIMEOUT", "x"),
        ("GCE_METADATA_DETECT_RETRIES", "many"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        Gce(GceOptions(), Surroundings({variable: value}))


@pytest.mark.parametrize(
    ("machine", "found"),
    [
        (Machine({}, {}), None),
        (Machine({"GCE_METADATA_HOST": "h"}, {}), Found.ENVIRONMENT),
        (Machine({"GCE_METADATA_IP": "1.2.3.4"}, {}), Found.ENVIRONMENT),
        (Machine({}, {"product_name": "Google Compute Engine"}), Found.MACHINE),
        (Machine({}, {"sys_vendor": "Google", "product_name": "Chromebook"}), None),
        (Machine({"NO_GCE_CHECK": "true"}, {"product_name": "Google Compute Engine"}), None),
    ],
)
def test_detection_by_environment_and_dmi(machine: Machine, found: Found | None) -> None:
    detection = Gce.detect(machine)

    assert (detection.found if detection else None) is found


def test_a_probe_finds_a_server_with_googles_flavor(server: FaultyGce, provider_at: MakeProvider) -> None:
    provider = provider_at(server.url)

    detection = provider.probe()

    assert detection is not None
    assert detection.found is Found.PROBE
    assert server.url in provider.describe()


def test_a_probe_finds_nothing_without_the_flavor(server: FaultyGce, provider_at: MakeProvider) -> None:
    server.fault = status(200, {"Metadata-Flavor": "none"})
    provider = provider_at(server.url)

    assert provider.probe() is None
    assert "Metadata-Flavor" in provider.describe()


def test_a_probe_of_a_silent_server_is_back_within_a_second(server: FaultyGce, provider_at: MakeProvider) -> None:
    server.fault = hang
    provider = provider_at(server.url)
    began = time.monotonic()

    assert provider.probe() is None
    assert time.monotonic() - began < 3  # 0.9 on an idle machine
    assert "no whole answer" in provider.describe()


def test_a_probe_tries_again_as_often_as_google_auth_would(provider_at: MakeProvider) -> None:
    with FaultyGce() as server:
        failures = iter(range(4))

        def fail_at_first(exchange: Exchange) -> None:
            if next(failures, None) is None:
                server.fault = None
            hang_up(exchange)

        server.fault = fail_at_first

        assert provider_at(server.url, GCE_METADATA_DETECT_RETRIES="9").probe() is not None


def test_a_probe_asks_nobody_when_the_sdk_may_not(server: FaultyGce, provider_at: MakeProvider) -> None:
    assert provider_at(server.url, NO_GCE_CHECK="true").probe() is None
    assert server.asked == []


WORDS = ["TRUE", "FALSE", "NONE", TERMINATE, MIGRATE]


@given(st.binary(max_size=64))
@example(b"<html>TRUE</html>")
@example(b"true")
@example(b'"TRUE"')
@example(b"TRUE\nTRUE")
@example(b"\xff\xfe")
def test_no_other_text_is_a_value(content: bytes) -> None:
    answer = Answer("http://x", "GET", 200, {}, content, 1.0)
    settings = Settings.of({})
    for watch in PreemptedWatch("gce", settings, None), MaintenanceWatch("gce", settings, 3600, Surroundings({})):
        if answer.text in WORDS:
            continue
        with pytest.raises(ProviderError):
            watch.judge(answer)
