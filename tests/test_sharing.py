"""Records as others read them: the schema, older and newer versions, archives that are sent, and what may be wrong."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT, TINY_OVERRIDES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.compose import compose
from src.measure.plan import prepare
from src.measure.runner import measure as run
from src.measure.validity import CHANGED_TREE
from src.provenance import EARLIER_CODE, EARLIER_FILES, code_hash
from src.records import schema
from src.records import store as records
from src.records.row import COLUMNS, Row
from src.records.row import VALUES as HELD
from src.records.store import Record

sys.path.append(str(ROOT / "scripts"))
import readme
import record_checks
import share

Call = Callable[..., tuple[int, str, str]]
Change = Callable[[Path], object]
VALIDATOR = jsonschema.Draft202012Validator(schema.json_schema())
SHIPPED = sorted(path for path in (ROOT / "results" / "shipped").iterdir() if path.is_dir())
VALUES = {
    "str": st.text(max_size=20),
    "int": st.integers(-(2**70), 2**70),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
}
COLUMN = st.sampled_from(sorted(set(schema.ROW) - {"run_id", "rate", *HELD}))
CELL = COLUMN.flatmap(
    lambda name: st.tuples(st.just(name), VALUES[schema.ROW[name].split()[0]] | st.just(getattr(Row(), name)))
)
CHOSEN = st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in HELD.items()})
ROWS = st.builds(
    lambda cells, chosen, rate: dict(cells) | chosen | {"rate": rate}, st.lists(CELL), CHOSEN, VALUES["float"]
)
JSON = (
    st.none() | st.booleans() | st.integers() | VALUES["float"] | st.sampled_from([3.0, "", "ok", [], {}, [3], ["a"]])
)
PLAIN = {"run_id": "run", "metric": "ttft", "protocol": "modern"}
QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def content_of(row: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """What a record.json holds."""
    content = {"schema_version": schema.SCHEMA_VERSION, "row": vars(Row(**PLAIN)) | (row or {}),
               "prompt_lengths": [3, 5], "manifest": {}}  # fmt: skip
    return content | changes


def load(content: Any) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "record.json").write_text(json.dumps(content), encoding="utf-8")
        return records.read(Path(folder))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine's folder with two methods' records, the report of another program and a draft."""
    folder = tmp_path_factory.mktemp("results") / "tiny-machine"
    run(prepare(compose([*TINY_OVERRIDES, f"results_dir={folder}", "methods=[full-batching,prepacking]"])))
    for path in (folder / "report" / "summary.md", folder / ".tmp-host-1-2" / "record.json"):
        path.parent.mkdir()
        path.write_text("not a record", encoding="utf-8")
    return folder


@pytest.fixture
def machine(measured: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(measured, tmp_path / "sent" / measured.name))


def of(machine: Path, method: str = "prepacking") -> Path:
    (folder,) = machine.glob(f"{method}-*")
    return folder


def edit(folder: Path, where: str = "row", **changes: Any) -> None:
    """Change a record's row, or another part of its record.json."""
    path = folder / "record.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    (content[where] if where else content).update(changes)
    path.write_text(json.dumps(content), encoding="utf-8")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


# --- the schema


