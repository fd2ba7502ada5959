"""What is the same measurement: models, software and prompts are told apart, and ratios across runs are marked."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from conftest import TINY_OVERRIDES, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from src import compose as composing
from src import config as settings
from src import places, provenance, stats
from src.cli import UserError
from src.compare import pairs
from src.compare.sources import read_source
from src.compose import compose
from src.config import Config, ModelConfig
from src.jobs import agenda
from src.jobs.experiments import experiments, sweep
from src.jobs.searches import SEARCHES
from src.measure import machine
from src.measure.memory_checks import skip_dominated
from src.measure.outcome import Run
from src.measure.plan import prepare
from src.measure.rows import to_records
from src.measure.runner import measure as run
from src.places import PACKAGE
from src.prefilling import identity
from src.prefilling.models import find_model
from src.records import groups as aggregate
from src.records import store as records
from src.records.row import COLUMNS, FIGURE, HOW, MACHINE, PROVENANCE, SETTING, VALUES, WORK, key, parts
from src.records.store import Record
from src.report.build import report_on, sections_of
from src.report.comparison import comparison_table

Measure = Callable[..., list[Record]]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny model in a folder."""

    def make(folder: str, seed: int = 1, **changes: Any) -> Path:
        torch.manual_seed(seed)
        model = tiny_model(**changes)
        with torch.no_grad():
            model.lm_head.weight += 0.01 * seed
        model.save_pretrained(tmp_path / folder)
        return tmp_path / folder

    return make


def of_folder(folder: Path, results: Path, *overrides: str) -> list[Record]:
    kept = [one for one in TINY_OVERRIDES if not one.startswith(("model.", "++model."))]
    config = compose([*kept, f"model.path={folder}", f"results_dir={results}", *overrides])
    return run(prepare(config))


