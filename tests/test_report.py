from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from PIL import Image

from src.cli import UserError
from src.records.row import COLUMNS
from src.records.store import Record, write
from src.report import __main__ as report
from src.report.build import report_on
from src.report.ending import ending

ALL = "methods=[prepacking,full-batching,length-ordered]"
REQUIRED = set(
    [
        "run_id",
        "status",
        "method",
        "dataset",
        "dataset_source",
        "model",
        "weights_source",
        "metric",
        "protocol",
        "batch_size",
        "num_prompts",
        "repeats",
        "device_name",
        "dtype",
        "loadbit",
        "seconds_per_batch_mean",
        "seconds_per_batch_std",
        "seconds_per_batch_p50",
        "seconds_per_prompt_mean",
        "useful_tokens_per_s",
        "padding_ratio",
        "speedup_over_full_batching",
        "peak_memory_mb",
        "max_utilization_pct",
        "mean_utilization_pct",
        "verified_max_abs_diff",
        "workload_fingerprint",
    ]
)
Measure = Callable[..., list[Record]]


def test_a_report_has_the_table_the_csv_and_the_plots(measure: Measure, tmp_path: Path) -> None:
    measure(ALL)
    measure(ALL, "metric=ttft", "protocol=paper")
    written = report_on(tmp_path / "results").files
    out = tmp_path / "results" / "report"
    assert written[0] == out / "summary.md"
    names = {
        "report.html",
        "summary.md",
        "summary.csv",
        *(f"others.{e}" for e in ("csv", "md", "tex")),
        *(f"{p}.{e}" for p in ("time_per_batch", "prompt_lengths") for e in ("png", "svg")),
    }
    assert {path.name for path in out.iterdir()} == names
    table = pandas.read_csv(out / "summary.csv")
    assert list(table.columns) == list(COLUMNS)
    assert set(table.columns) >= REQUIRED
    assert len(table) == 6
    assert table["speedup_over_full_batching"].notna().all()
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert "Avg TTFT time /batch (s)" in text
    assert "an offline oracle, which needs the whole dataset (12 prompts)" in text
    for name in ("time_per_batch", "prompt_lengths"):
        with Image.open(out / f"{name}.png") as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def test_prompts_of_ones_own_are_not_put_beside_claims_that_nobody_tested(measure: Measure, tmp_path: Path) -> None:
    own = measure(ALL)
    written = report_on(tmp_path / "results")
    ((section,),) = written.sections.values()
    assert (section.name, len(section.table)) == ("others", 3)
    page, summary = (written.folder / name for name in ("report.html", "summary.md"))
    for file in (page, summary):
        assert "not run" not in file.read_text(encoding="utf-8").lower()
    assert "3 records, each measured by itself and for no experiment." in page.read_text(encoding="utf-8")
    assert ending(written, None).startswith("What prepacking is worth here")
    for record in own:
        record.row.experiment = "today"
        write(record, tmp_path / "results")
    sections = report_on(tmp_path / "results").sections
    assert {"today", "readme_table"} <= {section.name for (made,) in [sections.values()] for section in made}
    assert "None of the paper's" in ending(report_on(tmp_path / "results"), None)


def test_methods_measured_in_runs_of_their_own_are_put_side_by_side(measure: Measure, tmp_path: Path) -> None:
    for method in ("prepacking", "full-batching"):
        measure(f"method={method}")
    measure("method=prepacking", "seed=5")
    measure("method=prepacking", "packing=optimal")
    report_on(tmp_path / "results")
    table = pandas.read_csv(tmp_path / "results" / "report" / "summary.csv")
    same = table.groupby("workload_fingerprint")["speedup_over_full_batching"].count()
    assert sorted(same) == [0, 3]
    assert "| prepacking (optimal)" in (tmp_path / "results" / "report" / "summary.md").read_text(encoding="utf-8")


def test_an_unreadable_record_is_named_and_the_others_are_reported(
    measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(ALL)
    broken = tmp_path / "results" / "broken"
    broken.mkdir()
    for content in ('{"schema_version": 1, "row": {', '{"schema_version": 99}', "[]", '{"schema_version": 1}'):
        (broken / "record.json").write_text(content, encoding="utf-8")
        report_on(tmp_path / "results")
        assert f"{broken}: record left out" in capsys.readouterr().err
        assert len(pandas.read_csv(tmp_path / "results" / "report" / "summary.csv")) == 3


def test_a_failed_method_is_marked_in_table_and_plot(measure: Measure, tmp_path: Path) -> None:
    for record in measure(ALL):
        if record.row.method == "full-batching":
            record.row.status, record.row.status_reason = "oom", "no room"
            record.row.seconds_per_batch_mean = None
            write(record, tmp_path / "results")
    report_on(tmp_path / "results")
    text = (tmp_path / "results" / "report" / "summary.md").read_text(encoding="utf-8")
    assert "full-batching: oom, no room" in text
    assert "oom" in (tmp_path / "results" / "report" / "summary.csv").read_text(encoding="utf-8")


def test_a_report_of_failures_alone_is_still_a_report(measure: Measure, tmp_path: Path) -> None:
    for record in measure(ALL):
        record.row.status, record.row.status_reason = "error", "lost"
        record.row.seconds_per_batch_mean = record.row.seconds_per_batch_ci_high = None
        write(record, tmp_path / "results")
    assert "error, lost" in report_on(tmp_path / "results").files[0].read_text(encoding="utf-8")


def test_a_record_that_knows_neither_prompts_nor_versions_does_not_end_the_report(
    measure: Measure, tmp_path: Path
) -> None:
    """As of a model whose licence nobody has accepted."""
    (record,) = measure()
    for name, lengths in (("gated", []), (record.row.run_id, record.prompt_lengths)):
        row = dataclasses.replace(record.row, run_id=name, comparison_id=name, status="gated" if not lengths else "ok")
        write(dataclasses.replace(record, row=row, manifest={}, prompt_lengths=lengths), tmp_path / "results")
    text = report_on(tmp_path / "results").files[0].read_text(encoding="utf-8")
    assert "torch unknown, transformers unknown; commit unknown" in text
    assert "prompt_lengths.png" in text
    shutil.rmtree(tmp_path / "results" / record.row.run_id)
    assert "prompt_lengths.png" not in report_on(tmp_path / "results").files[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_records_is_one_clear_line(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"results_dir: (no readable record|there is no folder)"):
        report_on(tmp_path / "none")


def test_the_command_prints_the_table_and_where_it_is(
    measure: Measure, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    measure(ALL)
    code, out, _ = call(report.main, f"results_dir={tmp_path / 'results'}", f"out_dir={tmp_path / 'out'}")
    assert code == 0
    assert "| prepacking " in out
    assert str(tmp_path / "out" / "summary.csv") in out
    assert (tmp_path / "out" / "time_per_batch.svg").is_file()
