"""Rows into tables: the authors' columns, in plain text, with speedups and what a reader must know to judge them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from src.config import Config
from src.measure.records import Record
from src.measure.row import Row
from src.measure.summary import BASELINE
from src.prefill.methods import PHASES, method_of
from src.workload.files import named
from src.workload.prompts import MADE_UP, shipped_profiles

WIDEST = 20.0  # an interval whose ends differ by more is not shown
OPERATIONS, ENERGY = "Useful TFLOP/s (of rate)", "J / 1,000 useful tokens"
MODELS = {
    "llama2-1.3b": "Llama2-1.3B",
    "llama2-7b": "Llama2-7B",
    "llama2-13b": "Llama2-13B",
    "mistral-7b": "Mistral-7B",
}
UNITS = {"prefill": "Prefill", "ttft": "TTFT"}


def title(row: Row, machine: str | None = None) -> str:
    """What a table of this row's comparison is about.

    Args:
        machine: what it ran on, where the device alone does not tell it.
    """
    bits = "" if row.loadbit == "none" else f", {row.loadbit}-bit weights"
    return (
        f"{UNITS[row.metric]}, {row.protocol} protocol: {row.dataset} ({_source(row)}), {row.model} "
        f"({row.weights_source} weights, {row.dtype}{bits}), batch size {row.batch_size}, "
        f"{row.num_prompts:,} prompts{told_apart(row)}, {machine or row.device_name}"
        + (f", with faults: {row.quirks}" if row.quirks else "")
    )


def told_apart(row: Row) -> str:
    """Settings that set a comparison apart from others of the same name, where they are not the usual ones."""
    said = f", cut at {row.dataset_max_tokens:,} tokens" if row.dataset_max_tokens else ""
    if row.forward and row.protocol == "modern" and row.max_tokens_per_forward != Config.max_tokens_per_forward:
        budget = "no limit of" if row.max_tokens_per_forward is None else f"at most {row.max_tokens_per_forward:,}"
        said += f", {budget} tokens a forward"
    return said + (f", within {row.memory_limit_mb:,} MB" if row.memory_limit_mb else "")


def _source(row: Row) -> str:
    if row.dataset_source == "profile":
        known = {f"profile {name} ": "made-up" if name in MADE_UP else "real" for name in shipped_profiles()}
        kind = next((kind for start, kind in known.items() if row.dataset_detail.startswith(start)), "given")
        return f"{kind} token lengths, random ids"
    return f"file {named(row.dataset_detail)}" if row.dataset_source == "file" else "hub"


def model_name(row: Row) -> str:
    """As the paper writes it, with the bits of its weights."""
    return MODELS.get(row.model, row.model) + ("" if row.loadbit == "none" else f" {row.loadbit}-bit")


def label(row: Row) -> str:
    """What a row is called in tables and plots: its method, and how it packs where that is not the default."""
    return row.method if row.packing in {None, "ffd"} else f"{row.method} ({row.packing})"


def starred(row: Row) -> str:
    """Its label, with a star where it needs the whole dataset in advance."""
    return label(row) + (" *" if method_of(row.method).needs_dataset else "")


def comparison_table(rows: Sequence[Row]) -> str:
    """A Markdown table of one comparison, readable as plain text: the authors' columns and the speedup.

    Args:
        rows: methods measured on one workload with one metric and protocol.
    """
    unit = UNITS[rows[0].metric]
    header = [
        "Method", f"Avg {unit} time /batch (s)", "Max util (%)", "Peak memory (MB)", "Mean util (%)",
        "Std time (s)", "Std max util (%)", "Std mean util (%)", "ms / prompt", "Speedup over full-batching",
    ]  # fmt: skip
    body = []
    for row in rows:
        if row.status != "ok":
            body.append([label(row), row.status, *[""] * (len(header) - 2)])
            continue
        few = " ‡" if row.intervals_rest_on_few else ""
        weak = "" if row.utilization_valid else " †"
        body.append(
            [
                starred(row),
                per_batch(row) + few,
                number(row.max_utilization_pct, 1) + weak,
                number(row.peak_memory_mb, 0),
                number(row.mean_utilization_pct, 1) + weak,
                number(row.seconds_per_batch_std, 3),
                number(row.max_utilization_std_pct, 1),
                number(row.mean_utilization_std_pct, 1),
                per_prompt(row),
                speedup(row),
            ]
        )
    return "\n".join([markdown(header, body), *bullets([*notes(rows), *_other_runs(rows)])])


def bullets(lines: Sequence[str]) -> list[str]:
    """Lines below a table as a list, which Markdown else runs together in one paragraph."""
    return ["", *(f"- {line}" for line in lines)] if lines else []


def _other_runs(rows: Sequence[Row]) -> list[str]:
    """Which methods of a table did not take turns with the others."""
    ran = Counter(row.comparison_id for row in rows)
    main = ran.most_common(1)[0][0]
    apart = [f"{label(row)} ({row.created_at[:16].replace('T', ' ')})" for row in rows if row.comparison_id != main]
    return [f"measured in runs of their own, not in turns with the others: {', '.join(apart)}"] if apart else []


def per_batch(row: Row) -> str:
    """Mean seconds a batch; nothing to compare where the batches are bins of all prompts, not what arrived together."""
    if row.status == "ok" and method_of(row.method).packs_dataset:
        return "n/a"
    return row.status if row.seconds_per_batch_mean is None else f"{row.seconds_per_batch_mean:.3f}"


def per_prompt(row: Row) -> str:
    """Mean milliseconds a prompt, which compares methods whatever their batches are."""
    return "" if row.seconds_per_prompt_mean is None else significant(1000 * row.seconds_per_prompt_mean)


def notes(rows: Sequence[Row]) -> list[str]:
    """What must stand below a table of these rows, a line each; none begins with a sign that Markdown would take."""
    lines = [f"{label(row)}: {row.status}, {row.status_reason}" for row in rows if row.status != "ok"]
    if offline := [row.num_prompts for row in rows if method_of(row.method).needs_dataset]:
        lines.append(
            f"marked *: an offline oracle, which needs the whole dataset ({max(offline):,} prompts) before its first "
            "batch; its interval covers repeats only"
        )
    if any(row.status == "ok" and method_of(row.method).packs_dataset for row in rows):
        lines.append("dataset-prepacking has batches of its own, bins of all prompts: compare it by the prompt")
    if any(row.status == "ok" and not row.utilization_valid for row in rows):
        lines.append("† too few averaging windows for a utilization, or no counter")
    if any(row.status == "ok" and row.intervals_rest_on_few for row in rows):
        lines.append(
            "‡ its intervals rest on fewer than 5 batches (offline methods: repeats); those beyond a factor of "
            f"{WIDEST:.0f} are not shown"
        )
    if any(row.status == "ok" and method_of(row.method).apart for row in rows):
        lines.append("vllm is not verified: its weights are its own, random and of the same shape")
    if any(row.speedup_across_runs for row in rows):
        lines.append("§ over full-batching of another run, with the interval between runs (docs/measuring.md)")
    return lines + validity(rows)


def validity(rows: Sequence[Row]) -> list[str]:
    """Which rows are VALID, and which are not and why, with notes on both; nothing of records without this verdict."""
    judged = [row for row in rows if row.valid is not None]
    lines = [f"INVALID: {label(row)}: {row.invalid_reasons}" for row in judged if not row.valid]
    if fine := list(dict.fromkeys(label(row) for row in judged if row.valid)):
        lines.append(f"VALID: {', '.join(fine)}")
    noted: dict[str, list[str]] = {}
    for row in judged:
        for note in filter(None, (row.notes or "").split("; ")):
            noted.setdefault(note, []).append(label(row))
    return [*lines, *(f"note: {', '.join(dict.fromkeys(names))}: {note}" for note, names in noted.items())]


def phase_table(rows: Sequence[Row]) -> str:
    """Mean seconds per batch of each phase that any of the rows has."""
    phases = [phase for phase in PHASES if any(getattr(row, f"{phase}_s_mean") is not None for row in rows)]
    body = []
    for row in rows:
        cells = [getattr(row, f"{phase}_s_mean") for phase in phases]
        ratio = "" if row.padding_ratio is None else f"{row.padding_ratio:.2f}"
        body.append([label(row), *("" if cell is None else f"{cell:.4f}" for cell in cells), ratio])
    return markdown(["Method", *phases, "computed / useful tokens"], body)


def ratio_table(groups: Sequence[Sequence[Record]]) -> str:
    """Every method of every comparison as ratios: over both baselines, of the ideal, of the limit."""
    rows = [record.row for group in groups for record in group]
    rows = [row for row in rows if row.protocol == "modern" and not row.quirks]
    costs = cost_header(rows)
    header = ["Model, type, prompts", "batch", "method", "over full-batching", "over length-ordered", "of ideal",
              "of limit", *costs, "s / batch", "ms / prompt"]  # fmt: skip
    body = []
    for row in rows:
        what = [f"{row.model}, {row.dtype}, {row.dataset}", str(row.batch_size)]
        name = starred(row)
        if row.status != "ok":
            body.append([*what, name, row.status, *[""] * (5 + len(costs))])
            continue
        body.append([*what, name, *ratio_cells(row), *cost_cells(row, costs), per_batch(row), per_prompt(row)])
    return markdown(header, body)


def cost_header(rows: Iterable[Row]) -> list[str]:
    """The columns of what useful tokens cost that any of the rows has something for."""
    rows = list(rows)
    operations = any(row.useful_tflop_per_s is not None for row in rows)
    energy = any(row.joules_per_1000_useful_tokens is not None for row in rows)
    return [OPERATIONS] * operations + [ENERGY] * energy


def cost_cells(row: Row, header: Sequence[str]) -> list[str]:
    """A row's cells of ``cost_header``: ``0.12 (46 %)``, the share being of the measured rate, and joules."""
    operations = significant(row.useful_tflop_per_s)
    if row.useful_share_of_rate is not None:
        operations += f" ({100 * row.useful_share_of_rate:.0f} %)"
    cells = {OPERATIONS: operations, ENERGY: significant(row.joules_per_1000_useful_tokens)}
    return [cells[name] for name in header]


