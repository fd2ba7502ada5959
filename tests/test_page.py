from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import browser
import numpy as np
import pytest
from conftest import ROOT
from conftest import texts as text_table
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from src.interval import Interval
from src.records import groups as aggregate
from src.records import store
from src.records.row import Row
from src.records.store import Record, read_all
from src.report import files, page, plots, svg, words
from src.report.cells import Column, Marked, fixed, make_table, number_in, thousands, times
from src.report.comparison import speedup
from src.report.section import Claim, Section

SHIPPED = ROOT / "results" / "shipped"
EVIL = "<script>alert(1)</script>\"'&|"
VOID = {"meta", "link", "br", "hr", "img", "input"}


def figure_of(groups: list[list[Record]]) -> Figure:
    figure = Figure(figsize=(6.5, 1.6 + 0.5 * sum(map(len, groups))), layout="constrained")
    for axes, group in zip(np.atleast_1d(figure.subplots(len(groups), 1)), groups, strict=True):
        for place, row in enumerate(record.row for record in group):
            seconds = row.seconds_per_batch_mean or 0.0
            axes.barh(place, seconds, height=0.6, edgecolor="black", linewidth=0.6, **plots.STYLE[row.method])
            axes.annotate(f"{seconds:.3g} s", (seconds, place), xytext=(5, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(group)), [words.label(record.row) for record in group])
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.margins(x=0.15)
        axes.set_xlabel("seconds per batch")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def section_of(name: str, title: str, groups: list[list[Record]], claims: list[Claim]) -> Section:
    rows = [record.row for group in groups for record in group if record.row.status == "ok"]
    columns = [
        Column("Method"), Column("Metric"), Column("Protocol"), Column("Batch"), Column("s / batch", fixed(3)),
        Column("Over full-batching", times), Column("Of ideal", fixed(2), "n/a"),
        Column("Peak memory (MB)", thousands, "n/a"),
    ]  # fmt: skip
    body = [
        {"Method": words.label(row), "Metric": row.metric, "Protocol": row.protocol, "Batch": row.batch_size,
         "s / batch": row.seconds_per_batch_mean, "Over full-batching": speedup(row),
         "Of ideal": row.fraction_of_ideal, "Peak memory (MB)": row.peak_memory_mb}
        for row in rows
    ]  # fmt: skip
    table = make_table(columns, body, [[row.run_id] for row in rows])
    lead = "Mean time of a batch, and how many times full-batching's it is worth; brackets hold 95 % intervals."
    return Section(name, title, lead, claims, table, figure_of(groups), [note for note in words.notes(rows) if note])


def demonstration() -> tuple[list[Section], list[tuple[str, Record]]]:
    """Sections and records of what is shipped, as a report would have them."""
    found = {
        path.name: [each.shown for each in aggregate.comparisons(store.read_all(path))]
        for path in sorted(SHIPPED.iterdir())
        if path.is_dir()
    }
    today, sixteen = found["cpu-amd-epyc-2-cores"], found["cpu-intel-xeon-processor-2-cores"]
    paper = "up to 6x"
    sections = [
        section_of("speedup", "Prefill and TTFT by method (Figure 3)", sixteen[:2], [
            Claim("Prepacking prefills a batch of uneven prompts several times as fast as padding.",
                  "its interval lies above 2", paper, "7.04x [5.31, 9.14]", "holds", beside="different"),
            Claim("It is faster than padding prompts sorted by length.", "its interval lies above 1", "1.6x",
                  "1.94x [1.90, 1.98]", "holds"),
            Claim("Peak memory falls by as much as the padding.", "the ratio is at least that of tokens", "up to 16x",
                  "1.9x", "does not hold", "weights and libraries count, and the model is small",
                  unlike=("model small (paper: large)", "bits none (paper: 4)")),
        ]),
        section_of("today", "What prepacking is worth beside today's engines", today[:6], [
            Claim("Kernels that need no padding make bins unnecessary.", "its interval lies above 1.1", "",
                  "1.07x [1.05, 1.10]", "cannot tell", "its interval reaches 1.1"),
        ]),
        Section("quantized", "Weights of 4 bits (Table 2)", "Not run on this machine.", [
            Claim("The speedup holds with weights of 4 bits.", "its interval lies above 1", "3.1x", "", "not run",
                  "no GPU was found"),
        ], notes=["Run it with a GPU: make reproduce SCALE=gpu."]),
    ]  # fmt: skip
    records = [(f"../{record.folder.relative_to(SHIPPED).as_posix()}", record) for record in read_all(SHIPPED)
               if record.folder]  # fmt: skip
    return sections, records