def test_models_in_folders_of_one_name_are_told_apart(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Prepacking on one and full-batching on the other have no ratio, in the report and between sources."""
    small, large = saved("a/final"), saved("b/final", num_hidden_layers=4)
    of_folder(small, tmp_path / "r", "method=prepacking")
    of_folder(large, tmp_path / "r", "method=full-batching")
    found = aggregate.comparisons(records.read_all(tmp_path / "r"))
    assert [[row.method for row in each.rows] for each in found] in (
        [["prepacking"], ["full-batching"]], [["full-batching"], ["prepacking"]],
    )  # fmt: skip
    assert {row.speedup_over_full_batching for each in found for row in each.rows} == {None, 1.0}
    of_folder(large, tmp_path / "s", "method=prepacking")
    compared = pairs.compare([read_source("A", str(tmp_path / "r")), read_source("B", str(tmp_path / "s"))])
    assert not compared.pairs
    assert any("model_detail: folder final sha256:" in each.reason for each in compared.unmatched)


def test_weights_replaced_in_a_folder_are_measured_anew(
    saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved("final")
    (first,) = of_folder(folder, tmp_path / "r")
    of_folder(folder, tmp_path / "r")
    assert "already recorded" in capsys.readouterr().err
    saved("final", seed=2)
    (second,) = of_folder(folder, tmp_path / "r")
    assert "already recorded" not in capsys.readouterr().err
    assert first.row.run_id != second.row.run_id
    assert len(pandas.read_csv(report_on(tmp_path / "r").files[0].with_name("summary.csv"))) == 2


def test_a_models_identity_is_its_content_whatever_it_is_called(saved: Callable[..., Path]) -> None:
    a, again, other, deeper = saved("a"), saved("elsewhere/b"), saved("c", seed=2), saved("d", num_hidden_layers=3)
    assert identity.of_folder(a) == identity.of_folder(again)
    assert len({identity.of_folder(folder) for folder in (a, other, deeper)}) == 3
    assert identity.of_folder(a, weights=False) == identity.of_folder(other, weights=False)
    assert identity.of_folder(a, weights=False) != identity.of_folder(deeper, weights=False)


@given(st.integers(0, 99), st.data())
def test_a_large_weight_file_is_told_apart_by_samples(place: int, data: st.DataObject) -> None:
    """Every sample that is sampled counts, and so does the size."""
    import tempfile

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "WHOLE", 1000)
        patch.setattr(identity, "SAMPLE", 10)
        patch.setattr(identity, "SAMPLES", 99)
        folder = Path(name)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        content = bytearray(data.draw(st.binary(min_size=2000, max_size=2000)))
        (folder / "model.safetensors").write_bytes(content)
        before = identity.of_folder(folder)
        content[(len(content) - 10) * place // 99] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        assert identity.of_folder(folder) != before
        (folder / "model.safetensors").write_bytes(content + b"x")
        assert identity.of_folder(folder) != before


def test_shapes_of_one_name_are_told_apart() -> None:
    shapes = [{"num_hidden_layers": layers} for layers in (1, 2)]
    found = [find_model(ModelConfig("mine", weights="random", architecture=shape)).identity for shape in shapes]
    assert found[0] != found[1]
    assert found[0] == find_model(ModelConfig("other", weights="random", architecture=dict(shapes[0]))).identity


def test_threads_make_another_measurement_with_no_ratio_between(measure: Measure, tmp_path: Path) -> None:
    measure("method=prepacking")
    torch.set_num_threads(2)
    (two,) = measure("method=full-batching")
    assert two.row.torch_threads == 2
    found = aggregate.comparisons(records.read_all(tmp_path / "results"))
    assert len(found) == 2
    assert {row.speedup_over_full_batching for each in found for row in each.rows} == {None, 1.0}
    assert sorted(sections_of([*records.read_all(tmp_path / "results")])) == [
        f"{two.row.device_name}, torch threads {count}" for count in (1, 2)
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [("ATEN_CPU_CAPABILITY", "default"), ("ONEDNN_MAX_CPU_ISA", "AVX2"), ("THP_MEM_ALLOC_ENABLE", "0")],
)
def test_variables_that_choose_kernels_are_part_of_what_computed(
    name: str, value: str, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare(tiny_config()).identity
    monkeypatch.setenv(name, value)
    assert machine.software()["environment"] == f"{name}={value}"
    assert prepare(tiny_config()).identity != before


@pytest.mark.parametrize("name", [*machine.software(), "device_name"])
def test_everything_that_computes_is_kept_apart(name: str, measure: Measure, tmp_path: Path) -> None:
    """Also versions of torch and transformers, and what is a column of the machine from now on."""
    kinds = {*parts(MACHINE)} - {"split"}
    assert name in kinds
    assert kinds == {*machine.software(), "device_name"}
    (first,) = measure("method=prepacking")
    (second,) = measure("method=full-batching")
    setattr(second.row, name, 7 if name == "torch_threads" else "another")
    records.write(second, tmp_path / "results")
    assert len(aggregate.comparisons(records.read_all(tmp_path / "results"))) == 2
    assert first.row.speedup_over_full_batching is None


def test_the_authors_numerics_are_told_and_kept_apart(measure: Measure, tmp_path: Path) -> None:
    both = ("methods=[prepacking,full-batching]", "protocol=paper", "repeats=1")
    (ours, _), (theirs, _) = measure(*both), measure(*both, "numerics=authors")
    assert (ours.row.numerics, theirs.row.numerics, theirs.row.other_settings) == (None, "authors", None)
    assert (ours.row.attention, theirs.row.attention) == ("dense mask", "eager, float32 mask per bin")
    assert ours.row.status == theirs.row.status == "ok"
    assert len(aggregate.comparisons(records.read_all(tmp_path / "results"))) == 2


def test_the_authors_sample_is_theirs_by_name_and_is_kept_apart(tiny_config: Callable[..., Config]) -> None:
    rlhf, samsum = (tiny_config(f"dataset={name}", "sample=authors").dataset for name in ("rlhf", "samsum"))
    assert (rlhf.name, rlhf.data_dir, rlhf.split) == ("rlhf", None, "train")
    assert (samsum.name, samsum.split) == ("samsum", "train")
    ours, theirs, again = (
        prepare(tiny_config("num_prompts=40", *more)) for more in ([], ["sample=authors"], ["sample=authors", "seed=1"])
    )
    (row,) = (record.row for record in to_records(Run(theirs), {}))
    assert (row.sample, row.other_settings) == ("authors", None)
    batches = [[batch.tolist() for batch in plan.shuffled] for plan in (ours, theirs, again)]
    assert batches[1] == batches[2] != batches[0]
    assert again.prompts.lengths.tolist() == theirs.prompts.lengths.tolist() != ours.prompts.lengths.tolist()


def test_two_token_budgets_are_two_rows(measure: Measure, tmp_path: Path) -> None:
    for budget in (64, 128, "null"):
        measure("methods=[prepacking,full-batching]", f"max_tokens_per_forward={budget}")
    found = aggregate.comparisons(records.read_all(tmp_path / "results"))
    assert sorted(str(each.rows[0].max_tokens_per_forward) for each in found) == ["128", "64", "None"]
    assert [len(each.rows) for each in found] == [2, 2, 2]


def test_two_attention_kernels_of_one_method_are_two_rows(measure: Measure, tmp_path: Path) -> None:
    (made,) = measure("method=prepacking")
    other = dataclasses.replace(made.row, run_id="other", comparison_id="other", attention_kernel="math")
    records.write(dataclasses.replace(made, row=other), tmp_path / "results")
    (found,) = aggregate.comparisons(records.read_all(tmp_path / "results"))
    assert sorted(str(row.attention_kernel) for row in found.rows) == sorted([str(made.row.attention_kernel), "math"])


def test_a_failed_run_of_a_method_does_not_stand_beside_one_that_did_not_fail(measure: Measure, tmp_path: Path) -> None:
    (made,) = measure("method=prepacking")
    failed = dataclasses.replace(
        made.row, run_id="old", comparison_id="old", status="oom", attention_kernel=None, created_at="2020-01-01"
    )
    records.write(dataclasses.replace(made, row=failed), tmp_path / "results")
    (found,) = aggregate.comparisons(records.read_all(tmp_path / "results"))
    assert ([row.status for row in found.rows], len(found.others)) == (["ok"], 1)


def test_a_method_with_a_kernel_of_its_own_does_not_part_a_run_from_others_of_the_same_work(
    measure: Measure, tmp_path: Path
) -> None:
    measure("methods=[full-batching+dense,prepacking]")
    measure("methods=[full-batching,prepacking]")
    (found,) = aggregate.comparisons(records.read_all(tmp_path / "results"))
    assert {row.method for row in found.rows} == {"full-batching+dense", "full-batching", "prepacking"}


def test_memory_that_ran_out_for_another_model_of_the_name_is_not_held_against_this_one(
    measure: Measure, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    (made,) = measure("method=prepacking")
    for model_hash, status in (("another", "ok"), (made.row.model_hash, "skipped")):
        row = dataclasses.replace(made.row, run_id="smaller", status="oom", batch_size=2, model_hash=model_hash)
        records.write(dataclasses.replace(made, row=row), tmp_path / "results")
        run = Run(prepare(tiny_config("method=prepacking")))
        skip_dominated(run)
        assert run.outcomes[0].status == status


def test_what_is_asked_is_part_of_what_is_the_same(measure: Measure, tmp_path: Path) -> None:
    """A column that says what is asked of every method keeps measurements apart, whichever it is."""
    (made,) = measure("method=full-batching")
    for name in parts(WORK):
        kind = COLUMNS[name].type
        other = dataclasses.replace(made.row, run_id=f"other-{name}", comparison_id=f"other-{name}")
        if name in VALUES:
            value: object = next(each for each in VALUES[name] if each != getattr(made.row, name))
        else:
            value = 77 if "int" in kind else 77.0 if "float" in kind else "another"
        setattr(other, name, value)
        if name == "arrivals":
            other.rate = 1.0
        records.write(dataclasses.replace(made, row=other), tmp_path / "results")
    assert len(aggregate.comparisons(records.read_all(tmp_path / "results"))) == 1 + len(parts(WORK))


def test_a_new_setting_keeps_records_apart_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line adds it. Nobody has to think of the report, of comparing, of resuming or of what is dominated."""

    @dataclasses.dataclass
    class Wider(Config):
        tile: int = 64

    for module in (settings, composing):
        monkeypatch.setattr(module, "Config", Wider)
    for tile in ("64", "128"):
        made = compose([*TINY_OVERRIDES, f"results_dir={tmp_path / tile}", f"tile={tile}", "method=prepacking"])
        run(prepare(made))
    rows = [record.row for record in records.read_all(tmp_path)]
    assert sorted(str(row.other_settings) for row in rows) == ["None", "tile=128"], "the default is as before it was"
    assert len({row.run_id for row in rows}) == 2
    assert len(aggregate.comparisons(records.read_all(tmp_path))) == 2
    compared = pairs.compare([read_source("A", str(tmp_path / "64")), read_source("B", str(tmp_path / "128"))])
    assert not compared.pairs
    assert {each.reason for each in compared.unmatched} >= {"other_settings: none here, tile=128 there"}


def test_every_setting_is_in_the_row_or_says_why_not() -> None:
    for setting in dataclasses.fields(Config):
        assert setting.metadata or setting.name in COLUMNS, f"{setting.name} would only be in other_settings"


def test_every_column_says_what_it_is() -> None:
    for column in COLUMNS.values():
        assert column.kind in {WORK, HOW, MACHINE, SETTING, FIGURE, PROVENANCE}
        assert column.doc
        assert not column.unit or column.kind == FIGURE


def test_a_ratio_across_runs_is_marked_and_has_the_interval_between_runs(measure: Measure, tmp_path: Path) -> None:
    measure("methods=[full-batching,length-ordered]", "repeats=3")
    measure("methods=[padding-free]", "repeats=3")
    (found,) = aggregate.comparisons(records.read_all(tmp_path / "results"))
    by_method = {record.row.method: record for record in found.shown}
    alone, base = by_method["padding-free"], by_method["full-batching"]
    assert alone.row.speedup_across_runs
    assert not by_method["length-ordered"].row.speedup_across_runs
    wanted = stats.between_runs(base.seconds(), alone.seconds(), True)
    assert (alone.row.speedup_over_full_batching, alone.row.speedup_ci_low) == (wanted.value, wanted.low)
    table = comparison_table(found.rows)
    assert [line.rstrip("| ").endswith("§") for line in table.splitlines() if line.startswith("| padding-free")] == [
        True
    ]
    assert "- § over full-batching of another run, with the interval between runs" in table
    assert "- measured in runs of their own, not in turns with the others: padding-free (20" in table


def test_a_table_is_of_one_run_and_a_newer_one_of_fewer_methods_does_not_break_it(
    measure: Measure, tmp_path: Path
) -> None:
    """The baseline of one run stood beside a method of a later one, under "in turns"."""
    whole = measure("methods=[full-batching,prepacking,padding-free]", "metric=ttft")
    later = measure("methods=[prepacking,length-ordered]", "metric=ttft")
    (found,) = aggregate.comparisons(records.read_all(tmp_path / "results"))
    assert {row.method: row.comparison_id == whole[0].row.comparison_id for row in found.rows} == {
        "full-batching": True, "prepacking": True, "padding-free": True, "length-ordered": False,
    }  # fmt: skip
    assert [record.row.run_id for record in found.others] == [later[0].row.run_id]
    summary = report_on(tmp_path / "results").files[0]
    assert len(pandas.read_csv(summary.with_name("summary.csv"))) == 5, "every record is in it"
    assert "1 more measurements of these methods, of other runs" in summary.read_text(encoding="utf-8")


def test_no_section_mixes_runs_and_no_claim_uses_a_ratio_across_them(measure: Measure, tmp_path: Path) -> None:
    same = ["experiment=today", "scale=cpu", "num_prompts=12", "batch_size=4", "ideal=true"]
    measure("methods=[full-batching,prepacking]", *same)
    measure("methods=[padding-free]", *same)
    (sections,) = sections_of([*records.read_all(tmp_path / "results")]).values()
    today = next(section for section in sections if section.name == "today")
    assert sorted(today.table.frame["Method"]) == ["full-batching", "prepacking"]


def test_a_record_of_before_these_columns_is_completed_from_what_it_holds() -> None:
    shipped = Path(__file__).parents[1] / "results" / "shipped" / "cpu-amd-epyc-2-cores"
    folder = next(path for path in sorted(shipped.glob("prepacking-mmlu-llama-15m-*-modern-*")))
    row = records.read(folder).row
    assert (row.torch_version, row.torch_threads, row.max_tokens_per_forward) == ("2.13.0+cpu", 2, 32768)
    assert row.model_hash == find_model(compose(["model=llama-15m", "model.weights=random"]).model).identity


CPU = {"model name": "AMD EPYC", "cpu family": "25", "flags": "fpu avx avx2 fma"}


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (CPU | {"model": "1"}, "AMD EPYC (family 25, model 1, AVX2)"),
        (
            CPU | {"model": "17", "flags": "avx avx2 avx512f avx512_bf16"},
            "AMD EPYC (family 25, model 17, AVX-512, bf16)",
        ),
        (
            {"model name": "Intel(R) Xeon(R)", "cpu family": "6", "model": "143",
             "flags": "avx2 avx512f amx_tile amx_bf16 avx512_bf16"},
            "Intel(R) Xeon(R) (family 6, model 143, AVX-512, AMX, bf16)",
        ),
        (
            {"cpu implementer": "0x41", "cpu part": "0xd40", "features": "fp asimd sve bf16"},
            "aarch64 (implementer 0x41, part 0xd40, SVE, bf16)",
        ),
        ({}, "aarch64"),
    ],
)  # fmt: skip
def test_processors_of_one_name_are_told_apart(facts: dict[str, str], name: str) -> None:
    assert machine.cpu_name(facts, "aarch64") == name