def significant(value: float | None) -> str:
    """Three digits that mean something, never as a power of ten; nothing where there is none."""
    if value is None:
        return ""
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def ratio_cells(row: Row) -> list[str]:
    """A row's time as ratios: over full-batching, over length-ordered, of the ideal, of the limit."""
    ordered = (row.speedup_over_length_ordered, row.speedup_over_length_ordered_ci_low,
               row.speedup_over_length_ordered_ci_high)  # fmt: skip
    ideal = row.fraction_of_ideal, row.fraction_of_ideal_ci_low, row.fraction_of_ideal_ci_high
    limit = "" if row.fraction_of_limit is None else f"{row.fraction_of_limit:.2f}"
    return [speedup(row), with_interval(*ordered, unit="x"), with_interval(*ideal), limit]


def provenance(records: Sequence[Record]) -> str:
    """One paragraph that says what was measured, with what, and how it was checked, of one comparison or several."""
    rows = [record.row for record in records]
    packages = [record.manifest["packages"] for record in records]
    commits = [
        (record.manifest["git_commit"] or "unknown")[:12]
        + (" with uncommitted changes" if record.manifest["git_dirty"] else "")
        for record in records
    ]
    text = (
        f"{_span(row.repeats for row in rows)} repeats over {_span(row.num_batches for row in rows)} batches, seed "
        f"{_each(row.seed for row in rows)}; prompts: {_each(row.dataset_detail for row in rows)}; model: "
        f"{_each(row.model_detail for row in rows)}; torch {_each(package['torch'] for package in packages)}, "
        f"transformers {_each(package['transformers'] for package in packages)}; commit {_each(commits)}; workload "
        f"{_each(row.workload_fingerprint for row in rows)}."
    )
    checked = [row.verified_max_rel_diff for row in rows if row.verified_max_rel_diff is not None]
    if checked:
        prompts = _span(row.verified_prompts for row in rows if row.verified_prompts)
        text += (
            f" Checked before timing: {prompts} prompts of each method against the prompt run alone; the KV of a layer "
            f"differs by {max(checked):.1e} of its norm at most."
        )
    return text