def test_the_schema_and_the_manifests_table_are_those_of_the_code(measured: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(schema.json_schema())
    assert (ROOT / "docs" / "record.schema.json").read_text(encoding="utf-8") == readme.schema_text()
    text = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    assert readme.manifest() in text
    described = schema.json_schema()["properties"]["row"]["properties"]
    assert {name: each["description"] for name, each in described.items()} == {
        name: schema._described(column) for name, column in COLUMNS.items()
    }
    record = records.read(of(measured))
    assert set(record.manifest) <= set(schema.MANIFEST)
    header = (of(measured) / "samples.csv").read_text(encoding="utf-8").splitlines()[0]
    assert {name for name in header.split(",") if f"`{name}`" not in text} == set()
    assert set(schema.UPGRADES) == set(range(1, schema.SCHEMA_VERSION))
    assert f"\n| {schema.SCHEMA_VERSION} | " in text


@QUICK
@given(ROWS, st.lists(st.integers(1, 2**40)), st.dictionaries(st.text(), JSON))
def test_any_row_that_is_written_is_read_back_equal_and_as_the_schema_says(
    values: dict[str, Any], lengths: list[int], others: dict[str, Any]
) -> None:
    row = Row(run_id="run", **values)
    made = {name: value for name, value in others.items() if name not in schema.MANIFEST}
    with tempfile.TemporaryDirectory() as folder:
        path = records.write(Record(row, made, {"seed": 0}, [], lengths), Path(folder))
        VALIDATOR.validate(json.loads((path / "record.json").read_text(encoding="utf-8")))
        found = records.read(path)
    assert (found.row, found.manifest, found.prompt_lengths) == (row, made, lengths)


@settings(max_examples=150)
@given(st.sampled_from(sorted(schema.ROW) + sorted(schema.MANIFEST) + ["prompt_lengths", "other"]), JSON)
def test_what_the_schema_accepts_is_what_is_read(name: str, value: Any) -> None:
    if name in schema.MANIFEST:
        content = content_of(manifest={name: value})
    else:
        content = content_of({name: value}) if name != "prompt_lengths" else content_of(prompt_lengths=value)
    if VALIDATOR.is_valid(content):
        load(content)
    else:
        with pytest.raises(ValueError, match=name):
            load(content)


def test_numbers_that_json_lacks_are_written_and_read_as_null(tmp_path: Path) -> None:
    row = Row(**PLAIN, seconds_per_batch_std=float("nan"), padding_ratio=float("inf"))
    made = {"sampler_overhead_low_pct": float("nan"), "packages": {"torch": None}}
    path = records.write(Record(row, made, {}), tmp_path)
    VALIDATOR.validate(json.loads((path / "record.json").read_text(encoding="utf-8"), parse_constant=pytest.fail))
    found = records.read(path)
    assert (found.row.seconds_per_batch_std, found.row.padding_ratio) == (None, None)
    assert found.manifest == made | {"sampler_overhead_low_pct": None}
    older = load(content_of(schema_version=1, manifest={"sampler_overhead_low_pct": float("nan")}))
    assert older.manifest == {"sampler_overhead_low_pct": None}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (content_of({"batch_size": "many"}), "row.batch_size is 'many', not a whole number"),
        (content_of({"metric": "abc"}), "row.metric is 'abc', not one of prefill, ttft"),
        (content_of({"protocol": ""}), "row.protocol is '', not one of modern, paper"),
        (content_of({"arrivals": "poisson", "rate": None}), "row.arrivals is 'poisson', and rate is missing"),
        (content_of({"batch_size": True}), "row.batch_size is true, not a whole number"),
        (content_of({"batch_size": 1.5}), "row.batch_size is 1.5, not a whole number"),
        (content_of({"repeats": None}), "row.repeats is null, not a whole number"),
        (content_of({"seed": "x" * 999}), f"row.seed is '{'x' * 56}..., not a whole number"),
        (content_of({"padding_ratio": "1"}), "row.padding_ratio is '1', not a number or null"),
        (content_of({"padding_ratio": 10**400}), f"row.padding_ratio is 1{'0' * 56}..., not a number or null"),
        (content_of({"valid": 1}), "row.valid is 1, not true or false or null"),
        (content_of({"method": 7}), "row.method is 7, not a text"),
        (content_of({"status": "fine"}), "row.status is 'fine', not one of ok, oom, "),
        (content_of({"run_id": ""}), "row.run_id is empty"),
        (content_of(row={}) | {"row": {"run_id": "run"}}, "row has no comparison_id"),
        (content_of() | {"row": [1]}, "record.json.row is a list, not an object"),
        (content_of(manifest={"cpu_cores": "2"}), "manifest.cpu_cores is '2', not a whole number"),
        (content_of(manifest=None), "record.json.manifest is null, not an object"),
        (content_of(prompt_lengths=[5, 0]), "prompt_lengths holds 0, not whole numbers from 1 on"),
        (content_of(prompt_lengths=[None]), "prompt_lengths holds null, not whole numbers from 1 on"),
        ([], "record.json is a list, not an object"),
        ({}, "schema_version is null, not a whole number from 1 on"),
        (content_of(schema_version=0), "schema_version is 0, not a whole number from 1 on"),
        (content_of(schema_version="2"), "schema_version is '2', not a whole number from 1 on"),
        (content_of(schema_version=4), "schema_version is 4, this program reads up to 3: update the program"),
        ({"schema_version": 1}, "record.json has no row"),
    ],
)
def test_what_is_not_as_the_schema_says_is_one_line_that_names_it(content: Any, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as raised:
        load(content)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_whole_numbers_of_other_languages_are_read_and_unknown_columns_passed_over() -> None:
    found = load(content_of({"batch_size": 16.0, "seconds_per_batch_mean": 2, "of_tomorrow": [1]}))
    assert (found.row.batch_size, type(found.row.batch_size), found.row.seconds_per_batch_mean) == (16, int, 2)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("own_tokens", [True, False])
def test_what_must_be_held_is_taken_out_where_it_meant_padded_kv(version: int, own_tokens: bool) -> None:
    content = content_of(
        {"must_hold_mb": 5.0, "memory_overhead_pct": 9.0, "peak_memory_mb": 7.0}, schema_version=version
    )
    if not own_tokens:
        del content["row"]["resident_rest_mb"]
    row = load(content).row
    stands = own_tokens or version == 2
    assert (row.must_hold_mb, row.memory_overhead_pct) == ((5.0, 9.0) if stands else (None, None))
    assert row.peak_memory_mb == 7


@pytest.mark.parametrize("folder", SHIPPED, ids=[path.name for path in SHIPPED])
def test_every_shipped_record_is_read_and_stands_the_check(folder: Path) -> None:
    found = share.check_folder(folder)
    assert found.problems == []
    assert len(found.rows) == len(list(folder.rglob("record.json")))


# --- archives


def test_what_is_packed_is_checked_elsewhere_and_is_the_same_each_time(
    machine: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edit(of(machine), valid=False, invalid_reasons="a fan\x1b[31m stopped")
    code, out, err = call(share.main, "pack", str(machine))
    assert (code, err) == (0, "")
    archive = tmp_path / "tiny-machine.tar.gz"
    assert archive.name in out
    assert ": 2 records, " in out
    assert f"note: {of(machine).name}: INVALID, a fan?[31m stopped\n" in out
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    assert {member.name for member in members} == {
        f"tiny-machine/{folder.name}/{name}"
        for folder in (of(machine), of(machine, "full-batching"))
        for name in ("record.json", "samples.csv", "config.yaml")
    }
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    for path in machine.rglob("*"):
        path.touch()
    assert call(share.main, "pack", str(machine), "--out", str(tmp_path / "again.tar.gz"))[0] == 0
    assert (tmp_path / "again.tar.gz").read_bytes() == archive.read_bytes()
    before = set(tmp_path.rglob("*"))
    code, out, err = call(share.main, "check", str(archive))
    assert (code, err) == (0, "")
    assert ": 2 records, " in out
    assert "INVALID, a fan" in out
    assert call(share.main, "check", str(machine))[1] == out
    assert set(tmp_path.rglob("*")) == before


def drop_a_sample(folder: Path) -> None:
    path = folder / "samples.csv"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")


def slower(folder: Path) -> None:
    """Samples that all take longer, and a row whose mean says so."""
    path = folder / "samples.csv"
    header, *lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    place = header.index("seconds")
    for line in lines:
        line[place] = str(3 * float(line[place]))
    path.write_text("\n".join(map(",".join, [header, *lines])), encoding="utf-8")
    edit(folder, seconds_per_batch_mean=sum(float(line[place]) for line in lines) / len(lines))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda f: (f / "record.json").write_text('{"schema_version": 1, "row": {'), "JSONDecodeError"),
        (lambda f: edit(f, batch_size="many", seed=None), "row.batch_size: 'many' is not of type 'integer'; row.seed"),
        (lambda f: edit(f, "", schema_version=9), "update the program"),
        (lambda f: edit(f, run_id="prepacking-other"), "its run_id is 'prepacking-other', not the folder's name"),
        (lambda f: edit(f, num_prompts=11), "12 prompt_lengths, the row says 11 prompts"),
        (lambda f: edit(f, device_name="another CPU"), "records of several machines ("),
        (lambda f: edit(f, "manifest", note="/home/someone/x"), "record.json names a home folder (/home/someone)"),
        (lambda f: replace(f / "record.json", '"manifest": {', '"manifest": {"note": "\\u002fhome/someone/x",'),
         "record.json names a home folder (/home/someone)"),
        (lambda f: edit(f, status_reason="hf_" + "a1B2" * 8), "record.json holds an access token"),
        (lambda f: replace(f / "config.yaml", "seed: 0", "seed: 0\nat: /Users/me/p"), "config.yaml names a home "),
        (lambda f: replace(f / "config.yaml", "seed: 0", "seed: ["), "config.yaml holds no settings"),
        (lambda f: (f / "config.yaml").unlink(), "config.yaml is missing"),
        (drop_a_sample, "samples.csv has 5 samples, the row 2 repeats of 3 batches"),
        (lambda f: replace(f / "samples.csv", "\n1,", "\n7,"), "does not have each of 3 batches in each of 2 repeats"),
        (lambda f: replace(f / "samples.csv", "\n1,", "\nx,"), "samples.csv cannot be read (invalid literal"),
        (lambda f: replace(f / "samples.csv", "seconds", "minutes"), "samples.csv cannot be read (no column 'seconds'"),
        (lambda f: (f / "samples.csv").write_text("\n"), "samples.csv has 0 samples"),
        (lambda f: edit(f, seconds_per_batch_mean=1.5), "seconds_per_batch_mean is 1.5 s, that of the samples "),
        (lambda f: edit(f, speedup_over_full_batching=1.5), "speedup_over_full_batching is 1.5, that of the samples "),
        (slower, "speedup_over_full_batching is "),
        (lambda f: shutil.copytree(f, f.parent / "copies" / f.name), "another record has the run_id 'prepacking-"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_record_is_one_line_and_it_is_not_packed(
    spoil: Change, line: str, machine: Path, tmp_path: Path, call: Call
) -> None:
    spoil(of(machine))
    code, out, err = call(share.main, "check", str(machine))
    assert (code, err) == (1, "")
    assert line in out
    assert len([each for each in out.splitlines()[1:] if not each.startswith("note: ")]) <= 3
    code, out, _ = call(share.main, "pack", str(machine), "--out", str(tmp_path / "x.tar.gz"))
    assert code == 1
    assert line in out
    assert "nothing was packed" in out
    assert not (tmp_path / "x.tar.gz").exists()


def test_a_failed_record_is_welcome(machine: Path, call: Call) -> None:
    nothing = {name: None for name in COLUMNS if name.startswith(("seconds_", "speedup_", "valid"))}
    edit(of(machine), status="oom", status_reason="no room", repeats=0, **nothing)
    (of(machine) / "samples.csv").write_text("\n", encoding="utf-8")
    code, out, _ = call(share.main, "check", str(machine))
    assert code == 0
    assert f"note: {of(machine).name}: oom, no room" in out
    edit(of(machine), status="ok")
    assert "seconds_per_batch_mean is none, that of the samples none" in call(share.main, "check", str(machine))[1]


# --- archives that mean no good


def archive(path: Path, *members: tuple[str, dict[str, Any]], content: bytes = b"{}") -> Path:
    """A tar.gz with members of these names and attributes."""
    with tarfile.open(path, "w:gz") as tar:
        for name, attributes in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


RECORD = "m/run/record.json"
LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ([("/tmp/evil/record.json", {})], "would write outside its folder"),
        ([("m/../../evil/record.json", {})], "would write outside its folder"),
        ([("m\\..\\record.json", {})], "would write outside its folder"),
        ([("m/\x1b[2J/record.json", {})], "would write outside its folder ('m/?[2J/record.json')"),
        ([(RECORD, LINK)], "is neither file nor folder"),
        ([("m/run", LINK), (RECORD, {})], "is neither file nor folder"),
        ([(RECORD, LINK | {"type": tarfile.LNKTYPE})], "is neither file nor folder"),
        ([(RECORD, {"type": tarfile.FIFOTYPE, "size": 0})], "is neither file nor folder"),
        ([(RECORD, {}), ("./" + RECORD, {})], "twice"),
        ([(RECORD, {}), (RECORD + "/record.json", {})], "cannot be unpacked"),
        ([(f"m/{number}/record.json", {}) for number in range(9)], "holds more than 8 files"),
    ],
)  # fmt: skip
def test_an_archive_that_would_write_elsewhere_is_refused(
    members: list[tuple[str, dict[str, Any]]], line: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "MOST_FILES", 8)
    path = archive(tmp_path / "x.tar.gz", *members)
    code, out, err = call(share.main, "check", str(path))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path}: ")
    assert line in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_that_unfolds_to_far_more_is_refused(tmp_path: Path, call: Call, monkeypatch: Any) -> None:
    monkeypatch.setattr(share, "UNPACKED_MB", 1)
    path = archive(tmp_path / "x.tar.gz", (RECORD, {}), content=bytes(1_100_000))
    assert path.stat().st_size < 10_000
    assert "holds more than 1 MB" in call(share.main, "check", str(path))[2]
    monkeypatch.setattr(share, "PACKED_MB", 0)
    assert "is larger than 0 MB" in call(share.main, "check", str(path))[2]