def test_the_folder_of_a_machine_tells_what_its_name_tells() -> None:
    name = machine.device_name(torch.device("cpu"))
    assert machine.machine_slug(torch.device("cpu")) == "cpu-" + places.slug(name)


@pytest.mark.parametrize(
    ("typed", "name", "source"),
    [
        ("dataset.path=own.jsonl", "own.jsonl", "file"),
        ("dataset=file dataset.path=a/mmlu.jsonl", "own-mmlu.jsonl", "file"),
        ("dataset=azure-conv dataset.path=own.csv", "own.csv", "file"),
        ("dataset.profile=a/lengths.csv", "lengths.csv", "profile"),
        ("dataset.source=profile dataset.profile=alpaca", "own-alpaca", "profile"),
        ("dataset.hub_id=me/mmlu", "own-mmlu", "auto"),
        ("dataset.split=train", "own-mmlu", "auto"),
        ("dataset=rlhf dataset.data_dir=null dataset.split=train", "own-rlhf", "auto"),
        ("dataset.source=profile", "mmlu", "profile"),
        ("dataset.source=profile dataset.split=train", "mmlu", "profile"),
        ("dataset.max_tokens=100", "mmlu", "auto"),
    ],
)
def test_prompts_of_ones_own_have_a_name_of_their_own(typed: str, name: str, source: str) -> None:
    config = compose(typed.split())
    assert (config.dataset.name, config.dataset.source) == (name, source)
    assert name == "mmlu" or config.dataset.profile not in {"mmlu", "rlhf", "azure-conv"}


