"""`preemptd daemon` where a reload goes wrong, and what it remembers of those it has told."""

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from preemptd.events import Event
from preemptd.model import ProcessId, Run
from preemptd.notices import AFTER_REVOCATION
from preemptd.observe.history_file import HistoryFile, read
from preemptd.procfs import process_id
from preemptd.runs.aftercare import Aftercare
from preemptd.runs.marker import Marker
from preemptd.runs.mending import Mender, Repair
from preemptd.runs.owner import Owner, rights_of
from preemptd.runs.roster import Entry, Roster
from tests.serving import Serving
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

FILE = 'provider = ["file"]\ngrace = 20\nno_wandb = true\n'
CODE = 75
ENDED = ProcessId(os.getpid(), 1)
"""An earlier process with the number of ours."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("how", ["webhook_file", "listen", "link", "the old one, a file of which is gone"])
def test_a_configuration_that_cannot_be_had_is_refused_and_the_old_one_goes_on_all_the_time(
    tmp_path: Path, how: str
) -> None:
    port, url = free_port(), tmp_path / "url"
    url.write_text("http://127.0.0.1:9/x\n")
    taken = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    bad = {"webhook_file": f"{tmp_path}/none", "listen": address, "link": f"{url}/link"}
    config = FILE + f'listen = "127.0.0.1:{port}"\nwebhook_file = "{url}"\n[[target]]\npidfile = "{tmp_path}/pid"\n'
    with taken, Serving(tmp_path, config) as serving:
        serving.await_line("serving")
        if how in bad:
            serving.config.write_text(FILE + f'{how} = "{bad[how]}"\n')
        else:
            url.unlink()
        serving.signal(signal.SIGHUP)
        serving.await_line("warning")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz?live", timeout=30) as page:
            status = page.status
        training = serving.train("USR1")
        (tmp_path / "pid").write_text(f"{training.pid}\n")
        serving.await_line("target", wanted=lambda line: line["pid"] == training.pid)
        serving.notify()
        training.await_said("signal")

        assert status == 200
        assert ["refused" in str(line["text"]) for line in serving.lines("warning")] == [True]
        assert len(serving.lines("serving")) == 1
        assert serving.lines("stopped") == []


def test_a_misspelt_variable_is_named_as_it_is_by_watch(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE, env={"PREEMPTD_GRAECE": "5"}) as serving:
        (line,) = serving.await_line("warning")

    assert line["text"] == "PREEMPTD_GRAECE is no setting of ours: is PREEMPTD_GRACE meant?"


def without_its_link(tmp_path: Path) -> Serving:
    """Let a daemon read its configuration anew that cannot make its socket again."""
    (tmp_path / "run").mkdir()
    serving = Serving(tmp_path, FILE + f'link = "{tmp_path}/run/link"\n')
    serving.await_line("serving")
    (tmp_path / "run").rename(tmp_path / "gone")
    (tmp_path / "run").touch()
    serving.signal(signal.SIGHUP)
    return serving


def test_an_old_configuration_that_cannot_be_had_any_more_is_tried_again(tmp_path: Path) -> None:
    with without_its_link(tmp_path) as serving:
        serving.await_line("warning", wanted=lambda line: "refused" in str(line["text"]))
        (tmp_path / "run").unlink()
        serving.signal(signal.SIGHUP)
        serving.await_line("serving", 2)

        assert serving.process.poll() is None


def test_a_stop_is_heard_while_no_configuration_can_be_had(tmp_path: Path) -> None:
    with without_its_link(tmp_path) as serving:
        serving.await_line("warning", wanted=lambda line: "refused" in str(line["text"]))
        serving.signal(signal.SIGTERM)
        status, _ = serving.end()

        assert status == 0


def test_a_stop_in_the_middle_of_a_reload_is_heard(tmp_path: Path) -> None:
    gaps = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03)
    with ExitStack() as stack:
        daemons = []
        for number, _ in enumerate(gaps):
            directory = tmp_path / str(number)
            directory.mkdir()
            daemons.append(stack.enter_context(Serving(directory, FILE)))
        for daemon, gap in zip(daemons, gaps, strict=True):
            daemon.await_line("serving")
            daemon.signal(signal.SIGHUP)
            time.sleep(gap)
            daemon.signal(signal.SIGTERM)
        statuses = [daemon.end()[0] for daemon in daemons]

        assert statuses == [0] * len(gaps)


def kilobytes(serving: Serving) -> int:
    text = Path(f"/proc/{serving.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:"))


def held(serving: Serving) -> tuple[int, int]:
    """Count its threads and descriptors."""
    proc = Path(f"/proc/{serving.process.pid}")
    return len(list((proc / "task").iterdir())), len(list((proc / "fd").iterdir()))


def reload(serving: Serving, times: int) -> None:
    for _ in range(times):
        count = len(serving.lines("serving"))
        serving.signal(signal.SIGHUP)
        serving.await_line("serving", count + 1)


def test_reloads_cost_no_memory_threads_or_descriptors_for_good(tmp_path: Path) -> None:
    config = FILE + f'listen = "127.0.0.1:{free_port()}"\nwebhook = "http://127.0.0.1:9/x"\n'
    with Serving(tmp_path, config) as serving:
        serving.await_line("serving")
        reload(serving, 10)
        threads, descriptors = held(serving)
        before = kilobytes(serving)
        reload(serving, 40)
        # What a loop that has ended still has under way comes to its end; the first look may have come before all of
        # the next one was there. One that stays behind at each reload would make forty.
        wait_until(lambda: held(serving)[0] <= threads + 3 and held(serving)[1] <= descriptors + 5, 30)

        assert kilobytes(serving) - before < 6000


class Known(Roster):
    """A roster that somebody else has filled."""

    def __init__(self, *entries: Entry) -> None:
        super().__init__()
        self._entries = {entry.run: entry for entry in entries}


class Caring:
    """Aftercare for a run of *owner* that has left no log: to look after it is to say so."""

    def __init__(self, owner: ProcessId, directory: Path) -> None:
        events: list[Event] = []
        self.repairs: list[Repair] = []
        entry = Entry(Run("abc", owner.pid, owner.pid, str(directory)))
        entry.owner = Owner(owner, ENDED, rights_of("self"), "/", {}, None, None, confined=False)
        roster = Known(entry)
        self.care = Aftercare(Marker(events.append, roster), roster, CODE, self.repairs.append)
        self.care.start()

    def hear(self, event: str, ago: float = 0.0, **fields: object) -> None:
        self.care.write({"event": event, "mono": time.monotonic() - ago, **fields})

    def notice(self, event_id: str) -> None:
        self.hear("notice", event_id=event_id, acted=True, grace=30.0)

    def told(self, process: ProcessId) -> None:
        self.hear("told", pid=process.pid, start=process.start, dry_run=False)

    def whys(self) -> list[str]:
        return [repair.why for repair in self.repairs]


def sleeper() -> tuple["subprocess.Popen[bytes]", ProcessId]:
    process = subprocess.Popen(["sleep", "600"])
    found = process_id(process.pid)
    assert found is not None
    return process, found


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(30)


def test_a_run_whose_process_ends_in_the_moment_before_our_end_is_looked_after(tmp_path: Path) -> None:
    process, owner = sleeper()
    caring = Caring(owner, tmp_path)
    caring.notice("a")
    caring.told(owner)
    end(process)
    caring.care.stop()

    assert len(caring.repairs) == 1


def test_a_notice_that_is_taken_back_ends_nothing_while_another_is_open(tmp_path: Path) -> None:
    process, owner = sleeper()
    caring = Caring(owner, tmp_path)
    caring.notice("a")
    caring.notice("b")
    caring.told(owner)
    caring.hear("revoked", ago=2 * AFTER_REVOCATION, event_id="a")
    end(process)
    caring.care.stop()

    assert len(caring.repairs) == 1


def test_a_process_that_that_was_told_and_ends_long_after_the_notice_is_left_alone(tmp_path: Path) -> None:
    process, owner = sleeper()
    caring = Caring(owner, tmp_path)
    caring.notice("a")
    caring.told(owner)
    caring.hear("revoked", ago=2 * AFTER_REVOCATION, event_id="a")
    end(process)
    caring.care.stop()

    assert caring.repairs == []


def test_what_one_process_has_finished_is_not_what_the_next_one_with_its_number_has(tmp_path: Path) -> None:
    caring = Caring(ENDED, tmp_path)
    caring.hear("done", pid=ENDED.pid)
    caring.notice("a")
    caring.told(ENDED)
    caring.care.stop()

    assert len(caring.repairs) == 1
    assert "done" not in caring.whys()[0]


def test_who_takes_done_back_is_looked_after(tmp_path: Path) -> None:
    process, owner = sleeper()
    caring = Caring(owner, tmp_path)
    caring.notice("a")
    caring.told(owner)
    caring.hear("done", pid=owner.pid)
    caring.hear("undone", pid=owner.pid)
    end(process)
    caring.care.stop()

    assert len(caring.repairs) == 1
    assert caring.whys() != ["its process said that it is done"]


def test_who_says_that_it_is_done_is_believed(tmp_path: Path) -> None:
    process, owner = sleeper()
    caring = Caring(owner, tmp_path)
    caring.notice("a")
    caring.told(owner)
    caring.hear("done", pid=owner.pid)
    end(process)
    caring.care.stop()

    assert caring.whys() == ["its process said that it is done"]


def test_a_repair_that_takes_long_does_not_hold_up_a_reload(tmp_path: Path) -> None:
    process, owner = sleeper()
    end(process)
    caring, over = Caring(owner, tmp_path), threading.Event()

    def work() -> None:
        over.wait(60)

    mender = Mender(Known(), caring.repairs.append)
    mender._threads.append(threading.Thread(target=work, daemon=True))
    mender._threads[0].start()
    mender._end = time.monotonic() + 60
    caring.care._menders.add(mender)
    began = time.monotonic()
    caring.care.stop()
    took = time.monotonic() - began
    over.set()

    assert took < 30
    assert mender._stopped


def test_a_history_that_could_not_be_written_once_is_written_when_there_is_room_again(tmp_path: Path) -> None:
    path, complaints = tmp_path / "history.jsonl", list[str]()
    path.symlink_to("/dev/full")
    history = HistoryFile(str(path), complaints.append)
    for event_id in ("a", "b"):
        notice = {"event": "notice", "t": 1.0, "event_id": event_id, "provider": "file", "kind": "preempt"}
        history.write({**notice, "grace": 30.0, "source": "here", "acted": True})
        history.when_idle()
    path.unlink()
    history.write({"event": "stopped", "t": 2.0, "why": "somebody has stopped us"})
    history.close()

    assert len(complaints) == 1
    assert read(str(path))[-1]["end"] == "stopped"
