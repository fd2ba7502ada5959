"""python -m src.compare A B …: records of several machines, or of two versions on one, against those of the first."""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cli import Parser, UserError, guarded
from ..places import command_line

DESCRIPTION = """\
Compare measurements of several machines, or of two versions on one. The first source is the reference. What matches
in workload and configuration is compared: ratio of times with its 95 % interval, verdict, speedup over full-batching;
what does not is listed with the reason. Without --out the tables are printed and nothing is written."""
EPILOG = """\
exit codes: 0; 1 where --fail-on-regression found one; 2 bad input, or nothing to check for a regression.
Options may also be written as out_dir=DIR noise_floor=1% fail_on_regression=5%."""
OPTIONS = {"out_dir": "--out", "noise_floor": "--noise-floor", "fail_on_regression": "--fail-on-regression"}


def share(typed: str, option: str) -> float:
    """``5%`` or ``0.05`` as 0.05.

    Raises:
        UserError: not a number, or not from 0 to below 1.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", typed)
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value < 1:
        raise UserError(option, f"'{typed}'", "give a percentage from 0% to below 100%, such as 5% or 0.05")
    return value


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The sources and options; shares as numbers.

    Raises:
        UserError: what is wrong with them.
    """
    parser = Parser(
        prog=command_line("compare"), description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="a folder of records, at any depth, or the summary.csv of a report, which has no samples: wider intervals",
    )
    parser.add_argument(
        "--fail-on-regression",
        metavar="PERCENT",
        help="exit with 1 where the time of a method is beyond the reference's by more with its whole interval (where "
        "there is none, by itself), or where it fails and the reference did not; 5%% or 0.05",
    )
    parser.add_argument(
        "--noise-floor",
        metavar="PERCENT",
        default="1%",
        help="difference that is called neither faster nor slower; default 1%%",
    )
    parser.add_argument("--out", metavar="DIR", help="write comparison.md, .csv, .png and .svg there")
    typed = [re.sub(rf"^({'|'.join(OPTIONS)})=", lambda found: f"{OPTIONS[found[1]]}=", each) for each in argv]
    options = parser.parse_intermixed_args(typed)
    for each in options.sources:
        if (setting := re.match(r"(\w+)=", each)) and not Path(each).exists():
            raise UserError(setting[1], "there is no such setting", f"choose one of {', '.join(OPTIONS)}")
    if len(options.sources) < 2:
        given = f"{len(options.sources)} given" if options.sources else "none given"
        raise UserError("sources", given, "name the reference, then one or more to compare with it")
    real = [Path(each).expanduser().resolve() for each in options.sources]
    if twice := [each for place, each in enumerate(options.sources) if real[place] in real[:place]]:
        raise UserError(twice[0], "is named twice", "name each source once")
    if len(real) > 26:
        raise UserError("sources", f"{len(real)} are too many", "name at most 26")
    if options.out == "":
        raise UserError("--out", "is empty", "name a folder")
    if options.fail_on_regression is not None:
        options.fail_on_regression = share(options.fail_on_regression, "--fail-on-regression")
    options.noise_floor = share(options.noise_floor, "--noise-floor")
    return options


def main() -> int:
    """Read the sources, compare, print, write where asked; 1 where a regression was asked for and found."""
    options = read_arguments(sys.argv[1:])
    from . import page, pairs, sources  # after bad arguments: matplotlib takes a second to import

    found = pairs.compare(
        [sources.read_source(chr(ord("A") + place), typed) for place, typed in enumerate(options.sources)]
    )
    text = page.page(found, options.noise_floor)
    written = (
        page.write(found, options.noise_floor, text, Path(options.out).expanduser()) if options.out is not None else []
    )
    print(text)
    print("\n".join(map(str, written)) or "Nothing was written; --out DIR writes these tables, a CSV and a plot.")
    if options.fail_on_regression is None:
        return 0
    if left := page.unpaired(found):
        names = ", ".join(f"{source.letter} ({source.name})" for source in left)
        raise UserError("--fail-on-regression", f"nothing of {names} could be compared with A", "see Not compared")
    limit = f"{100 * options.fail_on_regression:g} %"
    lines = page.regressions(found, options.fail_on_regression)
    alone = page.judged_by_themselves(found)
    weak = f" ({alone} of {len(found.pairs)} ratios have no interval and were judged by themselves)" if alone else ""
    print("\n".join(f"regression beyond {limit}: {line}" for line in lines) or f"no regression beyond {limit}{weak}")
    return int(bool(lines))


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
