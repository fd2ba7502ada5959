"""docs/prepacking.svg: padded, packed, masked, unpacked, drawn from what the code does. ``--write`` draws it anew."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.prefilling.layout import Layout, left_padded, packed, right_padded  # noqa: E402
from src.prefilling.packing import first_fit_decreasing  # noqa: E402

PICTURE = ROOT / "docs" / "prepacking.svg"
LENGTHS = [4, 8, 2, 5, 1, 3]
COLOURS = ["#9ec5fe", "#ffd58a", "#a3e4b5", "#f5b5c8", "#d3bdf0", "#e8e08a"]
CELL, SMALL = 24, 12
SIZE = (860, 330)
# Card, ink and pads by themselves: legible on a light page and on a dark one.
STYLE = """
  text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .head { font-weight: 600 }
  .soft { fill: #59636e }
  .in { font-size: 12px; text-anchor: middle; fill: #1f2328 }
  .card { fill: #ffffff; stroke: #d1d9e0 }
  .pad { fill: #f0f2f5; stroke: #d1d9e0 }
  .cell { stroke: #59636e; stroke-width: 0.6 }
  .arrow { stroke: #59636e; stroke-width: 1.6; fill: none; marker-end: url(#tip) }
  #tip path { fill: #59636e }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .soft { fill: #b3bcc6 }
    .in { fill: #1f2328 }
    .card { fill: #151b23; stroke: #3d444d }
    .pad { fill: #262c36; stroke: #3d444d }
    .arrow { stroke: #b3bcc6 }
    #tip path { fill: #b3bcc6 }
  }
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """One line of text, its baseline at y."""
    return f'<text x="{x:g}" y="{y:g}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{words}</text>'


def cell(x: float, y: float, size: int, prompt: int, label: object = "") -> str:
    """One square: a token of a prompt with its label, or a pad (-1)."""
    look = f'class="cell" fill="{COLOURS[prompt]}"' if prompt >= 0 else 'class="pad"'
    square = f'<rect x="{x:g}" y="{y:g}" width="{size}" height="{size}" {look}/>'
    return square + (text(x + size / 2, y + size / 2 + 4, str(label), "in") if prompt >= 0 and label != "" else "")


def rows(x: float, y: float, layout: Layout, labels: bool) -> list[str]:
    """A layout, row by row; labels are positions."""
    return [
        cell(x + column * CELL, y + row * CELL, CELL, int(prompt), layout.positions[row, column] if labels else "")
        for row, line in enumerate(layout.segments)
        for column, prompt in enumerate(line)
    ]


def arrow(x: float, y: float) -> str:
    """To the right, from x."""
    return f'<path class="arrow" d="M{x:g} {y:g} h36"/>'


def draw() -> str:
    """The picture as SVG."""
    prompts = [np.ones(length, dtype=np.int64) for length in LENGTHS]
    bins = first_fit_decreasing(LENGTHS, max(LENGTHS))
    padded, bin_rows, cache = right_padded(prompts), packed(prompts, bins), left_padded(prompts)
    left, middle, right, top = 30, 300, 600, 74
    parts = [
        f'<rect class="card" x="0.5" y="0.5" width="{SIZE[0] - 1}" height="{SIZE[1] - 1}" rx="8"/>',
        text(left, 36, f"k = {len(LENGTHS)} prompts, padded", "head"),
        text(left, 56, f"{padded.computed_tokens} positions for {sum(LENGTHS)} tokens", "soft"),
        *rows(left, top, padded, labels=True),
        text(middle, 36, f"packed: r = {len(bins)} bins", "head"),
        text(middle, 56, f"{bin_rows.computed_tokens} positions; each prompt's start at 0", "soft"),
        *rows(middle, top, bin_rows, labels=True),
        text(right, 36, "unpacked: a cache row each", "head"),
        text(right, 56, "keys and values, left-padded", "soft"),
        *rows(right, top, cache, labels=False),
        arrow(left + padded.token_ids.shape[1] * CELL + 16, top + 1.5 * CELL),
        arrow(middle + bin_rows.token_ids.shape[1] * CELL + 48, top + 1.5 * CELL),
    ]
    mixed = max(range(len(bins)), key=lambda number: len(bins[number]))
    segments = bin_rows.segments[mixed]
    below = top + len(bins) * CELL + 22
    for query, own in enumerate(segments):
        for key, other in enumerate(segments):
            seen = own == other and key <= query
            parts.append(cell(middle + key * SMALL, below + query * SMALL, SMALL, int(own) if seen else -1))
    beside = middle + len(segments) * SMALL + 14
    parts += [
        text(beside, below + 16, f"bin {mixed + 1}: each prompt"),
        text(beside, below + 34, "sees itself alone"),
        text(beside, below + 52, "(independent mask)", "soft"),
        text(left, SIZE[1] - 64, "common practice: every prompt", "soft"),
        text(left, SIZE[1] - 46, "as long as the longest", "soft"),
        text(right, SIZE[1] - 64, "generate goes on from here,", "soft"),
        text(right, SIZE[1] - 46, "as after an ordinary prefill", "soft"),
        text(middle, SIZE[1] - 22, "one forward pass (arXiv 2404.09529, section 3)", "soft"),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE[0]} {SIZE[1]}" width="{SIZE[0]}" role="img">\n'
        "<title>Prepacking: padded prompts, packed into bins, computed with an independent mask, unpacked</title>\n"
        f"<style>{STYLE}</style>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def main() -> int:
    """Compare, or with --write replace, docs/prepacking.svg. 1 where it is out of date."""
    if "--write" in sys.argv[1:]:
        PICTURE.write_text(draw(), encoding="utf-8")
    elif not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != draw():
        print("docs/prepacking.svg is out of date; draw it anew with: python scripts/picture.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
