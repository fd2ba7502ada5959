"""Measures one configuration in this process, and prints its table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from .. import terminal
from ..cli import UserError
from ..config import Config
from ..hub import GatedError
from ..measure import gpus
from ..measure.machine import manifest, pick_device
from ..measure.outcome import Run
from ..measure.plan import Plan, prepare, results_dir_of
from ..measure.rows import failed_before_planning, to_records
from ..measure.runner import measure
from ..records import store
from ..records.store import Record
from ..report.answer import of_run
from ..report.comparison import comparison_table
from ..report.waiting import load_table
from ..report.words import title
from .duration import in_words
from .forecast import Forecast


def measure_and_print(config: Config, plan: Plan | None = None, pending: Path | None = None) -> int:
    """Measure one configuration and print its table and its answer. Returns 0, or 1 where a method failed.

    Below a line of progress nothing is printed: it says what came out.

    Args:
        plan: the configuration's plan, where another process has made it already.
        pending: where to leave the rows that stand if this process never comes back.
    """
    gpus.open_here(pick_device(config.device))
    try:
        plan = plan or prepare(config)
    except GatedError as error:
        store.write_each(failed_before_planning(config, "gated", str(error)), results_dir_of(config))
        raise
    if pending:
        write_pending(pending, plan.results_dir, to_records(Run(plan), manifest(plan.device)))
    if (config.rerun or plan.recorded() is None) and not terminal.quiet():
        time = in_words(Forecast(plan.results_dir).seconds(plan))
        terminal.say(f"measuring {', '.join(config.compared_methods)}: about {time}")
    rows = [record.row for record in measure(plan)]
    if not terminal.quiet():
        table = load_table(rows) if config.under_load else comparison_table(rows)
        answer = [] if config.under_load else of_run(rows)
        terminal.say("", title(rows[0]), "", table, "", *answer, f"records: {plan.results_dir}")
    return int(any(row.status not in {"ok", "skipped"} for row in rows))


def write_pending(path: Path, results_dir: Path, rows: list[Record]) -> None:
    """Leave rows for the parent to complete.

    Raises:
        UserError: the folder for temporary files is full.
    """
    content = {"results_dir": str(results_dir.resolve()), "records": [asdict(record) for record in rows]}
    try:
        path.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        path.unlink(missing_ok=True)
        problem = f"cannot write to '{path.parent.parent}' ({error.strerror or error})"
        raise UserError("TMPDIR", problem, "make room there, or name another folder") from None
