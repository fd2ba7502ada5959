"""Claims: sentences of the paper about the world, and by which rule they hold here.

A verdict comes from 95 % intervals alone, so that a figure of two batches decides nothing, and a claim that holds in
one run does not fail in the next for having drawn other prompts: between the two lies "cannot tell". The paper's
figure stands beside ours, and is called equal or different only if it was measured as theirs was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .. import paper
from ..interval import Interval
from ..records.row import Row
from .cells import markdown, tells
from .section import CANNOT_TELL, FAILS, HOLDS, NOT_RUN, Claim, Section
from .words import MODELS

CLOSE = 0.1  # figures are equal within this share of the paper's, or if the interval contains it
NOTHING = "nothing was recorded for it"
INVALID = "a run that it rests on is INVALID"


def against(found: Sequence[Interval | None], bound: float) -> tuple[str, str]:
    """The verdict on "all of these lie above the bound", and why it is that.

    It holds if every interval lies above. It does not if any lies below. Else, and where an interval rests on too few
    batches or repeats, or on an INVALID run, it cannot be told.
    """
    known = [each for each in found if each is not None]
    sure = [each for each in known if tells(each.low, each.high) and not (each.few or each.invalid)]
    if below := sum(each.high < bound for each in sure):
        return FAILS, f"{below} of {len(found)} below {bound:g}" if len(found) > 1 else ""
    if len(known) < len(found):
        return CANNOT_TELL, "a run failed"
    if any(each.invalid for each in known):
        return CANNOT_TELL, INVALID
    if len(sure) < len(known):
        return CANNOT_TELL, "too few batches or repeats for an interval"
    if unsure := sum(each.low <= bound for each in sure):
        which = f"{unsure} of {len(found)} intervals reach" if len(found) > 1 else "its interval reaches"
        return CANNOT_TELL, f"{which} {bound:g}: too few batches"
    return HOLDS, ""


def decided(
    text: str,
    rule: str,
    verdict: tuple[str, str],
    ours: str,
    published: str,
    unlike: tuple[str, ...],
    equal: bool | None = None,
) -> Claim:
    """A claim that was put to the test.

    Args:
        verdict: and why, as ``against`` returns them.
        unlike: in what the measurement is not the paper's, as ``unlike`` tells.
        equal: whether the figures are equal; None where there is no single figure.
    """
    beside = "" if unlike or equal is None else "equal" if equal else "different"
    return Claim(text, rule, published, ours, verdict[0], verdict[1], beside, unlike)


def not_run(text: str, rule: str, published: str = "", why: str = NOTHING) -> Claim:
    """A claim that nothing was measured for."""
    return Claim(text, rule, published, "", NOT_RUN, why)


def close(ours: Interval | float | None, published: float | None) -> bool | None:
    """Whether a figure equals the paper's: within ``CLOSE`` of it, or if its interval contains it; None: unknown."""
    if ours is None or published is None:
        return None
    value, inside = ours, False
    if isinstance(ours, Interval):
        value, inside = ours.value, tells(ours.low, ours.high) and ours.low <= published <= ours.high
    assert isinstance(value, (int, float))
    return inside or abs(value / published - 1) <= CLOSE


def unlike(
    row: Row,
    batch_size: int | None = None,
    num_prompts: int | None = 1000,
    loadbit: str = "4",
    models: Sequence[str] = ("llama2-1.3b",),
) -> tuple[str, ...]:
    """In what a measurement is not the paper's, in full; empty where the figures may be compared.

    Args:
        batch_size, num_prompts, loadbit, models: of the paper's figure; None: those of ours are theirs.
    """
    here = {
        "device": (row.device_name, paper.GPU, "A6000" in row.device_name),
        "model": (row.model, " or ".join(MODELS[name] for name in models), row.model in models),
        "weights": (row.weights_source, "trained", row.weights_source != "random"),
        "bits": (row.loadbit, loadbit, row.loadbit == loadbit),
        "types and numerics": (row.dtype, "theirs, numerics=authors", row.numerics == "authors"),
        "prompts": (row.dataset_source, "texts of the hub", row.dataset_source == "hub"),
        "number of prompts": (row.num_prompts, f"{num_prompts or 0:,}", num_prompts in {None, row.num_prompts}),
        "batch": (row.batch_size, batch_size, batch_size in {None, row.batch_size}),
        "protocol": (row.protocol, "paper", row.protocol == "paper"),
    }
    return tuple(f"{name} {ours} (paper: {theirs})" for name, (ours, theirs, alike) in here.items() if not alike)


def most_alike(rows: Iterable[Row], **paper_settings: object) -> Row | None:
    """Of several rows the one measured most like the paper's figure; ties go to the largest batch, then to the name."""

    def place(row: Row) -> tuple[int, int, str]:
        return len(unlike(row, **paper_settings)), -row.batch_size, row.run_id  # type: ignore[arg-type]

    return min(rows, key=place, default=None)


def claims_table(sections: Iterable[Section], again: Iterable[Section] = ()) -> str:
    """The claims in the order of their sections, in Markdown, with the rule of each below the table.

    Args:
        again: the same of a second run, with another seed, to stand beside them.
    """
    claims = [claim for section in sections for claim in section.claims]
    second = {claim.text: claim for section in again for claim in section.claims}
    body = []
    for number, claim in enumerate(claims, start=1):
        other = [second[claim.text].verdict, second[claim.text].ours] if second else []
        figures = claim.beside or "not comparable"
        body.append([f"{number}. {claim.text}", claim.verdict, claim.ours, *other, claim.paper, figures])
    rules = [f"{number}. {claim.judged()}" for number, claim in enumerate(claims, start=1)]
    alike = sorted({line for claim in claims for line in claim.unlike})
    said = f"Figures are not comparable where a run was not the paper's: {'; '.join(alike)}." if alike else ""
    seeds = ["Verdict, other seed", "Here, other seed"] if second else []
    table = markdown(["Claim", "Verdict", "Here", *seeds, "Paper", "Figures"], body)
    return "\n\n".join(part for part in (table, "\n".join(rules), said) if part)
