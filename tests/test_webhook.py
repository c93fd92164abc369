"""`--webhook` from outside: what is posted, what becomes of a server that fails, and where the URL never is."""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import preemptd
from tests.conftest import ROOT
from tests.metadata_server import FaultyEc2
from tests.serving import Serving
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, trainer
from tests.webhook_server import SECRET, WebhookServer

pytestmark = pytest.mark.slow


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=20.0) as server:
        yield server


@pytest.fixture
def hook() -> Iterator[WebhookServer]:
    with WebhookServer() as server:
        yield server


def on(ec2: FaultyEc2, hook: WebhookServer, **more: str) -> dict[str, str]:
    return {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": ec2.url,
        "AWS_EC2_METADATA_DISABLED": "false",
        "PREEMPTD_WEBHOOK": hook.url,
        **more,
    }


def preempted(watch: Watch, ec2: FaultyEc2) -> int:
    watch.await_said("ready")
    ec2.announcement.announce()
    return watch.wait()


def outages(watch: Watch) -> list[tuple[object, object]]:
    return [(line["state"], line["why"]) for line in watch.lines("webhook")]


def assert_secret(watch: Watch) -> None:
    """Look for the URL in all that we write."""
    for text in (watch.out, watch.err, watch.journal.read_text()):
        assert SECRET not in text
        assert "s3cr3t" not in text


def test_the_course_of_a_preemption_is_posted_as_the_journal_has_it(
    tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer
) -> None:
    with Watch(
        tmp_path, trainer("link"), "--job-id", "run42", env=on(ec2, hook, XDG_STATE_HOME=str(tmp_path))
    ) as watch:
        status = preempted(watch, ec2)

    assert status == 75
    assert hook.events == ["notice", "saved", "exited", "settled"]
    about = {"host": socket.gethostname(), "version": preemptd.__version__, "job_id": "run42"}
    lines = [line for line in watch.lines() if line["event"] in {"notice", "saved", "exited", "settled"}]
    assert hook.messages == [{**about, **line} for line in lines]
    path, headers, _ = hook.requests[0]
    assert path == f"/{SECRET}"
    assert headers["Content-Type"] == "application/json"
    assert watch.lines("webhook") == []
    assert_secret(watch)
    page = (ROOT / "docs" / "operations.md").read_text()
    assert [json.loads(body).keys() for body in re.findall(r'^{"host.*', page, re.MULTILINE)] == [
        hook.messages[0].keys()
    ]


def test_slack_gets_words(tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer) -> None:
    options = ("--webhook-format", "slack", "--job-id", "run42")
    with Watch(tmp_path, trainer("USR1"), *options, env=on(ec2, hook, XDG_STATE_HOME=str(tmp_path))) as watch:
        preempted(watch, ec2)

    texts = [json.loads(body) for _, _, body in hook.requests]
    who = re.escape(f"{socket.gethostname()} (job run42): ")
    assert [set(text) for text in texts] == [{"text"}] * 3
    assert re.fullmatch(who + r"NOTICE from ec2: terminate in \d+ s \(spot/instance-action\)", texts[0]["text"])
    assert re.fullmatch(who + r"pid \d+ ended with status 0, \d+ s to spare", texts[1]["text"])
    assert re.fullmatch(who + r"exit 75: .*", texts[2]["text"])


def test_a_path_cannot_call_everybody_in_slack(tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer) -> None:
    path = tmp_path / "<!channel> & co"
    path.mkdir()
    env = on(ec2, hook, CHECKPOINTS=str(path))
    with Watch(tmp_path, trainer("link"), "--webhook-format", "slack", env=env) as watch:
        preempted(watch, ec2)

    assert "/&lt;!channel&gt; &amp; co/" in hook.requests[1][2].decode()


def test_an_ordinary_end_is_nobodys_business(tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer) -> None:
    with Watch(tmp_path, ["true"], env=on(ec2, hook)) as watch:
        watch.wait()

    assert hook.requests == []


