"""What a command that wrote a report says last: the claims, what prepacking is worth here, and where the page is."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

from ..records.store import Record
from .build import Report
from .page import PAGE
from .section import NOT_RUN, VERDICTS, Claim, Section
from .worth import left_out, worth

KINDS = ("csv", "md", "tex", "png", "svg")  # in the order in which they are named


def ending(report: Report, width: int | None) -> str:
    """The answer, in the words of the machine that was measured last; of others only where their page is.

    Args:
        width: of the terminal: longer lines go on below, indented. None: every claim stays on one line, as for `grep`.
    """
    machine = report.newest
    lines = claims_lines(machine, report.sections[machine], width)
    lines += [""] * bool(lines)
    lines += [*worth_lines(report.records_of(machine), width), ""]
    lines.append(f"page: {report.page(machine)}")
    lines += [f"page of {other}: {report.page(other)}" for other in report.sections if other != machine]
    return "\n".join([*lines, files_line(report)])


def terminal_width() -> int | None:
    """The width of the terminal that standard output goes to; None where it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def claims_lines(machine: str, sections: Sequence[Section], width: int | None) -> list[str]:
    """A line for each claim of the paper: the verdict, the claim, our figure and the paper's; none without claims."""
    claims = [claim for section in sections for claim in section.claims]
    if not claims:
        return []
    if all(claim.verdict == NOT_RUN for claim in claims):
        return [f"None of the paper's {len(claims)} claims was put to the test on {machine}."]
    body = [(claim.verdict, _sentence(claim)) for claim in claims]
    return [f"The paper's claims on {machine} (by which rules, and why: on the page)", *_hung(body, VERDICTS, width)]


def _sentence(claim: Claim) -> str:
    """The claim with both figures; what follows a semicolon in a figure is for the page."""
    ours, theirs = (figure.split(";")[0] for figure in (claim.ours, claim.paper))
    text = claim.text.rstrip(".") + (f": {ours}" if ours else "")
    return text + (f" (paper: {theirs})" if theirs else "")


def worth_lines(records: Sequence[Record], width: int | None) -> list[str]:
    """Three lines that say what prepacking is worth here; one where there is nothing to say it from."""
    said: Mapping[str, str] = worth(records)
    if not said:
        return ["What prepacking is worth here is not known: it was not measured in turns with another method."]
    doubts = left_out(records)
    heading = "What prepacking is worth here" + (f" ({doubts})" if doubts else "")
    return [heading, *_hung(list(said.items()), list(said), width)]


def files_line(report: Report) -> str:
    """How many files there are beside the page, and of which kinds."""
    kinds = [file.suffix[1:] for file in report.every_file if file.name != PAGE]
    named = [kind for kind in KINDS if kind in kinds] + sorted({*kinds} - {*KINDS})
    return f"files: {len(kinds)} tables and figures ({', '.join(map(str.upper, named))}) in {report.folder}"


def _hung(body: Sequence[tuple[str, str]], firsts: Sequence[str], width: int | None) -> list[str]:
    """Lines with a word in front of each, all beginning in the same column; what is too long goes on in that column."""
    column = 2 + max(map(len, firsts)) + 2
    lines = []
    for first, text in body:
        start = f"  {first}".ljust(column)
        if width is None or width < 2 * column:
            lines.append(start + text)
            continue
        lines += textwrap.wrap(
            text,
            width,
            initial_indent=start,
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines
