"""What a command says last, in words that its records bear out; and the one line that a terminal shows until then."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import webbrowser
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY_OVERRIDES
from test_claims import a_record, with_speedup

from src import cli, opening, terminal
from src.jobs.progress import Progress
from src.records.row import Row
from src.records.store import Record
from src.report.answer import in_short, of_run
from src.report.build import Report
from src.report.ending import claims_lines, ending, worth_lines
from src.report.section import CANNOT_TELL, FAILS, HOLDS, NOT_RUN, Claim, Section

FEW = {"few": True}


def rows(*records: Record) -> list[Row]:
    return [record.row for record in records]


def pair(value: float, low: float, high: float, few: bool = False, **columns: Any) -> list[Record]:
    """Prepacking and full-batching, measured in turns."""
    return [
        a_record("prepacking", **with_speedup(value, low, high, few), computed_tokens=410, **columns),
        a_record("full-batching", computed_tokens=1000, **columns),
    ]


@pytest.mark.parametrize(
    ("speedup", "said"),
    [
        ((1.69, 1.2, 2.1), "1.69x [1.20, 2.10] as fast; it computes 41 % of the positions"),
        ((1.05, 0.9, 1.2), "1.05x [0.90, 1.20] as fast (the interval contains 1: no difference is shown); it"),
        ((1.69, 1.2, 2.1, True), "1.69x [1.20, 2.10] as fast (too few batches or repeats to rely on it); it"),
        ((1.69, 0.01, 200), "1.69x as fast (too few batches or repeats to rely on it); it"),
    ],
)
def test_a_run_ends_with_what_the_method_is_worth(speedup: tuple[Any, ...], said: str) -> None:
    (line,) = of_run(rows(*pair(*speedup)))
    assert line.startswith(f"prepacking takes {100 / speedup[0]:.0f} % of the time of full-batching: {said}")


def test_a_speedup_within_the_noise_floor_is_no_difference() -> None:
    (line,) = of_run(rows(*pair(1.02, 1.01, 1.03, noise_floor=0.05)))
    assert "(the interval reaches within 5 % of 1, which counts as no difference)" in line


def test_a_run_says_what_is_invalid_and_what_failed() -> None:
    ordered = a_record("length-ordered", status="oom")
    lines = of_run(rows(*pair(2, 1.5, 3, valid=False), ordered))
    assert lines[1:] == ["not measured: length-ordered oom; INVALID, not to be relied upon: prepacking, full-batching"]
    assert of_run(rows(ordered)) == ["nothing was measured: length-ordered oom"]


def test_one_method_alone_has_its_times_and_several_are_set_in_order() -> None:
    alone = of_run(rows(a_record("full-batching", [[0.5]], batch_size=4, seconds_per_prompt_mean=0.125)))
    assert alone == [
        "full-batching takes 125 ms per prompt, 0.500 s per batch of 4; no other method was measured to hold it against"
    ]
    free = a_record("padding-free", seconds_per_prompt_mean=0.002)
    assert of_run(rows(*pair(2, 1.5, 3), free))[1] == "per prompt: padding-free 2.00 ms, prepacking 15.6 ms, full-batching 15.6 ms"  # fmt: skip # noqa: E501
    both = of_run(rows(a_record("prepacking", speedup_over_full_batching=None), free))
    assert both == ["prepacking takes 15.6 ms per prompt, 1.00 s per batch of 16", "per prompt: padding-free 2.00 ms, prepacking 15.6 ms"]  # fmt: skip # noqa: E501


def test_the_last_result_is_a_few_words() -> None:
    assert in_short(rows(*pair(3.14, 2.5, 4))) == "prepacking 3.1x"
    assert in_short(rows(*pair(1.04, 0.9, 1.2, valid=False))) == "prepacking 1.0x (cannot tell), INVALID"
    assert in_short(rows(a_record("full-batching"), a_record("prepacking", status="oom"))) == (
        "full-batching 15.6 ms / prompt, prepacking oom"
    )
    assert in_short(rows(a_record("prepacking", status="error"))) == "prepacking error"


CLAIMS = [
    Claim("Packing is fast", "…", "5.21x", "5.50x [3.54, 11.91], batches of 32; with a fault more", HOLDS),
    Claim("Small batches are free.", "…", "1.42x of one sample; it varies", "2.34x", FAILS, "one prompt is enough"),
    Claim("Bins predict", "…", "", "R² 0.6", CANNOT_TELL),
    Claim("Larger batches fit", "…", "up to 16x", "", NOT_RUN),
]
SECTION = Section("today", "Today", "", CLAIMS)


def test_each_claim_is_a_line_with_its_verdict_in_front_and_both_figures() -> None:
    assert claims_lines("some CPU", [SECTION], None)[1:] == [
        "  holds          Packing is fast: 5.50x [3.54, 11.91], batches of 32 (paper: 5.21x)",
        "  does not hold  Small batches are free: 2.34x (paper: 1.42x of one sample)",
        "  cannot tell    Bins predict: R² 0.6",
        "  not run        Larger batches fit (paper: up to 16x)",
    ]
    narrow = claims_lines("some CPU", [SECTION], 60)[1:]
    assert narrow[:2] == [
        "  holds          Packing is fast: 5.50x [3.54, 11.91],",
        "                 batches of 32 (paper: 5.21x)",
    ]
    assert max(map(len, narrow)) <= 60
    assert claims_lines("some CPU", [Section("today", "Today", "", CLAIMS[3:] * 10)], None) == [
        "None of the paper's 10 claims was put to the test on some CPU."
    ]


def run(name: str, speedup: tuple[Any, ...], **columns: Any) -> list[Record]:
    of = {"comparison_id": name, "workload_fingerprint": name, "experiment": "today"}
    return pair(*speedup, **of, **columns)


def test_three_lines_say_what_prepacking_is_worth_and_which_batches_say_so() -> None:
    records = [
        *run("a", (2, 1.8, 2.2), batch_size=8, peak_memory_mb=100),
        *run("b", (4, 3.5, 4.5), batch_size=32, peak_memory_mb=100),
        *run("c", (9, 0.5, 30), batch_size=64, peak_memory_mb=100, valid=None),
        *run("d", (1.5, 1.2, 1.9), metric="ttft"),
    ]
    records[1].row.peak_memory_mb, records[3].row.peak_memory_mb = 150, 300
    records[2].row.speedup_over_length_ordered = 1.3
    noise = [[0.9, 1.0, 1.1, 1.0, 0.9], [1.0, 1.1, 0.9, 1.0, 1.0]]
    packed, free = (
        a_record("prepacking", noise),
        a_record("padding-free", [[2.1 * x for x in noise[0]], [1.9 * x for x in noise[1]]]),
    )
    for record in (packed, free):
        record.row.comparison_id, record.row.experiment = "e", "traces"
    packed.row.speedup_over_full_batching = None
    ordered = a_record("length-ordered", comparison_id="b")
    heading, time, others, memory = worth_lines([*records, packed, free, ordered], None)
    assert heading == "What prepacking is worth here"
    assert time == (
        "  over full-batching  prefill 4.00x as fast (median of 3, 1 of them uncertain), "
        "up to 4.00x [3.50, 4.50] (today, mmlu, batches of 32); TTFT 1.50x [1.20, 1.90] (today, mmlu, batches of 16)"
    )
    assert others.startswith(
        "  over others         length-ordered, which needs all prompts in advance: 1.30x (no interval) (today, mmlu, "
        "batches of 32; too few batches or repeats to rely on it); padding-free: 2.00x [1."
    )
    assert others.endswith("(traces, mmlu, batches of 16)")
    in_memory = "full-batching needs 1.50x as much (median of 3), up to 3.00x (today, mmlu, batches of 32)"
    assert memory == f"  in memory           {in_memory}"


def test_what_is_invalid_is_left_out_or_said() -> None:
    good, bad = run("a", (2, 1.8, 2.2)), run("b", (9, 8, 10), valid=False)
    heading, time, *_ = worth_lines([*good, *bad], None)
    assert heading == "What prepacking is worth here (1 of 2 comparisons left out as INVALID)"
    assert "prefill 2.00x [1.80, 2.20] as fast (today" in time
    heading, time, *_ = worth_lines(bad, None)
    assert heading == "What prepacking is worth here (every comparison is INVALID: do not rely on it)"
    assert "prefill 9.00x [8.00, 10.00] as fast (today" in time
    with_fault = run("c", (9, 8, 10), faults="no-sync")
    across_runs = run("d", (9, 8, 10), speedup_across_runs=True)
    under_load = run("f", (9, 8, 10), arrivals="poisson", rate=8.0)
    (nothing,) = worth_lines([*with_fault, *across_runs, *under_load, *run("e", (9, 8, 10))[:1]], None)
    assert nothing.startswith("What prepacking is worth here is not known")


def test_many_uncertain_figures_have_no_largest() -> None:
    _, time, *_ = worth_lines([*run("a", (2, 1.8, 2.2, True)), *run("b", (9, 0.8, 90))], None)
    assert "prefill 5.50x as fast (median of 2, all of them uncertain; today); TTFT not measured" in time


def test_the_end_names_the_page_and_counts_the_files(tmp_path: Path) -> None:
    for name in ("summary.md", "a.csv", "a.svg", "report.html"):
        (tmp_path / name).touch()
    (tmp_path / "old-cpu").mkdir()
    (tmp_path / "old-cpu" / "b.csv").touch()
    (old, _), new = run("a", (2, 1.8, 2.2)), run("b", (3, 2.8, 3.2))
    new[0].row.created_at = "2026-01-01"
    files = sorted(tmp_path.iterdir())
    machines = {old.row.run_id: "old CPU"} | {record.row.run_id: "new CPU" for record in new}
    one = Report(tmp_path, files, new, machines, {"new CPU": [SECTION]})
    lines = ending(one, None).splitlines()
    assert lines[0].startswith("The paper's claims on new CPU")
    assert lines[-2:] == [
        f"page: {tmp_path}/report.html",
        f"files: 4 tables and figures (CSV, MD, SVG) in {tmp_path}",
    ]
    two = Report(tmp_path, files, [old, *new], machines, {"old CPU": [], "new CPU": [SECTION]})
    assert ending(two, None).splitlines()[-3:-1] == [
        f"page: {tmp_path}/new-cpu/report.html",
        f"page of old CPU: {tmp_path}/old-cpu/report.html",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a screen")
def test_a_page_is_opened_where_there_is_a_screen_and_else_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(asked.append(address)) or len(asked) == 1)
    for name in opening.SCREENS:
        monkeypatch.delenv(name, raising=False)
    page = tmp_path / "a page.html"
    note = f"note: no browser can be opened here; the page is {page}\n"
    assert not opening.open_page(page)
    assert (asked, capsys.readouterr().err) == ([], note)
    monkeypatch.setenv("DISPLAY", ":0")
    assert opening.open_page(page)
    assert (asked, capsys.readouterr().err) == ([f"file://{tmp_path}/a%20page.html"], "")
    cli.warn.cache_clear()
    assert not opening.open_page(page)  # it says that it could not
    assert capsys.readouterr().err == note


def test_where_there_is_no_terminal_no_line_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(["today"])

    def never() -> float:
        raise AssertionError("nobody sees what this would cost")

    with progress.drawn():
        assert not terminal.progress_shown()
        progress.begins("today", 3.0, never)
        progress.came_out("prepacking 3.1x")
        cli.warn("something")
        terminal.say("one", "two")
    assert capsys.readouterr() == ("one\ntwo\n", "note: something\n")


def test_what_is_printed_wipes_the_line_first(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress_line():
        cli.warn("something")
        terminal.say("result")
    assert capsys.readouterr() == ("result\n", f"{terminal.WIPE}note: something\n{terminal.WIPE}")


REPRODUCE = """
import sys
from src import reproduce
from src.jobs import reproducing

