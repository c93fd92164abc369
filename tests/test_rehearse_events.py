"""`preemptd rehearse --event`: each event of each platform tells the training, by the platform's own provider."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from preemptd.rehearsal.clouds import CLOUDS
from tests.rehearsing import rehearse, report
from tests.watching import read_lines, trainer

pytestmark = pytest.mark.slow

KINDS = {
    "ec2": {
        "terminate": "terminate",
        "stop": "stop",
        "hibernate": "hibernate",
        "rebalance": "rebalance",
        "scheduled": "maintenance",
        "lifecycle": "terminate",
    },
    "gce": {
        "preempted": "preempt",
        "terminate": "maintenance",
        "migrate": "migrate",
        "stop": "stop",
        "upcoming": "maintenance",
    },
    "azure": {
        "preempt": "preempt",
        "terminate": "terminate",
        "redeploy": "maintenance",
        "reboot": "maintenance",
        "freeze": "freeze",
    },
    "alibaba": {"terminate": "terminate"},
    "tencent": {"terminate": "terminate"},
    "byteplus": {"terminate": "terminate"},
    "http": {"terminate": "terminate"},
    "exec": {"terminate": "terminate"},
}
EVENTS = [(platform, event) for platform, cloud in CLOUDS.items() for event in cloud.events]
ADVICE = [(platform, event, kind) for platform, event in EVENTS if (kind := CLOUDS[platform].events[event].advice)]
"""With what ``--act-on`` has to name."""
QUICK = {("ec2", "terminate"), ("gce", "preempted"), ("azure", "preempt"), ("http", "terminate"), ("exec", "terminate")}
"""Those that wait for nothing; the others' providers look every 5 s, or are much like one of these."""


def test_there_is_a_kind_for_each_event() -> None:
    assert {platform: list(events) for platform, events in KINDS.items()} == {
        platform: list(cloud.events) for platform, cloud in CLOUDS.items()
    }


@pytest.mark.parametrize(
    ("platform", "event"),
    [pytest.param(*row, marks=[] if row in QUICK else pytest.mark.slow, id="-".join(row)) for row in EVENTS],
)
def test_each_event_is_heard_and_a_training_that_saves_is_saved(tmp_path: Path, platform: str, event: str) -> None:
    advice = CLOUDS[platform].events[event].advice
    journal = tmp_path / "journal"
    options = ["--provider", platform, "--event", event, "--after", "0.2", "--grace", "31", "--lead", "30"]
    options += ["--journal", str(journal), *(["--act-on", advice] if advice else [])]
    ended = rehearse(tmp_path, trainer("link"), *options)
    lines = report(ended)
    (notice,) = (line for line in read_lines(journal) if line["event"] == "notice")

    assert (ended.returncode, lines[-1]) == (0, "verdict     SAVED: 1 of 1 told processes said that they have saved")
    assert (notice["provider"], notice["kind"]) == (platform, KINDS[platform][event])
    assert lines[0].split(":")[0].split()[1:] == [platform, event][: 1 if event == CLOUDS[platform].first else 2]


@pytest.mark.slow
def test_maintenance_is_advice_until_the_lead_is_left_and_the_report_counts_from_the_announcement(
    tmp_path: Path,
) -> None:
    options = ["--provider", "gce", "--event", "terminate", "--after", "0", "--grace", "25", "--lead", "20"]
    text = "\n".join(report(rehearse(tmp_path, trainer("link"), *options)))
    counted = (
        r"rehearsed   gce terminate: 25 s from the announcement to the end of the machine, (\d+) s from the notice"
    )
    (left,) = re.findall(counted, text)
    (told,) = re.findall(r"over the link after ([0-9.]+) ms", text)
    (spare,) = re.findall(r"to spare    ([0-9.]+) s", text)
    times = [float(entry) for entry in re.findall(r"\+([0-9.]+) s  ", text)]
    ((acted, grace),) = re.findall(r"\n {12}\+([0-9.]+) s  notice: maintenance in (\d+) s\n", text)

    assert re.search(r"\ntimeline    \+0\.000 s  advice: maintenance in 2[0-5] s\n", text)
    assert (times, left) == (sorted(times), grace)
    assert 5 <= float(acted) <= 25 - float(left) + 1
    assert float(told) < 5000
    assert 0 < float(spare) < 20


def test_what_ends_while_it_is_advice_was_told_of_nothing(tmp_path: Path) -> None:
    options = ["--provider", "azure", "--event", "reboot", "--after", "0", "--grace", "300"]
    ended = rehearse(tmp_path, ["sleep", "2"], *options)
    lines = report(ended)

    assert ended.returncode == 1
    assert lines[0] == "rehearsed   azure reboot: 300 s from the announcement to the end of the machine"
    assert lines[-1] == (
        "verdict     UNKNOWN: the command ended while this was advice, and nobody was told; try a smaller --grace"
    )


def test_a_hibernation_is_given_no_time_and_its_rehearsal_ends_all_the_same(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, trainer("none"), "--event", "hibernate", "--after", "0", "--grace", "2")
    lines = report(ended)

    assert ended.returncode == 1
    assert "timeline    +0.000 s  notice: hibernate in 0 s" in lines
    assert lines[-1] == "verdict     LOST: the command still ran when the 2 s were over, as the machine would not"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--event", "frobnicate"],
            (
                "preemptd: --event 'frobnicate' is none of ec2's; "
                "it has terminate, stop, hibernate, rebalance, scheduled, lifecycle"
            ),
        ),
        (["--grace", "0"], "preemptd: --grace 0 cannot be rehearsed: seconds, more than 0 and at most 3600"),
        (["--grace", "1e9"], "preemptd: --grace 1e+09 cannot be rehearsed: seconds, more than 0 and at most 3600"),
        (
            ["--event", "scheduled", "--lead", "1e9"],
            "preemptd: --lead 1e+09 cannot be rehearsed: at most 3600 seconds",
        ),
        (
            ["--event", "scheduled", "--lead", "0"],
            "preemptd: --lead 0 leaves no time between the notice and --event scheduled",
        ),
        (["--provider", "exec", "--event", "stop"], "preemptd: --event 'stop' is none of exec's; it has terminate"),
        *(
            (
                ["--provider", platform, "--event", event, "--act-on", "maintenance"],
                f"preemptd: --event {event} is advice, of which nobody is told; --act-on {advice} would tell",
            )
            for platform, event, advice in ADVICE
        ),
    ],
)
def test_what_cannot_be_rehearsed_is_one_line_and_starts_nothing(tmp_path: Path, options: list[str], line: str) -> None:
    ended = rehearse(tmp_path, ["touch", "ran"], *options)

    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (2, "", line)
    assert not (tmp_path / "ran").exists()


def test_the_users_own_page_is_not_the_rehearsed_one(tmp_path: Path) -> None:
    config = tmp_path / "preemptd.toml"
    config.write_text('[providers.http]\nurl = "http://127.0.0.1:1/"\nnotice = "."\nclear = "x"\nzone = "+08:00"\n')
    env = {"PREEMPTD_CONFIG": str(config)}
    ended = rehearse(tmp_path, trainer("link"), "--provider", "http", "--after", "0.2", "--grace", "30", env=env)

    assert report(ended)[-1].startswith("verdict     SAVED"), ended.stderr


def test_the_list_of_what_can_be_rehearsed_is_quick_to_import() -> None:
    code = "import sys; before = set(sys.modules); import preemptd.rehearsal.clouds; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert {"http.server", "socketserver", "pydantic", "requests"}.isdisjoint(loaded)
