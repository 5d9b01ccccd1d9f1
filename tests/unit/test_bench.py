"""The benchmark program: rows, verdicts, comparisons and the options, tried with rows that measure small hashes."""

from __future__ import annotations

import hashlib
import http.server
import io
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bench import results  # noqa: E402 - it is no installed package
from bench.__main__ import GROUPS, main  # noqa: E402
from bench.process import ask, free_port, started  # noqa: E402
from bench.reference import LOOP, PUBLISH, at_least, at_most  # noqa: E402
from bench.row import Budget, Failed, Group, Limit, Measured, Plan, Reference, Row, Runner, Unit, evaluate  # noqa: E402
from bench.run import Run  # noqa: E402
from bench.table import Table, number, quantity, seconds_per_call  # noqa: E402


def hashing(size: int) -> float:
    """Return the seconds that hashing *size* bytes takes."""
    return seconds_per_call(lambda: hashlib.sha256(b"x" * size).digest(), at_least_s=0.002, tries=3)


SMALL = Reference("a small hash", "s", 1e-6, lambda: hashing(1000))
BROKEN = Reference("a broken reference", "s", 1e-6, lambda: hashing(-1) / 0)
MET = Plan("a larger hash", "s", SMALL, Budget(">=", 2.0))
MISSED = Plan("too large a hash", "s", SMALL, Budget("<=", 2.0))
LATER = Plan("a hash without a budget", "s", SMALL)
RAISES = Plan("raises", "s", SMALL, Budget("<=", 2.0))


def larger() -> Measured:
    return Measured(hashing(1_000_000), note="1 MB")


def raising() -> Measured:
    raise Failed("behind after 3 s")


def group(name: str, *plans: Plan) -> Group:
    """Return a group that measures *plans*; the measurement of ``RAISES`` raises ``Failed``."""

    def run(runner: Runner) -> None:
        for plan in plans:
            runner.row(plan, raising if plan is RAISES else larger)

    return Group(name, plans, run)


def measured(*groups: Group) -> Run:
    run = Run(Table(groups, io.StringIO()))
    for planned in groups:
        run.group(planned)
    return run


def verdicts(run: Run) -> dict[str, str]:
    return {f"{row.group}: {row.name}": row.verdict for row in run.rows}


def row(value: float | None, *, limit: float | None = None, name: str = "row", unit: Unit = "s") -> Row:
    """Return a measured row of the group "g"; with *value* None, a failed one."""
    if value is None:
        return Row(group="g", name=name, unit=unit, verdict="FAILED", reason="behind")
    held = Limit("limit", limit, unit) if limit else None
    return evaluate("g", Plan(name, unit, "limit" if limit else ""), Measured(value, limit), held)


def test_a_row_that_raises_is_failed_with_its_reason_and_the_others_are_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = measured(group("first", MET, RAISES, LATER), group("second", MET))

    assert verdicts(run) == {
        "first: a larger hash": "met",
        "first: raises": "FAILED",
        "first: a hash without a budget": "",
        "second: a larger hash": "met",
    }
    assert run.rows[1].reason == "behind after 3 s"
    assert run.failed
    assert "Traceback" in capsys.readouterr().err


def test_a_set_up_that_raises_fails_the_rows_it_did_not_reach_and_no_others() -> None:
    def run_both(runner: Runner) -> None:
        def first() -> None:
            runner.row(MET, larger)
            raise OSError("no space left")

        runner.share([MET, MISSED], first)
        runner.share([LATER], lambda: runner.row(LATER, larger))

    run = measured(Group("g", (MET, MISSED, LATER), run_both))

    assert verdicts(run) == {"g: a larger hash": "met", "g: too large a hash": "FAILED", "g: " + LATER.name: ""}
    assert run.rows[1].reason == "OSError: no space left"


def test_a_row_that_its_group_does_not_measure_is_failed() -> None:
    run = measured(Group("g", (MET, LATER), lambda runner: runner.row(MET, larger)))

    assert verdicts(run) == {"g: a larger hash": "met", "g: a hash without a budget": "FAILED"}


def test_a_reference_that_raises_fails_the_rows_that_need_it_and_no_others() -> None:
    needs = Plan("needs it", "s", BROKEN, Budget("<=", 2.0))

    run = measured(group("g", needs, MET))

    assert verdicts(run) == {"g: needs it": "FAILED", "g: a larger hash": "met"}
    assert "the reference could not be measured" in run.rows[0].reason