def _each(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


def speedup(row: Row) -> str:
    """``6.21x [5.80, 6.60]``, or nothing where full-batching was not measured beside it."""
    if row.speedup_over_full_batching is None:
        return ""
    if row.method == BASELINE:
        return "1.00x"
    found = row.speedup_over_full_batching, row.speedup_ci_low, row.speedup_ci_high
    marks = [" ‡"] * bool(row.intervals_rest_on_few and row.speedup_ci_low) + [" §"] * bool(row.speedup_across_runs)
    return with_interval(*found, unit="x") + "".join(marks)


def with_interval(value: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    """``0.81 [0.63, 1.04]``, with more digits where the ends would look alike; nothing where there is no value."""
    if value is None:
        return ""
    if low is None or high is None or not tells(low, high):
        return f"{value:.2f}{unit} (no interval)"
    digits = next((digits for digits in range(2, 7) if f"{low:.{digits}f}" != f"{high:.{digits}f}"), None)
    if digits is None:
        return f"{value:.2f}{unit} (no interval)"
    return f"{value:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


def tells(low: float, high: float) -> bool:
    """Whether an interval is worth showing: of two batches it may span thousands, which says only that they are few."""
    return high <= WIDEST * low  # false too for NaN, where there is no interval


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; the first is text, the others numbers."""
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, body)])


def number(value: float | None, digits: int) -> str:
    """With so many digits, ``n/a`` where there is none."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