@pytest.fixture(scope="module")
def demo() -> tuple[list[Section], list[tuple[str, Record]]]:
    return demonstration()


@pytest.fixture(scope="module")
def html(demo: tuple[list[Section], list[tuple[str, Record]]]) -> str:
    return page.render("Prepacking, measured", "Every claim of the paper beside what was measured here.", *demo,
                       with_files=True)  # fmt: skip


class Outline(HTMLParser):
    """Elements with their attributes and text, and whether every one is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.stack):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_is_well_formed_and_every_link_within_it_leads_somewhere(html: str) -> None:
    outline = Outline(html)
    assert outline.stack == []
    counts = Counter(tag for tag, _ in outline.elements)
    assert [counts[tag] for tag in ("h1", "main", "script", "style", "title")] == [1] * 5
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"]) for _, attributes in outline.elements if "href" in attributes]
    links += [f"#{found}" for found in re.findall(r"url\(#([^)]+)\)", html)]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    named = [
        str(attributes["aria-labelledby"]) for _, attributes in outline.elements if "aria-labelledby" in attributes
    ]
    assert set(named) <= set(ids)
    assert all(attributes["aria-sort"] == "none" for attributes in outline.all("th") if "aria-sort" in attributes)


def test_the_page_asks_for_nothing_outside_it(html: str) -> None:
    assert "://" not in html
    outline = Outline(html)
    assert not any("src" in attributes for _, attributes in outline.elements)
    assert [attributes["href"] for attributes in outline.all("link")] == ["data:,"]
    (policy,) = [attributes["content"] for attributes in outline.all("meta") if "http-equiv" in attributes]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_claim_stands_on_top_with_its_verdict_in_words_and_leads_to_its_section(
    html: str, demo: tuple[list[Section], list[tuple[str, Record]]]
) -> None:
    top = html[: html.index("<nav")]
    for section in demo[0]:
        for claim in section.claims:
            at = top.index(claim.text)
            assert f'href="#section-{section.name}"' in top[at - 60 : at]
            assert f"<span>{claim.verdict}</span>" in top[top.rindex("<li", 0, at) : at]


def test_every_row_leads_to_its_record_and_every_record_to_its_folder(
    html: str, demo: tuple[list[Section], list[tuple[str, Record]]]
) -> None:
    sections, records = demo
    hrefs = [str(attributes.get("href")) for attributes in Outline(html).all("a")]
    for section in sections:
        for run_ids in section.table.records:
            assert all(f"#record-{run_id.replace('+', '-')}" in hrefs for run_id in run_ids)
    for path, record in records:
        assert quote(path) in hrefs
        assert (SHIPPED / "report" / path).resolve().is_dir()
        entry = html[html.index(f'id="record-{record.row.run_id.replace("+", "-")}"') :].split("</details>")[0]
        wanted = [record.row.workload_fingerprint, record.manifest["git_commit"], "torch 2.", record.row.status]
        wanted += ["INVALID" if record.row.valid is False else "VALID" if record.row.valid else "not judged"]
        assert all(text in entry for text in wanted)


def test_equal_sections_give_equal_pages_and_files(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        sections, records = demonstration()
        sections = sections[1:]
        written = page.write_report("Title", "", sections, records, tmp_path / name)
        assert written[0] == tmp_path / name / page.PAGE
        assert {path.name for path in (tmp_path / name).iterdir()} == {path.name for path in written}
        made.append({path.name: path.read_bytes() for path in written})
    assert made[0] == made[1]
    assert set(made[0]) == {
        page.PAGE, *(f"today.{kind}" for kind in ("csv", "md", "tex", "png", "svg"))
    }  # fmt: skip
    links = {str(a["href"]) for a in Outline(made[0][page.PAGE].decode()).all("a")}
    assert {f"./{name}" for name in made[0] if name != page.PAGE} <= links


def test_the_csv_holds_the_table_and_the_runs(tmp_path: Path, demo: tuple[list[Section], Any]) -> None:
    section = replace(demo[0][0], figure=None)
    files.write_section(section, tmp_path)
    with (tmp_path / "speedup.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == [*section.table.header, "records"]
    assert lines[1:] == [[*row, *runs] for row, runs in zip(section.table.texts(), section.table.records, strict=True)]


texts = st.text(max_size=30) | st.sampled_from(
    [EVIL, "</script>", "-->", "{{ 7*7 }}", "\ud800", "\0", "\\input{x}", "[0.1, 2]", "* starred", "100 % & $x_1$"]
)


def record_of(text: str, number: int = 0) -> Record:
    row = Row(run_id=f"run-{number}{text}", method=text, dataset=text, model=text, device_name=text, status="error",
              status_reason=text, invalid_reasons=text, workload_fingerprint=text, metric="prefill")  # fmt: skip
    return Record(row, {"packages": {text: text}, "git_commit": text, "git_dirty": True, "cpu": text}, {})


@settings(max_examples=25)
@given(st.lists(texts, min_size=5, max_size=5))
def test_text_of_a_record_stays_text(given_texts: list[str]) -> None:
    one, two, three, four, five = given_texts
    record = record_of(one)
    runs = [[record.row.run_id], ["gone" + five]]
    table = text_table(["Method", "Time"], [[three, "1.0"], [four, five]], runs)
    section = Section("name", two, three, [Claim(four, five, five, one, "cannot tell", two)], table, None, [three])
    text = page.render(one, two, [section], [(f"../{one}", record), (five, record_of(one))])
    plain = page.render("a", "a", [replace(section, title="a", lead="a",
                                                   claims=[Claim("a", "a", "a", "a", "cannot tell", "a")],
                        table=text_table(["a", "Time"], [["a", "1.0"], ["a", "a"]], runs), notes=["a"])],
                        [("../a", replace(record, row=record_of("a").row)), ("a", record_of("a"))])  # fmt: skip
    found, expected = Outline(text), Outline(plain)
    known = {tag for tag, _ in expected.elements}
    assert found.stack == []
    assert {tag for tag, _ in found.elements} <= known | {"small"}
    assert text.count("<script") == 1
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    hrefs = [str(attributes["href"]) for attributes in found.all("a")]
    assert all(href.startswith(("#", "./", "../")) for href in hrefs)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_what_looks_like_a_tag_is_shown_as_written() -> None:
    table = text_table(["Method"], [[EVIL]], [["run-0" + EVIL]])
    figure = Figure()
    figure.subplots().set_title(EVIL + "--><b>")
    section = Section(
        "evil", EVIL, EVIL, [Claim(EVIL, EVIL, EVIL, EVIL, "holds", EVIL, EVIL, (EVIL, EVIL))], table, figure, [EVIL]
    )
    text = page.render(EVIL, EVIL, [section], [("../x", record_of(EVIL))])
    outline = Outline(text)
    assert text.count("<script") == 1
    assert outline.text.count(EVIL) > 12
    assert EVIL + "--><b>" in outline.text


@given(texts)
def test_latex_reads_any_text_as_text(text: str) -> None:
    written = files.tex(text)
    assert written.isascii() or all("À" <= c <= "ÿ" for c in written if not c.isascii())
    assert "\n" not in written
    bare = written
    for escaped in sorted({*files.TEX.values()} - {"~"}, key=len, reverse=True):
        bare = bare.replace(escaped, "")
    assert not set(bare) & set("\\{}$&#%_^<>|\"`'*[]?!")


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on PATH")
def test_the_latex_table_compiles(tmp_path: Path, demo: tuple[list[Section], Any]) -> None:
    everything = "".join(files.TEX) + "Zürich 中 \\input{x} 100 % -- ?` [x] *"
    evil = Section("evil_1", everything, "", [], text_table([everything, "n"], [["[a]", "1"], ["*", everything]]), None,
                   [everything])  # fmt: skip
    for section in (demo[0][0], evil):
        files.write_section(replace(section, figure=None), tmp_path)
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}"
        "\\input{speedup.tex}\\input{evil_1.tex}\\end{document}",
        encoding="utf-8",
    )
    done = subprocess.run(["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "all.tex"], cwd=tmp_path,
                          capture_output=True, text=True, errors="replace")  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "all.pdf").is_file()


def test_a_pipe_or_a_tag_in_a_cell_leaves_the_markdown_table_whole() -> None:
    text = files.markdown_text(Section("x", "t", "l", [], text_table(["a|b", "n"], [["<b>|\n", "1"]]), None, []))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 3
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)
    assert "\\<b>" in text


NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "number"),
    [(Interval(6.21, 5.8, 6.6), 6.21), (Marked(Interval(4.13, 1.93, 8.87), "‡"), 4.13), (16, 16), (-3.5, -3.5),
     (Marked(97.0, "†"), 97), (Marked(None, "†"), None), (None, None), (NAN, None), ("oom", None), ("16", None),
     (True, None)],
)  # fmt: skip
def test_a_cell_sorts_by_the_number_that_it_is_and_never_by_its_text(value: object, number: float | None) -> None:
    assert number_in(value) == number


def test_a_value_is_written_once_and_what_stands_in_its_place_as_it_is() -> None:
    table = make_table(
        [Column("a"), Column("b", times), Column("c", fixed(1), "n/a")],
        [{"a": "full-batching", "b": Interval(2, 1.5, 2.5), "c": 3}, {"a": "4-bit", "b": "oom", "c": Marked(None, "†")},
         {"b": 1.0, "c": NAN}],
        [],
    )  # fmt: skip
    assert table.texts() == [
        ["full-batching", "2.00x [1.50, 2.50]", "3.0"],
        ["4-bit", "oom", "n/a †"],
        ["", "1.00x", "n/a"],
    ]
    assert table.numeric() == [False, True, True]
    assert table.only("a", ["4-bit"]).texts() == [["4-bit", "oom", "n/a †"]]


@pytest.mark.parametrize(("row", "records"), [({"b": 1}, []), ({"a": 1}, [["r"], ["s"]])])
def test_a_table_whose_rows_do_not_fit_is_refused(row: dict[str, object], records: list[list[str]]) -> None:
    with pytest.raises(ValueError, match=r"column|row"):
        make_table([Column("a")], [row], records)


def test_two_sections_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share a name: x, x"):
        page.write_report("t", "", [Section("x", "t", "l"), Section("x", "u", "l")], [], tmp_path)


def test_the_summary_begins_with_ten_lines_at_most(demo: tuple[list[Section], Any]) -> None:
    lines = page.claims_lines(demo[0])
    assert len(lines) == 5
    assert lines[2] == (
        "- **does not hold**: Peak memory falls by as much as the padding (here 1.9x; paper up to 16x). Holds if the "
        "ratio is at least that of tokens. Here: weights and libraries count, and the model is small."
    )
    many = page.claims_lines(list(demo[0]) * 3)
    assert len(many) == 10
    assert many[-1] == f"- and 6 more (2 holds, 1 does not hold, 1 cannot tell, 2 not run): see {page.PAGE}"
    assert page.claims_lines([]) == []


@pytest.mark.parametrize("colour", [*(style["color"] for style in plots.STYLE.values()), "#b00020", "#00008b"])
def test_colours_of_figures_are_seen_on_the_dark_card(colour: str) -> None:
    dark = re.findall("#[0-9a-fA-F]{6}", svg.adapt(colour))[-1]
    assert svg.contrast(tuple(int(dark[i : i + 2], 16) / 255 for i in (1, 3, 5))) >= 3


def test_ink_follows_the_page_but_not_on_a_coloured_plane() -> None:
    lines, plane = Figure(), Figure()
    lines.subplots().plot([0, 1], color="0.5")
    plane.subplots().imshow([[0, 1]])
    drawn = svg.inline(lines, "one", "label")
    assert "#000000" not in drawn
    assert "color-mix(in srgb, currentColor 50%, var(--card))" in drawn
    assert "#000000" in svg.inline(plane, "two", "label")
    assert svg.DARK_CARD in (ROOT / "src/report/page.html").read_text(encoding="utf-8")


def test_the_pages_colours_have_the_contrast_that_reading_needs() -> None:
    style = (ROOT / "src/report/page.html").read_text(encoding="utf-8")
    schemes = re.findall(r"--paper: #[^}]*", style)[:2]
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", scheme))
        for text in ("ink", "quiet", "link", "holds", "does-not-hold", "cannot-tell", "not-run"):
            parts = tuple(int(colours[text][i : i + 2], 16) / 255 for i in (1, 3, 5))
            for ground in ("paper", "card", "tint"):
                assert svg.contrast(parts, colours[ground]) >= 4.5, (text, ground)


def test_what_goes_on_sideways_has_a_cue_and_can_be_scrolled_by_keys(html: str) -> None:
    """Tables were cut at the right without one, and figures shrank to the width of a telephone."""
    parts = re.findall(r'<p class="cue" hidden>([^<]*)</p>\s*<div class="(scroll|card)[^"]* sideways" ([^>]*)>', html)
    assert len(parts) == html.count('<table class="sortable">') + html.count("<figure>") > 2
    for _, kind, attributes in parts:
        assert 'tabindex="0"' in attributes
        assert 'role="region"' in attributes
        assert "aria-label" in attributes, kind
    style = html[html.index("<style>") : html.index("</style>")]
    (rule,) = re.findall(r"\.sideways \{([^}]*)\}", style[: style.index("@media (max-width: 46rem)")])[:1]
    assert rule.count("no-repeat local") == rule.count("no-repeat scroll") == 2, "a shadow at either edge"
    narrow = style[style.index("@media (max-width: 46rem)") :]
    (least,) = re.findall(r"\.card svg \{[^}]*min-width: (\d+)rem", narrow[: narrow.index("@media print")])
    assert int(least) >= 40


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if browser.PATH is None:
        pytest.skip("no chromium on PATH")
    with browser.Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def shown(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / page.PAGE
    path.write_text(html, encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_errors_requests_or_sideways_scrolling(
    tab: browser.Browser, shown: Path, width: int, scheme: str
) -> None:
    tab.open(shown, width, scheme)
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    outside = "e => !e.closest('.sideways, svg') && e.scrollWidth > innerWidth"
    wide = f"[...document.querySelectorAll('main *')].filter({outside})"
    assert tab.evaluate(f"{wide}.map(e => e.outerHTML.slice(0, 80))") == []
    assert tab.trouble() == []


def test_a_browser_says_where_a_table_or_a_figure_goes_on(tab: browser.Browser, shown: Path) -> None:
    hidden = "[...document.querySelectorAll('.cue')].map(cue => cue.hidden)"
    wider = "[...document.querySelectorAll('.cue + .sideways')].map(e => e.scrollWidth <= e.clientWidth)"
    for width in (390, 1280, 2400):
        tab.open(shown, width)
        assert tab.evaluate(hidden) == tab.evaluate(wider)
    tab.open(shown, 390)
    figures = tab.evaluate("[...document.querySelectorAll('.card svg')].map(e => e.getBoundingClientRect().width)")
    assert min(figures) >= 700


def test_a_browser_sorts_by_click_and_by_enter_and_opens_records(tab: browser.Browser, shown: Path) -> None:
    tab.open(shown, 1280)
    table = "#section-speedup ~ .scroll table"

    def column(number: int) -> list[str]:
        cells = f"[...document.querySelectorAll('{table} tbody tr')].map(row => row.cells[{number}].textContent)"
        return list(tab.evaluate(cells))

    def state() -> list[str]:
        return list(tab.evaluate(f"[...document.querySelectorAll('{table} th[aria-sort]')].map(h => h.ariaSort)"))

    def ratio(cell: str) -> float:
        return float(cell.split("x")[0])

    written = column(5)
    rising = sorted(written, key=ratio)
    tab.click(f"{table} th:nth-child(6) button")
    assert column(5) == rising
    assert state()[5] == "ascending"
    tab.press("Enter", "\r")
    assert column(5) == sorted(written, key=ratio, reverse=True)
    assert state() == ["none"] * 5 + ["descending"] + ["none"] * 2
    tab.press("Enter", "\r")
    assert column(5) == written
    tab.click(f"{table} th:nth-child(1) button")
    assert column(0) == sorted(column(0))
    assert state()[0] == "ascending"
    target = tab.evaluate(f"document.querySelector('{table} .sources a').getAttribute('href')")
    tab.click(f"{table} .sources a")
    assert tab.wait_until(f"location.hash == {target!r}")
    assert tab.wait_until("document.getElementById(location.hash.slice(1)).open")
    assert tab.trouble() == []


def test_a_browser_sorts_what_is_no_number_last_both_ways(tab: browser.Browser, tmp_path: Path) -> None:
    values = ["n/a", Interval(10.0, 9.0, 11.0), "oom", Interval(9.5, 9.0, 10.0), 1000.0, None]
    columns = [Column("Method"), Column("Speedup", times)]
    section = Section("x", "t", "l", [], make_table(columns, [{"Method": "m", "Speedup": each} for each in values], []))
    (tmp_path / "x.html").write_text(page.render("t", "", [section], []), encoding="utf-8")
    tab.open(tmp_path / "x.html", 1280)
    rising = ["9.50x [9.00, 10.00]", "10.00x [9.00, 11.00]", "1000.00x"]
    for wanted in (rising, rising[::-1]):
        tab.click("th:nth-child(2) button")
        shown = tab.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.cells[1].textContent)")
        assert shown == [*wanted, "n/a", "oom", ""]
