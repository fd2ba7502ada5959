"""Claims: whether a statement of the paper holds here and, if not, how the measurement differs from the paper's."""

from __future__ import annotations

from collections.abc import Iterable

from .. import paper
from ..interval import Interval
from ..records.row import Row
from .cells import estimate, markdown, tells
from .section import Claim, Section
from .words import MODELS

CLOSE = 0.25  # a figure agrees with the paper's within this share of it, or where its interval contains it


def judged(
    text: str, row: Row | None, ours: Interval | float | None, published: float | None, batch_size: int | None = None
) -> Claim:
    """A claim with a figure, ours beside the paper's: it agrees within ``CLOSE``, or if its interval contains it.

    Args:
        row: the row that the figure is of.
        ours: a plain number for a figure that has no interval by its nature, such as a number of prompts.
        batch_size: of the paper's figure.
    """
    theirs = "" if published is None else f"{published:.2f}x"
    if row is None or ours is None or published is None:
        return not_run(text, theirs)
    value, inside = ours, False
    if isinstance(ours, Interval):
        value = ours.value
        inside = tells(ours.low, ours.high) and ours.low <= published <= ours.high
    assert isinstance(value, (int, float))
    holds = inside or abs(value / published - 1) <= CLOSE
    return decided(text, theirs, estimate("x")(ours), holds, differences(row, batch_size))


def decided(text: str, published: str, ours: str, holds: bool, why: str) -> Claim:
    """A claim that was put to the test; ``why`` is said where it does not hold."""
    return Claim(text, published, ours, "agrees" if holds else "differs", "" if holds else why)


def not_run(text: str, published: str = "", why: str = "nothing was recorded for it") -> Claim:
    """A claim that nothing was measured for."""
    return Claim(text, published, "", "not run", why)


def differences(row: Row, batch_size: int | None = None) -> str:
    """What sets a row's measurement apart from the paper's, in words."""
    found = []
    if "A6000" not in row.device_name:
        found.append(f"{row.device_name} instead of {paper.GPU}")
    if row.model not in MODELS:
        found.append(f"{row.model} instead of Llama2-1.3B")
    if batch_size is not None and row.batch_size != batch_size:
        found.append(f"batches of {row.batch_size} instead of {batch_size}")
    if row.protocol != "paper":
        found.append("identical work for all methods, logits at last positions only")
    if row.num_prompts < 1000:
        found.append(f"{row.num_prompts:,} prompts instead of 1,000")
    return "; ".join(found) or "faults of the original measurement (results/paper/README.md)"


def claims_table(sections: Iterable[Section]) -> str:
    """The claims in the order of their sections, in Markdown."""
    claims = [claim for section in sections for claim in section.claims]
    body = [[claim.text, claim.paper, claim.ours, claim.verdict + (f": {claim.why}" if claim.why else "")]
            for claim in claims]  # fmt: skip
    return markdown(["Claim", "Paper", "Here", "Holds"], body)