def test_a_file_that_would_not_be_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"dataset\.path: a file is named, but dataset\.source=profile reads none"):
        compose(["dataset.source=profile", "dataset.path=own.jsonl"])


def test_own_lengths_are_judged_by_no_claim_on_mmlu(measure: Measure, tmp_path: Path) -> None:
    (tmp_path / "lengths.csv").write_text("token_length,count\n200,2\n5,60\n", encoding="utf-8")
    measure(
        "experiment=readme_table", "scale=cpu", f"dataset.profile={tmp_path / 'lengths.csv'}", "dataset.source=profile",
        "num_prompts=62", "batch_size=32", "repeats=1",
    )  # fmt: skip
    (sections,) = sections_of([*records.read_all(tmp_path / "results")]).values()
    assert {claim.verdict for section in sections for claim in section.claims} == {"not run"}


def test_prompts_that_were_cut_are_judged_by_no_claim_on_whole_ones(measure: Measure, tmp_path: Path) -> None:
    small = ["experiment=readme_table", "scale=cpu", "num_prompts=64", "batch_size=32", "repeats=1"]
    measure(*small, "dataset.source=profile", "dataset.max_tokens=10")
    (sections,) = sections_of([*records.read_all(tmp_path / "results")]).values()
    assert {claim.verdict for section in sections for claim in section.claims} == {"not run"}
    measure(*small, "dataset.source=profile")
    (sections,) = sections_of([*records.read_all(tmp_path / "results")]).values()
    assert {claim.verdict for section in sections for claim in section.claims} > {"not run"}


