"""python -m src.report results_dir=…: records below a folder into summary.csv, summary.md and plots."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..cli import UserError, guarded, parse_arguments
from ..opening import open_page

FORMATS = ("page", "json")


@dataclass
class ReportSettings:
    """Turn all records below a folder into summary.csv, summary.md and plots."""

    results_dir: str = field(default="results", metadata={"help": "folder that holds records, at any depth"})
    out_dir: str | None = field(default=None, metadata={"help": "where to write; default <results_dir>/report"})
    format: str = field(
        default="page",
        metadata={"help": "page: page, tables and plots; json: these, and benchmark.json and vllm-bench.json"},
    )
    open: bool = field(default=False, metadata={"help": "open the page in a browser"})


def main() -> None:
    """Read the arguments, write the report, print where it is."""
    settings = parse_arguments(ReportSettings, "report", sys.argv[1:])
    if settings.format not in FORMATS:
        raise UserError("format", f"unknown '{settings.format}'", f"choose one of {', '.join(FORMATS)}")
    from .build import report_on  # after --help: pandas and matplotlib take a second

    out_dir = Path(settings.out_dir) if settings.out_dir else None
    report = report_on(Path(settings.results_dir), out_dir, exports=settings.format == "json")
    print(report.files[0].read_text(encoding="utf-8"))
    print("\n".join(map(str, report.files)))
    if settings.open:
        open_page(report.page(report.newest))


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
