"""The page of a report: needs no network, escapes what it is given, leads every row to its record, sorts its tables."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pandas
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from src.measure.records import Record, read_all
from src.measure.row import Row
from src.report import page
from src.report.build import build
from src.report.claims import claims_lines
from src.report.section import Claim, Section, Table

SHIPPED = ROOT / "results" / "shipped" / "cpu-amd-epyc-2-cores"
VOID = {"meta", "br", "link", "path", "use", "rect", "stop", "circle", "img", "hr", "input", "line"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a reader's program sees: elements, ids, links and text, and whether all that opens is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.elements if attribute in attributes]


def record(run_id: str = "a", **columns: object) -> Record:
    made = {"packages": {"torch": "2.13.0"}, "git_commit": "0123456789abcdef", "git_dirty": False}
    return Record(Row(run_id=run_id, device_name="some CPU", valid=True, **columns), made, {})  # type: ignore[arg-type]


def section(text: str = "prepacking", **more: object) -> Section:
    table = Table(("Method", "Speedup"), [[text, "6.21x [5.80, 6.60]"], ["full-batching", "oom"]], [["a"], ["a"]])
    claims = [Claim("It is faster", "5.21x", "6.21x", "agrees"), Claim("It fits", "16x", "", "not run", "no record")]
    return Section("example", "An example", "How to read it.", claims, table, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of shipped records, in its place beside them."""
    results = tmp_path_factory.mktemp("page") / "results"
    shutil.copytree(SHIPPED, results, ignore=shutil.ignore_patterns("report"))
    build(results)
    return results / "report" / "report.html"


def test_the_page_is_whole_needs_no_network_and_every_link_leads_somewhere(shipped: Path) -> None:
    html = shipped.read_text(encoding="utf-8")
    found = Page(html)
    assert [tag for tag, _ in found.elements].count("h1") == 1
    ids = found.all("id")
    assert len(ids) == len(set(ids))
    for link in found.all("href"):
        if link.startswith("#"):
            assert link[1:] in ids
        else:
            assert (shipped.parent / link).is_file(), link
    assert not found.all("src")
    assert not re.search(r"url\((?!#)|@import|<link|fetch\(", html)
    assert str(ROOT) not in html
    for _, shown in read_all(shipped.parents[1]):
        assert f"record-{shown.row.run_id}" in ids


def test_figures_are_inline_and_named(shipped: Path) -> None:
    found = Page(shipped.read_text(encoding="utf-8"))
    drawings = [attributes for tag, attributes in found.elements if tag == "svg"]
    named = [attributes for _, attributes in found.elements if attributes.get("role") == "img"]
    assert len(drawings) == len(named) > 0
    assert all(attributes["aria-label"] for attributes in named)


@given(text=st.text(min_size=1).filter(str.strip))
def test_what_comes_from_records_stays_text(text: str) -> None:
    row = record(method=text, status="error", status_reason=text)
    html = page.render(text, text, [section(text, notes=[text])], [("a", row)])
    plain = page.render(
        "x", "x", [section("x", notes=["x"])], [("a", record(method="x", status="error", status_reason="x"))]
    )
    assert [tag for tag, _ in Page(html).elements] == [tag for tag, _ in Page(plain).elements]


def test_scripts_in_names_are_not_run() -> None:
    html = page.render("t", "s", [section("<script>alert(1)</script>")], [("a", record())])
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_claims_are_told_by_word_and_shape_and_lead_to_their_section() -> None:
    html = page.render("t", "s", [section()], [("a", record())])
    assert "✓ agrees" in html
    assert "○ not run" in html
    assert '<a href="#example">It is faster</a>' in html
    assert claims_lines([section()]) == [
        "- **agrees** It is faster (paper: 5.21x; here: 6.21x)", "- **not run** It fits: no record",
    ]  # fmt: skip


def test_an_experiment_that_was_not_run_says_how_to_run_it() -> None:
    html = page.render("t", "s", [Section("today", "Today", "Lead.")], [])
    assert "python -m src.reproduce experiment=today" in html


def test_a_sections_files_hold_its_table_and_figure(tmp_path: Path) -> None:
    figure, panel = plt.subplots()
    panel.plot([1, 2])
    awkward = section("50 % of_a & b^2 ~ {x} \\ µs ²", figure=figure)
    page.write_section(awkward, tmp_path)
    plt.close(figure)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".csv", ".md", ".png", ".svg", ".tex"]
    table = pandas.read_csv(tmp_path / "example.csv")
    assert table.to_numpy().tolist() == [list(cells) for cells in awkward.table.body]
    latex = (tmp_path / "example.tex").read_text(encoding="utf-8")
    assert r"50 \% of\_a \& b\textasciicircum{}2 \textasciitilde{} \{x\} \textbackslash{} \textmu{}s" in latex
    assert r"\toprule" in latex
    if shutil.which("pdflatex"):
        text = rf"\documentclass{{article}}\usepackage{{booktabs,textcomp}}\begin{{document}}{latex}\end{{document}}"
        (tmp_path / "all.tex").write_text(text, encoding="utf-8")
        done = subprocess.run(["pdflatex", "-interaction=batchmode", "all.tex"], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0


def test_the_same_records_make_the_same_files(shipped: Path, tmp_path: Path) -> None:
    again = tmp_path / "report"
    build(shipped.parents[1], again)
    for file in shipped.parent.iterdir():
        if file.suffix in {".svg", ".csv", ".md", ".tex"}:
            assert file.read_bytes() == (again / file.name).read_bytes(), file.name


PROBE = """
<script>
addEventListener("load", () => {
  const problems = [], root = document.documentElement;
  addEventListener("error", (event) => problems.push(event.message));
  if (root.scrollWidth > innerWidth) problems.push(`wider than the window: ${root.scrollWidth} > ${innerWidth}`);
  const table = document.querySelector("table.sortable"), button = table.querySelectorAll("thead button")[1];
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent).join("|");
  button.click(); const up = column(); button.click(); const down = column();
  parent.postMessage(JSON.stringify({problems, up, down, sorted: button.parentElement.getAttribute("aria-sort")}), "*");
});
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 360])
def test_in_a_browser_nothing_overflows_and_tables_sort(width: int, tmp_path: Path) -> None:
    table = Table(
        ("Method", "Speedup"), [["a", "10.5x [1, 2]"], ["b", "oom"], ["c", "1,200"], ["d", "9.1x"]], [["a"]] * 4
    )
    html = page.render("t", "s", [Section("example", "An example " * 9, "Lead.", table=table)], [("a", record())])
    (tmp_path / "page.html").write_text(html.replace("</body>", PROBE), encoding="utf-8")
    frame = f'<iframe src="page.html" style="width: {width}px; height: 800px"></iframe>'
    listen = "<script>onmessage = (message) => document.title = message.data</script>"
    (tmp_path / "frame.html").write_text(f"<title></title>{listen}{frame}", encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
         (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    assert title[1] == (
        '{"problems":[],"up":"9.1x|10.5x [1, 2]|1,200|oom","down":"oom|1,200|10.5x [1, 2]|9.1x","sorted":"descending"}'
    )