def test_rows_are_printed_as_they_are_measured_and_aligned() -> None:
    out = io.StringIO()
    printed = []

    def run_both(runner: Runner) -> None:
        for plan in (MET, LATER):
            runner.row(plan, larger)
            printed.append(out.getvalue().count("\n"))

    groups = [Group("g", (MET, LATER), run_both)]
    table = Table(groups, out)
    table.head()
    Run(table).group(groups[0])

    assert printed == [3, 4]
    lines = out.getvalue().splitlines()
    columns = {tuple(at for at, letter in enumerate(line) if letter == "|")[:7] for line in lines}
    assert len(columns) == 1
    assert "1 MB" in lines[2]


def test_a_value_that_is_not_finite_and_a_limit_of_zero_fail() -> None:
    for value, limit in ((float("inf"), 1.0), (float("nan"), 1.0), (1.0, 0.0)):
        with pytest.raises(Failed):
            evaluate("g", MET, Measured(value), Limit("limit", limit, "s"))


@pytest.mark.parametrize("sense", ["<=", ">="])
def test_a_budget_that_is_reached_exactly_is_met(sense: str) -> None:
    plan = Plan("row", "s", SMALL, msgspec.convert({"sense": sense, "ratio": 4.0}, Budget))

    assert evaluate("g", plan, Measured(2.0), Limit("limit", 0.5, "s")).verdict == "met"


def test_waits_of_the_design_are_subtracted_before_the_ratio_is_taken() -> None:
    plan = Plan("row", "s", SMALL, Budget("<=", 2.0, waits_s=0.25))

    assert evaluate("g", plan, Measured(0.45), Limit("limit", 0.1, "s")).ratio == pytest.approx(2.0)
    assert evaluate("g", plan, Measured(0.20), Limit("limit", 0.1, "s")).ratio == 0.0
    assert evaluate("g", plan, Measured(0.46), Limit("limit", 0.1, "s")).verdict == "MISSED"


def test_a_budget_without_a_limit_is_compared_with_the_value() -> None:
    plan = Plan("memory", "MiB", "", Budget("<=", 512.0))

    assert [evaluate("g", plan, Measured(value), None).verdict for value in (512.0, 512.1)] == ["met", "MISSED"]


def test_a_budget_comes_to_its_figure_on_the_machine_it_was_set_on() -> None:
    assert at_most(1.0, LOOP, waits_s=0.25).ratio * LOOP.set_on + 0.25 == pytest.approx(1.0)
    assert at_least(50_000, PUBLISH).ratio * PUBLISH.set_on == pytest.approx(50_000)


def test_offered_rates_scale_with_the_loop_measured_in_the_same_run() -> None:
    run = measured(group("g", MET))

    assert run.offered(10_000) == int(10_000 * LOOP.set_on / run.limit(LOOP).value)


def test_results_are_read_from_a_file_as_they_were_written(tmp_path: Path) -> None:
    run = measured(group("g", MET, MISSED, LATER, RAISES))

    results.write(tmp_path / "run.json", run.rows)

    assert results.read(tmp_path / "run.json").rows == run.rows


def test_a_comparison_of_runs_of_different_sizes_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.json"
    monkeypatch.setenv("BENCH_SECONDS", "5")
    results.write(file, [])
    main(["--against", str(file)], [group("g", MET)])
    assert "Other sizes" not in capsys.readouterr().out

    monkeypatch.setenv("BENCH_SECONDS", "60")
    main(["--against", str(file)], [group("g", MET)])

    assert "Other sizes: {'BENCH_SECONDS': '5'} then, {'BENCH_SECONDS': '60'} now." in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2, "rows": []}', "[1]"])
def test_a_comparison_with_a_file_without_results_exits_with_2(tmp_path: Path, text: str) -> None:
    (tmp_path / "old.json").write_text(text)

    assert main(["--against", str(tmp_path / "old.json")], [group("g", MET)]) == 2


def test_a_comparison_shows_both_values_and_marks_what_became_worse_by_more_than_five_percent() -> None:
    names = ("faster", "slower", "same", "fewer")
    old = [row(1.0, name=name, unit="rows/s" if name == "fewer" else "s") for name in names]
    new = [
        row(0.5, name="faster"),
        row(1.06, name="slower"),
        row(1.05, name="same"),
        row(0.94, name="fewer", unit="rows/s"),
    ]

    found = results.compare(old, new)

    assert found.worse == ["g: slower", "g: fewer"]
    assert "| g: slower | 1 s      | 1.06 s      | 1.06" in found.text


