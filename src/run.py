"""python -m src.run: measure one configuration, or with --multirun a sweep of them."""

from __future__ import annotations

import sys
from typing import Any

import hydra

from src.cli import BAD_INPUT, guarded, report
from src.config import CONFIG_DIR, Config, register_schemas, typed


def measure(config: Config) -> int:
    """Measure one configuration and print its table. Returns 0, or 1 where a method failed or was incorrect."""
    from src.measure.estimate import in_words  # after --help and bad settings: torch takes seconds to import
    from src.measure.plan import prepare
    from src.measure.runner import run
    from src.report.tables import comparison_table, title

    plan = prepare(config)
    if config.rerun or plan.recorded() is None:
        print(f"measuring {', '.join(config.compared_methods)}: about {in_words(plan.seconds())}", flush=True)
    rows = [record.row for record in run(plan)]
    print(f"\n{title(rows[0])}\n\n{comparison_table(rows)}\n\nrecords: {plan.results_dir}", flush=True)
    return int(any(row.status != "ok" for row in rows))


def main() -> int:
    """Compose the settings with Hydra and measure; the exit code is the worst of a sweep's (0 ok, 1 failed, 2 bad)."""
    codes: list[int] = []
    register_schemas()

    @hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
    def task(composed: Any) -> None:
        # One bad value in a sweep must not keep the other runs from being measured.
        try:
            codes.append(measure(typed(composed)))
        except BAD_INPUT as error:
            codes.append(report(error))

    task()
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(guarded(main))
