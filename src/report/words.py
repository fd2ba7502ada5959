"""Names of rows in tables and plots, and the notes below a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..config import Config
from ..prefilling.methods import method_of
from ..records.row import INTERVALS, Row
from ..records.store import Record
from ..workload import profiles
from ..workload.files import named
from .cells import WIDEST

MODELS = {
    "llama2-1.3b": "Llama2-1.3B",
    "llama2-7b": "Llama2-7B",
    "llama2-13b": "Llama2-13B",
    "mistral-7b": "Mistral-7B",
}
MANY = 12  # values, of which a sentence names the first few
FEW = (
    "‡ an interval that rests on fewer than 5 batches (offline methods and ratios over length-ordered: repeats), or on "
    f"one repeat, which leaves drift out; those beyond a factor of {WIDEST:.0f} are not shown"
)
TELLING = ("dataset", "model", "metric", "batch_size")  # columns that tell rows of one method in a table apart
UNITS = {"prefill": "Prefill", "ttft": "TTFT"}


def title(row: Row, machine: str | None = None) -> str:
    """What a table of this row's comparison is about.

    Args:
        machine: what it ran on, where the device alone does not tell it.
    """
    return _subject(row, _source(row), f", {machine or row.device_name}")


def title_anywhere(row: Row) -> str:
    """The same, wherever it was measured."""
    return _subject(row, row.dataset_source, "")


def _subject(row: Row, source: str, where: str) -> str:
    bits = "" if row.loadbit == "none" else f", {row.loadbit}-bit weights"
    return (
        f"{UNITS[row.metric]}, {row.protocol} protocol: {row.dataset} ({source}), {row.model} "
        f"({row.weights_source} weights, {row.dtype}{bits}), batch size {row.batch_size}, "
        f"{row.num_prompts:,} prompts{told_apart(row)}{where}" + (f", with faults: {row.faults}" if row.faults else "")
    )


def told_apart(row: Row) -> str:
    """Settings that set a comparison apart from others of the same name, where they are not the usual ones."""
    said = f", cut at {row.dataset_max_tokens:,} tokens" if row.dataset_max_tokens else ""
    if row.arrivals:
        said += f", {row.arrivals}, {row.rate:g} a second"
    if row.forward and row.protocol == "modern" and row.max_tokens_per_forward != Config.max_tokens_per_forward:
        budget = "no limit of" if row.max_tokens_per_forward is None else f"at most {row.max_tokens_per_forward:,}"
        said += f", {budget} tokens a forward"
    return said + (f", within {row.memory_limit_mb:,} MB" if row.memory_limit_mb else "")


def _source(row: Row) -> str:
    if row.dataset_source == "profile":
        known = {f"profile {name} ": "made-up" if name in profiles.MADE_UP else "real" for name in profiles.shipped()}
        kind = next((kind for start, kind in known.items() if row.dataset_detail.startswith(start)), "given")
        return f"{kind} token lengths, random ids"
    if row.dataset_source == "shipped":
        return "shipped real texts"
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


def bullets(lines: Sequence[str]) -> list[str]:
    """Lines below a table as a list, which Markdown else runs together in one paragraph."""
    return ["", *(f"- {line}" for line in lines)] if lines else []


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
    if any(found and found.few for row in rows for found in map(row.interval, INTERVALS)):
        lines.append(FEW)
    if any(row.status == "ok" and method_of(row.method).external for row in rows):
        lines.append("vllm is not verified: its weights are its own, random and of the same shape")
    if any(row.speedup_across_runs for row in rows):
        lines.append("§ over full-batching of another run, with the interval between runs (docs/measuring.md)")
    return lines


def validity(rows: Sequence[Row]) -> list[str]:
    """Which rows are VALID, and which are not and why, with notes on both; nothing of records without this verdict.

    A row is named by its method, and by whatever else it needs to be told from the others.
    """
    judged = [row for row in rows if row.valid is not None]
    differ = [name for name in TELLING if len({getattr(row, name) for row in judged}) > 1]

    def named_apart(row: Row) -> str:
        return ", ".join([label(row), *(_setting(row, name) for name in differ)])

    invalid = [row for row in judged if not row.valid]
    lines = list(dict.fromkeys(f"INVALID: {named_apart(row)}: {row.invalid_reasons}" for row in invalid))
    if len(invalid) < len(judged):
        fine = list(dict.fromkeys(label(row) for row in judged if row.valid))
        lines.append("VALID: all others" if invalid else f"VALID: {', '.join(fine)}")
    noted: dict[str, list[str]] = {}
    for row in judged:
        for note in filter(None, (row.notes or "").split("; ")):
            noted.setdefault(note, []).append(label(row))
    return [*lines, *(f"note: {', '.join(dict.fromkeys(names))}: {note}" for note, names in noted.items())]


def _setting(row: Row, name: str) -> str:
    value = getattr(row, name)
    if name == "metric":
        return UNITS[row.metric]
    return f"batches of {value}" if name == "batch_size" else str(value)


def provenance(records: Sequence[Record]) -> str:
    """One paragraph that says what was measured, with what, and how it was checked, of one comparison or several."""
    rows = [record.row for record in records]
    packages = [record.manifest.get("packages") or {} for record in records]
    commits = [
        (record.manifest.get("git_commit") or "unknown")[:12]
        + (" with uncommitted changes" if record.manifest.get("git_dirty") else "")
        for record in records
    ]
    torch, transformers = (_each(of.get(name, "unknown") for of in packages) for name in ("torch", "transformers"))
    text = (
        f"{_span(row.repeats for row in rows)} repeats over {_span(row.num_batches for row in rows)} batches, seed "
        f"{_each(row.seed for row in rows)}; prompts: {_each(row.dataset_detail for row in rows)}; model: "
        f"{_each(row.model_detail for row in rows)}; torch {torch}, transformers {transformers}; commit "
        f"{_each(commits)}; workload {_each(row.workload_fingerprint for row in rows)}."
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
    """Each value once; of very many the first few, and how many there are."""
    found = list(dict.fromkeys(map(str, values)))
    return ", ".join(found) if len(found) <= MANY else f"{', '.join(found[:3])} and {len(found) - 3} others"


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"
