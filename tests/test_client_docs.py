"""docs/client.md is true: its examples of callbacks and critical sections run, its tables are those of the code."""

import re
import time

from preemptd.events import LinkJoined, LinkSaid
from preemptd.link import signals_caught
from preemptd.link.alone import KINDS
from tests.conftest import ROOT
from tests.linking import line_of, notice, script, serving, tell_to_go_on

CLIENT = (ROOT / "docs" / "client.md").read_text()


def example(after: str) -> str:
    found = re.search(r"^```python\n(.*?)^```", CLIENT.partition(f"\n## {after}\n")[2], re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_callback_of_the_page_is_called_and_can_be_taken_off() -> None:
    code = "import preemptd, sys\nsys.stdout.reconfigure(line_buffering=True)\n"
    code += f"{example('Callbacks')}\nprint('ready'); sys.stdin.readline(); take_off(); print('taken off')"
    with serving() as (server, events), script(code, server.path) as process:
        line_of(process)
        events.wait_for(LinkJoined)
        server.announce(notice(remaining=100.0))
        called = line_of(process)
        tell_to_go_on(process)
        out, err = process.communicate(timeout=30)

    assert re.fullmatch(r"test/source: \d+\.\d+ s left", called)
    assert (process.returncode, out, err) == (0, "taken off\n", "")


def test_the_critical_section_of_the_page_is_left_whole() -> None:
    code = "import preemptd, sys\npart_one, part_two = 1, 2\nprint('ready', preemptd.should_preempt(), flush=True)\n"
    code += "def write(part): sys.stdin.readline(); print(part, preemptd.should_preempt(), flush=True)\n"
    code += example("Critical sections") + "print('left', preemptd.should_preempt(), flush=True)"
    with serving() as (server, events), script(code, server.path) as process:
        line_of(process)
        tell_to_go_on(process)
        first = line_of(process)
        server.announce(notice())
        events.wait_for(LinkSaid)
        time.sleep(0.05)
        tell_to_go_on(process)

        assert [first, line_of(process), line_of(process)] == ["1 False", "2 False", "left True"]


def test_the_page_names_the_signals_and_what_each_is_taken_for() -> None:
    table = CLIENT.partition("\n## Without a daemon\n")[2]
    rows = dict(re.findall(r"^\| (SIG\w+) \|.*?of kind `(\w+)`", table, re.MULTILINE))

    assert rows == {signum.name: kind for signum, kind in KINDS.items()}
    assert signals_caught.ONE_WORD == 1.0
    assert "within a second of the first" in table
