"""
Processes are killed at random moments while the pipeline is away, and what they left is sent more than once.

The store of the pipeline and its metrics then have each span once: all that had to be on disk, and nothing else.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import pytest

from kit.examples import SEED
from kit.peers import ignore_ungreeted_connections
from kit.pipeline import Pipeline
from kit.programs import run_program
from kit.reported_spans import counted
from kit.reporting import WAIT_S
from kit.spools import files, is_empty, kill_while_away, readable
from tokentrace import Reporter, Span

pytestmark = ignore_ungreeted_connections

#: Adopts a spool, and is killed after so many seconds.
_HEIR = """
threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), 9)).start()
reporter = Reporter("heir", url, spool=sys.argv[2])
while True:
    time.sleep(1)
"""


def stored(pipeline: Pipeline, caller: str) -> Counter[str]:
    """Return how often each name occurs among the stored spans of *caller*, each of which has a trace of its own."""
    found = Counter[str]()
    cursor = ""
    while True:
        page = pipeline.get(f"/traces?caller={caller}&limit=200{cursor}").json()
        for trace in page["traces"]:
            found[trace["name"]] += trace["span_count"]
        if not page["next_cursor"]:
            return found
        cursor = f"&cursor={quote(page['next_cursor'])}"


def tear(spool: Path, dice: random.Random) -> None:
    """Append to each file a part of one more record, as a process leaves it that is killed while it writes."""
    for path in files(spool):
        if readable(path).records:
            torn = path.read_bytes()[-400:][: dice.randrange(1, 400)]
            with path.open("ab") as file:
                file.write(b"\0\0\1\0" + torn)


def adopt(spool: Path, url: str, pipeline: Pipeline) -> int:
    """Let a reporter send all of *spool*; return how many spans it counted as adopted."""
    with Reporter("heir", url, token="s3cret", spool=spool) as heir:
        pipeline.until(lambda: is_empty(spool), "adopted")
        return heir.stats().adopted


def tell_story(directory: Path, way: str, dice: random.Random, programs: int) -> None:
    """Check the promise once, with so many programs that are killed."""
    spool, copy = directory / "spool", directory / "copy"
    pipeline = Pipeline(directory / "serve")
    reported, promised = set[str](), set[str]()
    url = pipeline.nats_url if way == "nats" else pipeline.url
    for run in range(programs):
        some, sure = kill_while_away(url, spool, f"run{run}", dice.random() * 3)
        reported |= some
        promised |= sure
    tear(spool, dice)
    shutil.copytree(spool, copy)
    pipeline.start()
    try:
        killed = run_program(_HEIR, url, str(spool), str(0.2 + dice.random()))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        adopt(spool, url, pipeline)
        time.sleep(1.5)  # longer than the broker recognises repetitions in this pipeline
        again = adopt(copy, url, pipeline)
        with Reporter("last", url) as last:  # counted after everything that was sent before
            last.report(Span(name="last", kind="custom"))
            assert last.flush(WAIT_S)
        pipeline.until(lambda: counted(pipeline, "last") == 1, "the last span counted")
        pipeline.until(lambda: stored(pipeline, "last") == Counter(["last"]), "the last span stored")
        pipeline.until(lambda: len(stored(pipeline, "killed")) >= again, "all stored")
        found = stored(pipeline, "killed")
        assert set(found.values()) <= {1}
        assert promised <= found.keys() <= reported
        assert len(found) == again == counted(pipeline, "killed") > 0
    finally:
        pipeline.stop()


@pytest.mark.parametrize("way", ["nats", "http"])
def test_what_killed_processes_left_is_stored_once_though_it_is_sent_twice(tmp_path: Path, way: str) -> None:
    tell_story(tmp_path, way, random.Random(f"{SEED}{way}"), 1)


@pytest.mark.story
@pytest.mark.parametrize("way", ["nats", "http"])
@pytest.mark.parametrize("round", range(4))
def test_many_kills_lose_nothing_of_what_had_to_be_on_disk(tmp_path: Path, way: str, round: int) -> None:
    tell_story(tmp_path, way, random.Random(f"{SEED}{way}{round}"), 4)
