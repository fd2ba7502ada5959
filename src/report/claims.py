"""The claims of a report as a table: each statement, the paper's figure, ours, and whether it holds here."""

from __future__ import annotations

from collections.abc import Iterable

from src.report.section import Section
from src.report.tables import markdown


def claims_table(sections: Iterable[Section]) -> str:
    """The claims in the order of their sections, in Markdown."""
    claims = [claim for section in sections for claim in section.claims]
    body = [[claim.text, claim.paper, claim.ours, claim.verdict + (f": {claim.why}" if claim.why else "")]
            for claim in claims]  # fmt: skip
    return markdown(["Claim", "Paper", "Here", "Holds"], body)