def test_a_revoked_notice_is_posted_and_its_coming_again_too(
    tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer
) -> None:
    with Watch(tmp_path, trainer("none"), env=on(ec2, hook)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        hook.await_events(1)
        ec2.announcement.revoke()
        hook.await_events(2)
        ec2.announcement.announce()

        assert hook.await_events(3) == ["notice", "revoked", "notice"]


@pytest.mark.parametrize("status", [503, 429])
def test_a_server_that_is_busy_is_asked_again(tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer, status: int) -> None:
    hook.statuses = [status]
    hook.headers = {"Retry-After": "1"}
    with Watch(tmp_path, trainer("USR1"), env=on(ec2, hook)) as watch:
        preempted(watch, ec2)

    assert hook.events == ["notice", "notice", "exited", "settled"]
    assert outages(watch) == []


@pytest.mark.parametrize("status", [301, 404])
def test_a_server_that_refuses_is_not_asked_again_and_that_is_said_once(
    tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer, status: int
) -> None:
    hook.statuses = [status] * 4
    hook.headers = {"Location": f"{hook.url}/elsewhere"}
    with Watch(tmp_path, trainer("link"), env=on(ec2, hook)) as watch:
        assert preempted(watch, ec2) == 75

    assert hook.events == ["notice", "saved", "exited", "settled"]
    assert outages(watch) == [("outage", f"the server answers {status}")]
    assert watch.err.count("the webhook is not reached") == 1
    assert_secret(watch)


def test_a_server_that_is_back_is_said_with_what_was_lost(tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer) -> None:
    hook.statuses = [404, 404]
    with Watch(tmp_path, trainer("link"), env=on(ec2, hook)) as watch:
        preempted(watch, ec2)

    assert outages(watch) == [("outage", "the server answers 404"), ("recovered", None)]
    assert watch.lines("webhook")[1]["lost"] == 2


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (f"http://127.0.0.1:1/{SECRET}", "Connection refused"),
        (f"http://u:s3cr3t@127.0.0.1:1/{SECRET}", "Connection refused"),
        (f"http://[::1/{SECRET}", "InvalidURL"),
        (f"http://a..b/{SECRET}", "InvalidURL|its name does not resolve|LocationParseError"),
    ],
)
def test_why_it_is_not_reached_is_said_without_the_url(
    tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer, url: str, why: str
) -> None:
    began = time.monotonic()
    with Watch(tmp_path, trainer("USR1"), env=on(ec2, hook, PREEMPTD_WEBHOOK=url)) as watch:
        assert preempted(watch, ec2) == 75

    ((state, said),) = outages(watch)
    assert state == "outage"
    assert re.fullmatch(why, str(said))
    assert time.monotonic() - began < 30
    assert_secret(watch)


def test_a_server_without_tls_is_named(tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer) -> None:
    url = hook.url.replace("http:", "https:")
    with Watch(tmp_path, trainer("USR1"), env=on(ec2, hook, PREEMPTD_WEBHOOK=url)) as watch:
        assert preempted(watch, ec2) == 75

    assert str(outages(watch)[0][1]).startswith("TLS fails (")
    assert_secret(watch)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", "drip", "reset"])