results, *small = sys.argv[1:]
reproducing.sweep = lambda name, common: [[*small, *common, f"batch_size={size}"] for size in (4, 3)]
sys.argv[1:] = ["experiment=today", "scale=cpu", f"results_dir={results}"]
sys.exit(reproduce.command())
"""


def on_a_terminal(columns: int, *command: str) -> tuple[int, str]:
    """Run a program as in a terminal of so many columns: its exit code, and what came out."""
    child, screen = pty.fork()
    if not child:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, *command])
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    shown = b""
    while True:
        try:
            shown += (read := os.read(screen, 65_536))
        except OSError:  # on Linux, where it has ended
            break
        if not read:
            break
    os.close(screen)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


@pytest.mark.slow
def test_a_terminal_shows_one_line_that_is_redrawn(tmp_path: Path) -> None:
    small = [*TINY_OVERRIDES, "isolate=true", "methods=[full-batching,prepacking]", "repeats=30"]
    code, shown = on_a_terminal(100, "-c", REPRODUCE, str(tmp_path), *small)
    assert code == 0, shown
    lines = shown.split("\r\n")
    (redrawn,) = [line for line in lines if "experiment 1 of 1: today (1 of 2)" in line]  # one line of the screen
    drawn = [each for each in redrawn.split("\r") if "%|" in each]
    assert max(map(len, drawn)) < 100
    assert re.search(r"experiment 1 of 1: today \(2 of 2\), \d+ s left, last prepacking \d+\.\dx", redrawn)
    assert all("experiment 1 of 1" in each for each in drawn[1:])  # a bar of the child's would be another
    assert redrawn.split("\r")[-1] == ""  # wiped at the end
    assert "| Method" not in shown
    assert f"page: {tmp_path}/report/report.html" in lines