def test_a_comparison_of_two_machines_judges_by_the_ratio_to_the_limit_of_each() -> None:
    old, slower_machine = row(1.0, limit=0.1), row(5.0, limit=0.5)

    assert results.compare([old], [slower_machine]).worse == []
    assert results.compare([old], [row(5.0, limit=0.4)]).worse == ["g: row"]


def test_a_comparison_marks_each_row_that_failed_or_is_new_or_gone() -> None:
    old = [row(1.0, name="fails"), row(1.0, name="goes")]
    new = [row(None, name="fails"), row(1.0, name="comes")]

    found = results.compare(old, new)

    assert found.worse == ["g: fails"]
    marks = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in found.text.splitlines()[2:]}
    assert marks == {"g: fails": "FAILED", "g: comes": "new", "g: goes": "gone"}


@pytest.mark.parametrize(
    ("plans", "code"), [((MET, LATER), 0), ((MET, MISSED), 1), ((MET, RAISES), 1)], ids=["met", "missed", "failed"]
)
def test_the_exit_code_says_whether_every_budget_was_met(plans: tuple[Plan, ...], code: int) -> None:
    assert main([], [group("g", *plans)]) == code


def test_only_strict_makes_a_worse_row_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "old.json"
    groups = [group("g", LATER)]
    assert main(["--json", str(file)], groups) == 0
    better = [msgspec.structs.replace(one, value=1e-12, ratio=1e-12) for one in results.read(file).rows]
    results.write(file, better)

    assert main(["--against", str(file)], groups) == 0
    assert "WORSE" in capsys.readouterr().out
    assert main(["--against", str(file), "--strict"], groups) == 1


def test_results_are_written_although_a_row_failed(tmp_path: Path) -> None:
    assert main(["--json", str(tmp_path / "run.json")], [group("g", RAISES, MET)]) == 1

    assert [one.verdict for one in results.read(tmp_path / "run.json").rows] == ["FAILED", "met"]


@pytest.mark.parametrize("words", [["second"], ["--only", "second"]])
def test_groups_are_chosen_by_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words, [group("first", MISSED), group("second", MET)]) == 0

    assert "first" not in capsys.readouterr().out


@pytest.mark.parametrize("words", [["none"], ["--only", "none"], ["--strict"], ["--json", "/no/such/directory/x"]])
def test_a_wrong_command_line_exits_with_2(words: list[str]) -> None:
    assert main(words, [group("g", MET)]) == 2


@pytest.mark.long
def test_the_option_list_prints_every_row_of_every_group() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--list"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stderr) == (0, "")
    for one in GROUPS:
        assert f"{one.name}\n" in done.stdout
        assert len({plan.name for plan in one.plans}) == len(one.plans) > 0
        for plan in one.plans:
            assert f"  {plan.name} [{plan.unit}]" in done.stdout


def test_every_budget_of_speed_is_a_ratio_to_a_limit() -> None:
    absolute = [plan for one in GROUPS for plan in one.plans if plan.budget and not plan.limit]

    assert {plan.unit for plan in absolute} == {"MiB", "models", "spans"}


def test_a_service_that_ends_while_it_starts_fails_with_its_exit_code_and_last_line() -> None:
    words = [sys.executable, "-c", "import sys; sys.exit('no such bucket')"]

    with (
        pytest.raises(Failed, match="ended with 1; last line: no such bucket"),
        started(words, f"http://127.0.0.1:{free_port()}/readyz"),
    ):
        pass


def test_a_request_is_repeated_while_its_status_is_503_and_fails_after_the_time_limit() -> None:
    asked = []

    class Behind(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            late = self.path == "/never" or len(asked) < 3
            self.send_response(503 if late else 200)
            self.end_headers()
            self.wfile.write(b'{"total_spans": 7}')

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Behind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        try:
            assert ask(f"{base}/stats") == {"total_spans": 7}
            assert len(asked) == 3
            with pytest.raises(Failed, match=r"no answer for 0 s: HTTP Error 503"):
                ask(f"{base}/never", seconds=0.2)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("value", "shown"), [(2.5e-7, "0.25 µs"), (0.0123, "12.3 ms"), (1.0, "1 s"), (64.21, "64.2 s"), (0.0, "0 µs")]
)
def test_seconds_are_shown_in_a_unit_that_suits_their_size(value: float, shown: str) -> None:
    assert quantity(value, "s") == shown


def test_numbers_are_shown_with_few_digits() -> None:
    assert [number(n) for n in (1234567.8, 99.96, 1.234, 0.0456, 7)] == ["1,234,568", "100.0", "1.23", "0.046", "7"]