def test_a_folder_that_is_too_large_to_send_is_not_packed(
    machine: Path, tmp_path: Path, call: Call, monkeypatch: Any
) -> None:
    for limit, line in (("UNPACKED_MB", "an archive may hold 15000 of 0 MB"), ("PACKED_MB", "0 MB can be sent")):
        with monkeypatch.context() as patched:
            patched.setattr(share, limit, 0)
            code, _, err = call(share.main, "pack", str(machine), "--out", str(tmp_path / "x.tar.gz"))
        assert code == 2
        assert line in err
    assert not (tmp_path / "x.tar.gz").exists()


def test_what_is_no_part_of_a_record_is_named_and_not_unpacked(machine: Path, tmp_path: Path, call: Call) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(machine, machine.name)
    code, out, _ = call(share.main, "check", str(path))
    assert code == 1
    assert "tiny-machine/report/summary.md: no part of a record" in out
    assert "tiny-machine/.tmp-host-1-2/record.json: no part of a record" in out
    assert ": 2 records, " in out


@QUICK
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_no_spoilt_archive_ends_in_a_traceback(measured: Path, changes: list[tuple[int, int]], cut: bool) -> None:
    spoilt = bytearray(gzip.decompress(share.archive_of(measured)))
    for place, value in changes:
        spoilt[place % (len(spoilt) if cut else 2048)] = value  # within the first headers, or anywhere
    packed = gzip.compress(bytes(spoilt), 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar.gz"
        path.write_bytes(packed[: len(packed) // 2] if cut and changes[0][1] % 2 else packed)
        with contextlib.suppress(share.UserError):
            assert share.check(str(path)) in (0, 1)


BAD_INPUT = [
    ("scripts/share.py", "arguments: the following arguments are required: command"),
    ("scripts/share.py send", "command: invalid choice: 'send'"),
    ("scripts/share.py pack", "arguments: the following arguments are required: folder"),
    ("scripts/share.py pack {tmp}/absent", "there is no such folder; name the folder of a machine below results/"),
    ("scripts/share.py pack {tmp}/none", "no record below it; name the folder of a machine below results/"),
    ("scripts/share.py pack {tmp}/m/run", "is a single record; name the folder of the machine that holds it"),
    ("scripts/share.py check {tmp}/absent.tar.gz", "there is no such file or folder; name a .tar.gz or a folder"),
    ("scripts/share.py check {tmp}/none", "holds no record; name a .tar.gz that pack made, or a folder of records"),
    ("scripts/share.py check {tmp}/notes.tar.gz", "cannot be unpacked (Not a gzipped file (b'he'))"),
    ("scripts/share.py check {tmp}/empty.tar.gz", "holds no record; name a .tar.gz that pack made"),
    ("scripts/share.py check {tmp}/m --fast", "--fast: there is no such option; `python scripts/share.py --help` "),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "expected"), BAD_INPUT, ids=[typed for typed, _ in BAD_INPUT])
def test_bad_input_is_one_line(typed: str, expected: str, tmp_path: Path, call: Call) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "m" / "run").mkdir(parents=True)
    (tmp_path / "m" / "run" / "record.json").write_text("{}", encoding="utf-8")
    (tmp_path / "notes.tar.gz").write_text("hello there", encoding="utf-8")
    archive(tmp_path / "empty.tar.gz")
    before = set(tmp_path.rglob("*"))
    code, out, err = call(share.main, *typed.format(tmp=tmp_path).split()[1:])
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before


# --- a commit that was given


def commits(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@pytest.mark.skipif(not commits("rev-parse", "HEAD"), reason="needs the repository, this tree has none")
def test_a_commit_that_was_given_has_to_have_the_code_that_measured(
    machine: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = commits("rev-parse", "HEAD")
    with tarfile.open(fileobj=io.BytesIO(subprocess.check_output(["git", "-C", str(ROOT), "archive", head]))) as tar:
        tar.extractall(tmp_path / "carried", filter="data")
    given = {"git_commit": head, "git_commit_given": True, "git_dirty": None}
    there = code_hash(tmp_path / "carried" / "src")
    for record in records.read_all(machine):
        assert record.folder
        edit(record.folder, "manifest", **given, code_hash=there)
    assert call(share.main, "check", str(machine))[0] == 0
    earlier = code_hash(tmp_path / "carried" / "src", EARLIER_CODE, EARLIER_FILES)
    assert earlier != there
    edit(of(machine), "manifest", code_hash=earlier)  # records of before are by the rule of their time
    assert call(share.main, "check", str(machine))[0] == 0
    edit(of(machine), "manifest", code_hash="0" * 12)
    code, out, _ = call(share.main, "check", str(machine))
    assert code == 1
    assert f"its commit {head[:12]} was given, and has other code: {there}, not {'0' * 12}" in out
    for strange in ("f" * 40, "--output=/tmp/x"):
        edit(of(machine), "manifest", git_commit=strange)
        code, out, _ = call(share.main, "check", str(machine))
        assert code == 1
        assert f"its commit {strange[:12]} was given, and is not in this repository: fetch it to check it" in out
    monkeypatch.setattr(record_checks, "ROOT", tmp_path)  # where it was measured there is no repository to ask
    assert call(share.main, "check", str(machine))[0] == 0


@pytest.mark.skipif(not commits("rev-parse", "HEAD"), reason="needs the repository, this tree has none")
def test_a_commit_is_said_afterwards_where_its_code_measured(machine: Path, call: Call) -> None:
    head = commits("rev-parse", "HEAD")
    there, _ = record_checks.code_hashes_of(head) or ("", "")
    for record in records.read_all(machine):
        assert record.folder
        edit(record.folder, "manifest", git_commit="a" * 40, git_dirty=True, code_hash=there)
        edit(record.folder, valid=False, invalid_reasons=f"one reason; {CHANGED_TREE}", notes="a note")
    edit(of(machine), invalid_reasons=CHANGED_TREE)
    assert call(share.main, "commit", str(machine), "0" * 40) == (
        2, "", f"error: {'0' * 40}: is no commit of this repository; give its 40 hex digits; fetch it first\n"
    )  # fmt: skip
    assert call(share.main, "commit", str(machine), head)[0] == 0
    found = {record.row.method: record for record in records.read_all(machine)}
    assert (found["prepacking"].row.valid, found["prepacking"].row.invalid_reasons) == (True, None)
    assert (found["full-batching"].row.valid, found["full-batching"].row.invalid_reasons) == (False, "one reason")
    for record in found.values():
        note = "the commit was found afterwards, by its code: the tree had been carried over aaaaaaaaaaaa"
        assert record.row.notes == f"a note; {note}"
        made = record.manifest
        assert (made["git_commit"], made["git_commit_given"], made["git_dirty"]) == (head, True, None)
    code, _, err = call(share.main, "commit", str(machine), head)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds no record of a changed tree" in err
    edit(of(machine), "manifest", git_dirty=True, code_hash="0" * 12)
    code, _, err = call(share.main, "commit", str(machine), head)
    assert (code, err) == (2, f"error: {head}: its code is {there}; what measured is {'0' * 12}; give another commit\n")


# --- the table of machines


def test_the_table_of_machines_says_what_each_was_and_what_ran_there(machine: Path) -> None:
    edit(of(machine), valid=True, created_at="2031-05-06T00:00:00+00:00")
    edit(of(machine, "full-batching"), valid=False, created_at="2031-05-07T00:00:00+00:00")
    for folder in (of(machine), of(machine, "full-batching")):
        edit(folder, "manifest", git_commit="0123456789abcdef", git_dirty=False, packages={"torch": "2.99.0"})
    header, _, line = readme.machines(str(machine.parent)).splitlines()
    cells = dict(zip(*([cell.strip() for cell in each.split("|")[1:-1]] for each in (header, line)), strict=True))
    assert cells.pop("device") == records.read(of(machine)).row.device_name
    assert cells == {
        "folder": "`tiny-machine`", "CUDA, driver": "none", "torch": "2.99.0", "records": "2: 1 VALID, 1 INVALID",
        "models": "tiny", "datasets": records.read(of(machine)).row.dataset, "batch sizes": "4",
        "commit": "0123456789ab", "measured": "2031-05-06 to 2031-05-07",
    }  # fmt: skip