def test_what_is_shipped_is_comparable_with_what_the_main_job_measures(tmp_path: Path) -> None:
    """Comparing the one with the other said that nothing could be compared."""
    runs = {name: sweep(name, ["scale=cpu", "device=cpu", f"results_dir={tmp_path}"]) for name in experiments()}
    tasks = agenda.tasks_of(runs, SEARCHES)
    shipped = {
        key(record.row, WORK, HOW) for record in records.read_all(Path(__file__).parents[1] / "results" / "shipped")
    }
    rows = [record.row for task in tasks if not task.searches for record in to_records(Run(task.plans[0]), {})]
    missing = [row.run_id for row in rows if key(row, WORK, HOW) not in shipped and row.method != "vllm"]
    assert len(missing) < len(rows) / 10, missing


@pytest.mark.parametrize(
    ("path", "name"), [("/x/llama-15m", "own-llama-15m"), ("me/llama2-7b", "own-llama2-7b"), ("/x/final", "final")]
)
def test_a_model_of_ones_own_never_has_a_shipped_name(path: str, name: str) -> None:
    assert compose([f"model.path={path}"]).model.name == name


def test_a_shape_of_ones_own_never_has_a_shipped_name() -> None:
    assert compose(["model.architecture.num_hidden_layers=2"]).model.name == "own-llama-15m"
    assert compose([]).model.name == "llama-15m"