def test_a_server_that_hangs_delays_neither_the_telling_nor_our_end(
    tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer, fault: str
) -> None:
    hook.fault = getattr(hook, fault)
    with Watch(tmp_path, trainer("USR1"), env=on(ec2, hook)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_said("exit")
        ended = time.monotonic()
        status = watch.wait()

    assert status == 75
    assert time.monotonic() - ended < 15
    assert len(watch.said("signal")) == 1
    assert len(outages(watch)) == 1
    assert_secret(watch)


def test_the_proxy_of_the_environment_is_used(tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer) -> None:
    proxy = {"http_proxy": f"http://{hook.address}", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    env = on(ec2, hook, PREEMPTD_WEBHOOK=f"http://chat.example/{SECRET}", **proxy)
    with Watch(tmp_path, trainer("USR1"), env=env) as watch:
        preempted(watch, ec2)

    assert {path for path, _, _ in hook.requests} == {f"http://chat.example/{SECRET}"}
    assert hook.events == ["notice", "exited", "settled"]


def test_the_file_holds_the_url_and_no_process_of_ours_shows_it(
    tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer
) -> None:
    file = tmp_path / "url"
    file.write_text(f"{hook.url}\n")
    env = on(ec2, hook, PREEMPTD_WEBHOOK="", PREEMPTD_WEBHOOK_FILE=str(file))
    with Watch(tmp_path, trainer("link"), env=env) as watch:
        watch.await_said("ready")
        status = subprocess.run(
            [*PREEMPTD, "status", "--json", str(watch.process.pid)],
            env=environment(env),
            capture_output=True,
            check=False,
        )
        shown = subprocess.run(["ps", "axeww"], capture_output=True, check=True).stdout
        preempted(watch, ec2)

    assert hook.events == ["notice", "saved", "exited", "settled"]
    assert SECRET.encode() not in status.stdout + status.stderr
    assert hook.url.encode() not in shown  # whole: other tests run beside this one
    assert_secret(watch)


def test_the_command_is_started_without_the_url(tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer) -> None:
    with Watch(tmp_path, ["env"], env=on(ec2, hook)) as watch:
        watch.wait()

    assert "PREEMPTD_ATTEMPT" in watch.out
    assert SECRET not in watch.out


def test_a_url_given_beside_a_file_is_the_one_that_counts(tmp_path: Path, ec2: FaultyEc2, hook: WebhookServer) -> None:
    with Watch(tmp_path, trainer("USR1"), "--webhook-file", "/nowhere", env=on(ec2, hook)) as watch:
        preempted(watch, ec2)

    assert hook.events == ["notice", "exited", "settled"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty: it is to hold the URL"),
        (b" \n", "is empty: it is to hold the URL"),
        (b"s3cr3t\n", "holds no URL: "),
        (b"https://a.example/s3cr3t\nhttps://b.example/s3cr3t\n", "holds no URL: "),
        (b"\xff\xfes3cr3t", "holds no URL: "),
    ],
)
def test_a_file_without_a_url_is_refused_in_one_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_bytes(content)
    command = [*PREEMPTD, "watch", "--webhook-file", str(file), "--", "touch", str(tmp_path / "ran")]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)

    assert run.returncode == 2
    assert run.stderr.startswith(f"preemptd: --webhook-file {file} {says}")
    assert len(run.stderr.splitlines()) == 1
    assert "s3cr3t" not in run.stderr
    assert not (tmp_path / "ran").exists()


def test_a_fifo_that_nobody_writes_to_does_not_hold_us_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "url")
    command = [*PREEMPTD, "watch", "--webhook-file", str(tmp_path / "url"), "--", "true"]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=30)

    assert (run.returncode, run.stderr.endswith("is empty: it is to hold the URL\n")) == (2, True)


def test_a_wrong_url_is_refused_without_being_shown() -> None:
    command = [*PREEMPTD, "watch", "--", "true"]
    env = environment({"PREEMPTD_WEBHOOK": "ftp://s3cr3t"})
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert run.returncode == 2
    assert run.stderr.startswith("preemptd: environment: webhook: ")
    assert "s3cr3t" not in run.stderr


@pytest.mark.parametrize("options", [(), ("--on-exit", "true"), ("--webhook", "http://127.0.0.1:1/x")])
def test_nothing_is_imported_that_was_not_asked_for(tmp_path: Path, options: tuple[str, ...]) -> None:
    code = "import sys; from preemptd.cli import main; sys.argv[0] = 'preemptd'; main()"
    command = [PREEMPTD[0], "-X", "importtime", "-c", code, "watch", *options, "--provider", "file", "--", "true"]
    run = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}

    assert ("preemptd.observe.hooks" in imported) == ("--on-exit" in options)
    assert ("preemptd.observe.webhook" in imported) == ("--webhook" in options)
    assert "requests" not in imported or "--webhook" in options


def test_the_daemon_posts_too(tmp_path: Path, hook: WebhookServer) -> None:
    config = f'provider = ["file"]\ngrace = 20\nno_wandb = true\nwebhook = "{hook.url}"\n'
    with Serving(tmp_path, config) as serving:
        (line,) = serving.await_line("serving")
        training = serving.train("link", env={"PREEMPTD_LINK": str(line["link"])})
        serving.notify()
        training.process.wait(30)

        assert hook.await_events(3) == ["notice", "saved", "exited"]
    assert hook.messages[2]["pid"] == training.pid
    assert SECRET not in serving.journal.read_text()


def test_what_waits_when_the_daemon_is_stopped_is_posted_first(tmp_path: Path, hook: WebhookServer) -> None:
    config = f'provider = ["file"]\ngrace = 20\nno_wandb = true\nwebhook = "{hook.url}"\n'
    hook.statuses = [503]
    with Serving(tmp_path, config) as serving:
        serving.await_line("serving")
        serving.notify()
        wait_until(lambda: hook.requests)
        serving.process.terminate()
        status, _ = serving.end()

    assert status == 0
    assert hook.events == ["notice", "notice"]
