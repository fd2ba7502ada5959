"""The claims of a report: each statement of the paper, ours beside its figure, and whether it holds here."""

from __future__ import annotations

from collections.abc import Iterable

from src.report.section import Claim, Section
from src.report.tables import markdown


def claims_of(sections: Iterable[Section]) -> list[Claim]:
    """All claims, in the order of their sections."""
    return [claim for section in sections for claim in section.claims]


def claims_lines(sections: Iterable[Section]) -> list[str]:
    """A line for each claim, as summary.md begins."""
    lines = []
    for claim in claims_of(sections):
        figures = f" (paper: {claim.paper}; here: {claim.ours})" if claim.ours else ""
        why = f": {claim.why}" if claim.why else ""
        lines.append(f"- **{claim.verdict}** {claim.text}{figures}{why}")
    return lines


def claims_table(sections: Iterable[Section]) -> str:
    """The same as a Markdown table."""
    body = [[claim.text, claim.paper, claim.ours, claim.verdict + (f": {claim.why}" if claim.why else "")]
            for claim in claims_of(sections)]  # fmt: skip
    return markdown(["Claim", "Paper", "Here", "Holds"], body)