@pytest.mark.parametrize(
    "typed",
    ["+bacth_size=4", "++bacth_size=4", "+model.foo=1", "++dataset.foo=1", "bacth_size=4", "+dataset.foo.bar=1"],
)
def test_a_setting_that_there_is_not_is_refused_however_it_is_written(
    typed: str, call: Callable[..., tuple[int, str, str]]
) -> None:
    from src import run as command

    code, _, err = call(command.main, *TINY_OVERRIDES, typed)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"{typed.lstrip('+').split('=')[0].removesuffix('.bar')}: there is no such setting" in err


def test_a_field_that_an_architecture_lacks_is_refused() -> None:
    shape = {"model_type": "llama", "num_hiden_layers": 2}
    with pytest.raises(UserError, match=r"model\.architecture: a llama has no 'num_hiden_layers'"):
        find_model(ModelConfig("mine", weights="random", architecture=shape))


@pytest.mark.parametrize("name", ["prefilling/kernels.cpp", "queueing/waits.py", "workload/traces/azure-code-2023.csv"])
def test_whatever_makes_a_figure_changes_the_hash_of_the_code(name: str, tmp_path: Path) -> None:
    package = tmp_path / "src"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = provenance.code_hash(package)
    assert before == provenance.code_hash()
    (package / "report" / "words.py").write_text("", encoding="utf-8")  # what shows figures makes none
    provenance.code_hash.cache_clear()
    assert provenance.code_hash(package) == before
    (package / name).write_text("", encoding="utf-8")
    provenance.code_hash.cache_clear()
    assert provenance.code_hash(package) != before
