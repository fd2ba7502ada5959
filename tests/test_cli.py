"""The commands as people call them: bad input in one line, exit codes, sweeps, resuming, start-up time."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_OVERRIDES, tiny_model
from launcher import finished

from src import cli, reproduce, run
from src.report import __main__ as report

Call = Callable[..., tuple[int, str, str]]

# ruff: noqa: E501
# What is typed, and the line it must end in. {tmp} is a folder with the files that `bad_files` writes.
BAD_INPUT = [
    ("method=nonsense", "method: unknown 'nonsense'; choose one of full-batching, length-ordered, prepacking"),
    ("methods=[prepacking,nonsense]", "methods: unknown 'nonsense'; choose one of"),
    ("methods=[prepacking,prepacking]", "methods: a method is named twice"),
    ("methods=[]", "methods: the list is empty"),
    ("dataset=nonsense", "dataset: unknown 'nonsense'; choose one of alpaca, azure-code"),
    ("model=nonsense", "model: unknown 'nonsense'; choose one of llama-110m, llama-15m"),
    ("experiment=nonsense", "experiment: unknown 'nonsense'; choose one of batch_cost, batch_invariance, bench_today, bench_traces, dataset_level, "),
    ("metric=latency", "metric: unknown 'latency'; choose one of prefill, ttft"),
    ("protocol=fair", "protocol: unknown 'fair'; choose one of paper, modern"),
    ("protocol=paper method=vllm", "protocol: vllm does not do what the authors' code does; use protocol=modern"),
    ("loadbit=4 method=vllm", "loadbit: vllm is measured with plain weights only"),
    ("device_map=wide", "device_map: unknown 'wide'; choose one of auto, sequential"),
    ("device_map=auto", "forward: fused serves a model on one device; use forward=transformers with device_map"),
    ("device_map=auto forward=transformers", "device_map: auto splits a model over GPUs, and this runs on a CPU; use null"),
    ("device_map=auto method=continuous-batching", "device_map: continuous-batching is measured on one device"),
    ("forward=fast", "forward: unknown 'fast'; choose one of fused, compiled, graphs, transformers"),
    ("max_tokens_per_forward=0", "max_tokens_per_forward: 0 is too small"),
    ("packing=best", "packing: unknown 'best'; choose one of ffd, binpacking, optimal"),
    ("dtype=float64", "dtype: unknown 'float64'; choose one of auto, float32"),
    ("loadbit=2", "loadbit: unknown '2'; choose one of none, 4, 8"),
    ("device=tpu", "device: unknown 'tpu'; choose one of auto, cpu, cuda"),
    ("batch_size=0", "batch_size: 0 is too small; give a whole number of 1 or more"),
    ("batch_size=-4", "batch_size: -4 is too small"),
    ("batch_size=many", "batch_size: Value 'many' of type 'str' could not be converted to Integer; give a whole number"),
    ("batch_size=5000", "batch_size: 5000 is larger than the data (num_prompts=12)"),
    ("num_prompts=0", "num_prompts: 0 is too small"),
    ("repeats=0", "repeats: 0 is too small"),
    ("max_repeats=0", "max_repeats: 0 is too small"),
    ("precision=0.01 max_repeats=1", "max_repeats: 1 is fewer than repeats=2"),
    ("precision=0", "precision: 0.0; give a share between 0 and 1"),
    ("noise_floor=-1", "noise_floor: -1.0; give a share from 0 to below 1"),
    ("warmup=-1", "warmup: -1 is too small"),
    ("verify_batches=0", "verify_batches: 0 is too small"),
    ("generate_tokens=-1", "generate_tokens: -1 is too small"),
    ("seed=-1", "seed: -1 is too small"),
    ("seed=18446744073709551616", "seed: 18446744073709551616 is too large; give a whole number below 2**63"),
    ("methods=prepacking,full-batching", "methods: several values; write methods=[prepacking,full-batching] where the"),
    ("dataset.path=a,b.jsonl", "dataset.path: a comma in a name; quote it twice: \"dataset.path='a,b.jsonl'\""),
    ("sampler_interval_s=0", "sampler_interval_s: 0.0 s; give 0.01 to 10 seconds"),
    ("numerics=authors", "numerics: authors, but protocol=modern does not do what their code does; add protocol=paper"),
    ("numerics=theirs", "numerics: unknown 'theirs'; choose one of own, authors"),
    ("faults=[nonsense]", "faults: unknown 'nonsense'; choose one of reference, no-sync"),
    ("faults=[sort-by-characters]", "faults: sort-by-characters needs prompts with text"),
    ("timeout_s=-1", "timeout_s: -1 s; give seconds above 0"),
    ("timeout_s=nan", "timeout_s: nan s; give seconds above 0"),
    ("timeout_s=5", "timeout_s: needs a process of its own; leave out isolate=false"),
    ("memory_limit_mb=0", "memory_limit_mb: 0 is too small"),
    ("memory_limit_mb=500", "memory_limit_mb: needs a process of its own"),
    ("utilization_loop_s=-1", "utilization_loop_s: -1.0 s; give 0 (off) to 600 seconds"),
    ("sampler_overhead_s=nan", "sampler_overhead_s: nan s; give 0 (off) to 60 seconds"),
    ("bacth_size=4", "bacth_size: there is no such setting"),
    ("++bacth_size=4", "bacth_size: there is no such setting"),
    ("+model.wieghts=random", "model.wieghts: there is no such setting"),
    ("model.wieghts=random", "model.wieghts: there is no such setting"),
    ("model.weights=local", "model.weights: unknown 'local'; choose one of auto, hub, package, random"),
    ("model.weights=hub", "model.weights: hub, but tiny has no hub id"),
    ("model.path=./no-such-folder model.weights=hub", "model.path: there is no folder './no-such-folder'"),
    ("model.path=nobody/nothing model.revision=v1 model.weights=hub", "model.path: nobody/nothing@v1: HF_HUB_OFFLINE is set and"),
    ("model.path={tmp}/gpt2 model.weights=auto", "model.path: models of the family 'gpt2' are not measured here"),
    ("model.path={tmp} model.weights=auto", "model.path: {tmp} could not be loaded"),
    ("model.architecture.num_attention_heads=7", "is not a multiple of the number of attention heads"),
    ("+model.architecture.num_hiden_layers=7", "model.architecture: a llama has no 'num_hiden_layers'"),
    ("model.architecture.model_type=lama", "model.architecture: models of the family 'lama' are not measured here"),
    ("loadbit=4", "loadbit: 4-bit weights need sizes that are multiples of 64; this model's hidden_size is 32"),
    ("dataset.source=magic", "dataset.source: unknown 'magic'; choose one of auto, hub, file, shipped, profile"),
    ("dataset.source=profile dataset.profile=nonsense", "dataset.profile: there is no 'nonsense'; choose one of alpaca"),
    ("dataset.source=profile dataset.profile={tmp}/table.csv", "dataset.profile: table.csv is not a length profile"),
    ("dataset=azure-code dataset.source=hub", "dataset.source: 'azure-code' is not on the hub"),
    ("dataset.source=hub dataset.hub_id=samsum", "does not hold it (knkarthick/samsum replaces it)"),
    ("dataset=azure-code dataset.source=profile", "dataset.max_tokens: a prompt of"),
    ("dataset=file dataset.source=file", "dataset.path"),
    ("dataset=file dataset.source=file dataset.path={tmp}/absent.jsonl", "dataset.path: there is no file"),
    ("dataset=file dataset.source=file dataset.path={tmp}/empty.jsonl", "dataset.path: 'empty.jsonl' is empty"),
    ("dataset=file dataset.source=file dataset.path={tmp}/notes.docx", "dataset.path: 'notes.docx' is a zip archive"),
    ("dataset=file dataset.source=file dataset.path={tmp}/text.parquet", "dataset.path: 'text.parquet' holds no prompts as it is"),
    ("dataset=file dataset.source=file dataset.path={tmp}/text.jsonl", "dataset.path: 'text.jsonl' holds no prompts as it is"),
    ("dataset=file dataset.source=file dataset.path={tmp}/table.csv dataset.text_field=text", "dataset.text_field: table.csv has no field 'text'; "
     "choose one of question, number"),
    ("dataset=file dataset.source=file dataset.path={tmp}/table.csv dataset.text_field=number", "dataset.text_field: 'number'"),
    ("dataset=file dataset.source=file dataset.path={tmp}/blank.txt", "dataset.path: all records of blank.txt are empty; check dataset.text_field"),
    ("dataset=file dataset.source=file dataset.path={tmp}/commas.csv dataset.text_field=question", "dataset.path: 'commas.csv' holds no prompts as it is (line 3: it has 3 fields separated by commas, the header 2"),
    ("dataset=mmlu dataset.source=profile dataset.path={tmp}/table.csv", "dataset.path: a file is named, but dataset.source=profile reads none; add dataset.source=file"),
    ("dataset.source=profile dataset.profile={tmp}/counts.csv", "dataset.profile: counts.csv is not a length profile (it counts 1,000,000,000,000 prompts"),
    ("results_dir={tmp}/words.txt/inside", "results_dir: cannot write to"),
    ("results_dir=/proc/results", "results_dir: cannot write to '/proc/results'"),
    ("scale=null", "scale: it cannot be null; leave it out for its default"),
    ("scale=huge", "scale: unknown 'huge'; choose one of auto, cpu, gpu"),
    ("model=null", "settings: a group cannot be set to null; leave it out"),
    ("nonsense", "nonsense: arguments have the form setting=value"),
    ("experiment=[1,2]", "experiment: '[1,2]' is no name; choose one of bat"),
    ("experiment=1.5", "experiment: '1.5' is no name; choose one of bat"),
    ("model={{a:1}}", "model: '{{a:1}}' is no name; choose one of"),
    ("dataset=true", "dataset: 'true' is no name; choose one of alpaca, "),
    ("methods=[[1]]", "methods: [1] is no name; give names, with commas between them"),
    ("faults=[[1]]", "faults: [1] is no name; give names, with commas between them"),
    ("timeout_s=inf isolate=true", "timeout_s: inf s; give seconds above 0, 31,536,000 at most, or null for no limit"),
    ("warmup=99999999999999999999999", "warmup: 99999999999999999999999 is too large; give a whole number of 1,000,000,000 at most"),
    ("memory_limit_mb=99999999999999999999999 isolate=true", "memory_limit_mb: 99999999999999999999999 is too large"),
    ("dataset.authors={{a:1}}", "dataset.authors: is what sample=authors sets, and stands in the datasets' own files"),
    ("dataset=file dataset.source=file dataset.path={tmp}/ids.jsonl", "token ids are whole numbers from 0, below 2**31"),
    ("dataset=file dataset.source=file dataset.path={tmp}/outputs.jsonl", "'1e+300' is too large a number"),
    ("dataset=file dataset.source=file dataset.path={tmp}/times.jsonl", "dataset.path: of 'timestamp' some are dates and some are numbers; give all in one way"),
    ("model.path={tmp}/seven model.weights=auto", "The hidden size (64) is not a multiple of the number of attention heads (7)"),
]  # fmt: skip


@pytest.fixture
def bad_files(tmp_path: Path) -> Path:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.docx").write_bytes(b"PK\x03\x04 and more")
    (tmp_path / "text.parquet").write_text("not parquet at all", encoding="utf-8")
    (tmp_path / "text.jsonl").write_text("just some\nlines of text\n", encoding="utf-8")
    (tmp_path / "table.csv").write_text("question,number\nWhat is it?,1\nWhy is it?,2\n", encoding="utf-8")
    (tmp_path / "blank.txt").write_text("\n  \n\n", encoding="utf-8")
    (tmp_path / "commas.csv").write_text("question,number\nWhat?,1\nWhat, then?,2\n", encoding="utf-8")
    (tmp_path / "counts.csv").write_text("token_length,count\n5,1000000000000\n", encoding="utf-8")
    (tmp_path / "ids.jsonl").write_text("[99999999999999999999]\n", encoding="utf-8")
    (tmp_path / "outputs.jsonl").write_text('{"input_length": 5, "output_length": 1e300}\n', encoding="utf-8")
    moments = ('"2024-05-10T00:00:01"', "3")
    lines = (f'{{"input_length": 5, "output_length": 1, "timestamp": {each}}}\n' for each in moments)
    (tmp_path / "times.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "seven").mkdir()
    shape = '{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 7}'
    (tmp_path / "seven" / "config.json").write_text(shape, encoding="utf-8")
    (tmp_path / "words.txt").write_text("one\ntwo\n\n", encoding="utf-8")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("typed", "expected"), BAD_INPUT, ids=[typed for typed, _ in BAD_INPUT])
def test_bad_input_ends_in_one_line_and_exit_code_2(typed: str, expected: str, bad_files: Path, call: Call) -> None:
    results = bad_files / "results"
    arguments = [*TINY_OVERRIDES, f"results_dir={results}", *typed.format(tmp=bad_files).split(" ")]
    before = set(bad_files.rglob("*"))
    code, out, err = call(run.main, *arguments)
    lines = err.strip().splitlines()
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert expected.format(tmp=bad_files) in lines[0]
    assert "Traceback" not in out + err
    assert set(bad_files.rglob("*")) == before


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="this machine has a CUDA GPU")
def test_a_gpu_that_is_not_there_is_said(call: Call, tmp_path: Path) -> None:
    code, _, err = call(run.main, *TINY_OVERRIDES, "device=cuda", f"results_dir={tmp_path}")
    assert code == 2
    why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA GPU"
    assert err == f"error: device: 'cuda' asked, but {why}; use device=cpu or device=auto\n"
    code, _, err = call(reproduce.main, "scale=gpu", f"results_dir={tmp_path}")
    assert code == 2
    assert err.startswith("error: device: 'cuda' asked")


def test_bad_arguments_of_the_other_commands(call: Call, tmp_path: Path) -> None:
    for main, typed, expected in (
        (report.main, "results_dir=" + str(tmp_path / "absent"), "results_dir: there is no folder"),
        (
            report.main,
            "result_dir=x",
            "result_dir: there is no such setting; `python -m src.report --help` lists them all",
        ),
        (report.main, "results_dir.x=1", "results_dir.x: there is no such setting"),
        (reproduce.main, "slurm.partition=gpu", "slurm: has no effect here; add launcher=slurm"),
        (report.main, "x", "x: arguments have the form setting=value"),
        (reproduce.main, "scale=huge", "scale: unknown 'huge'; choose one of auto, cpu, gpu"),
        (reproduce.main, "smoke=perhaps", "smoke: Value 'perhaps'"),
    ):
        code, _, err = call(main, typed)
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert expected in err


def test_a_configuration_that_is_not_yaml_is_named_with_its_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("name: [mine\nshipped: }\n", encoding="utf-8")
    code, _, err = call(run.main, "--config-dir", str(tmp_path), "dataset=mine")
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert f"error: {tmp_path}/dataset/mine.yaml, line 2: this is not YAML" in err


def test_a_current_folder_that_is_gone_is_said(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, _, err = call(report.main)
    assert (code, err) == (2, "error: current folder: it was removed; change to one that exists\n")


def test_a_full_disk_is_said_and_other_errors_of_files_are_not_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write(number: int) -> None:
        raise OSError(number, os.strerror(number), "/tmp/draft")

    assert cli.guarded(lambda: write(errno.ENOSPC)) == 2
    assert capsys.readouterr().err == "error: /tmp/draft: No space left on device; make room, or set TMPDIR\n"
    with pytest.raises(OSError, match="Input/output"):
        cli.guarded(lambda: write(errno.EIO))


def test_a_run_prints_the_authors_columns(call: Call, tmp_path: Path) -> None:
    methods = "methods=[prepacking,full-batching,length-ordered]"
    code, out, _ = call(run.main, *TINY_OVERRIDES, methods, f"results_dir={tmp_path}")
    assert code == 0
    header = next(line for line in out.splitlines() if line.startswith("| Method"))
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        "Method", "Avg Prefill time /batch (s)", "Max util (%)", "Peak memory (MB)", "Mean util (%)", "Std time (s)",
        "Max util, std over repeats (%)", "Mean util, std over repeats (%)", "ms / prompt", "Speedup over full-batching",
    ]  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 3
    lines = out.splitlines()
    answer, in_order, *doubts, records = lines[next(n for n, line in enumerate(lines) if " of the time of " in line) :]
    assert re.match(r"prepacking takes \d+ % of the time of full-batching: \d+\.\d\dx", answer)
    assert "; it computes " in answer
    assert in_order.startswith("per prompt: ")
    assert all(line.startswith("INVALID") for line in doubts)
    assert records == f"records: {tmp_path}"


def test_multirun_sweeps_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    working = tmp_path / "working"
    working.mkdir()
    done = finished("--multirun", *TINY_OVERRIDES, "batch_size=2,4", f"results_dir={tmp_path / 'r'}", cwd=working)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name.split("-b")[1].split("-")[0] for path in (tmp_path / "r").iterdir()) == ["2", "4"]
    assert not list(working.iterdir())


def test_a_sweep_goes_on_after_a_bad_value_and_says_so(call: Call, tmp_path: Path) -> None:
    code, _, err = call(run.main, "--multirun", *TINY_OVERRIDES, "batch_size=4,0,2", f"results_dir={tmp_path}")
    assert code == 2
    assert "batch_size: 0 is too small" in err
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("program", ["src.run", "src.reproduce", "src.report"])
def test_help_comes_without_torch_in_about_a_second(program: str) -> None:
    # -X importtime lists every imported module on standard error.
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", program, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert time.perf_counter() - start < 10
    assert done.returncode == 0
    assert "results_dir" in done.stdout
    modules = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "omegaconf" in modules
    assert not {"torch", "transformers", "pandas", "scipy", "matplotlib"} & modules


def test_reproduce_measures_then_goes_on_from_what_is_recorded(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.measure.runner.load_model", lambda *_: tiny_model(vocab_size=32_000))
    monkeypatch.setattr("src.compose.where_installed", lambda _package, _here, elsewhere: elsewhere)
    arguments = ("scale=cpu", "smoke=true", "experiment=readme_table,generation", f"results_dir={tmp_path}")
    code, out, _ = call(reproduce.main, *arguments)
    assert code == 0
    assert "cpu scale on" in out
    assert re.search(r"\n  readme_table: 1 comparison, about \d+ s\n  generation: 1 comparison, about \d+ s\n", out)
    assert re.search(r"all of it, with the report: about \d+ s\n\n== generation\n", out)
    for metric, model in (("Prefill", "llama-8m"), ("TTFT", "llama-15m")):
        assert f"{metric}, paper protocol: mmlu (real token lengths, random ids), {model}" in out
    report = (tmp_path / "report" / "summary.md").read_text(encoding="utf-8")
    assert "Generation goes on from the packed cache as from an ordinary one" in report
    assert (tmp_path / "report" / "report.html").is_file()
    records = [path for path in tmp_path.iterdir() if (path / "record.json").is_file()]
    assert len(records) == 6
    (records[0] / "record.json").unlink()
    report_folder = tmp_path / "report"
    told = [
        r"  not run        Prepacking takes larger batches than full-batching .* \(paper: up to 16x\)\n",
        r"  holds          Generation goes on from the packed cache as from an ordinary one: \d+ tokens",
        r"\nWhat prepacking is worth here.*\n  over full-batching  .*\n  over others  .*\n  in memory  .*\n\n",
        rf"\npage: {report_folder}/report.html\nfiles: \d+ tables and figures \(CSV, MD, TEX, PNG, SVG\) in {report_folder}\n$",
    ]
    assert [pattern for pattern in told if not re.search(pattern, out)] == []
    opened: list[Path] = []
    monkeypatch.setattr("src.jobs.reproducing.open_page", opened.append)
    code, out, _ = call(reproduce.main, *arguments, "open=true")
    assert code == 0
    assert opened == [report_folder / "report.html"]
    assert out.count(": 1 comparison, about") == 1
    assert out.count(": 1 comparison, 1 of them recorded already\n") == 1


def test_reproduce_refuses_an_experiment_that_there_is_not(call: Call, tmp_path: Path) -> None:
    code, _, err = call(reproduce.main, "experiment=today,tomorrow", f"results_dir={tmp_path / 'results'}")
    assert code == 2
    assert err.startswith(
        "error: experiment: unknown 'tomorrow'; choose all, or of batch_cost, batch_invariance, bench_today, "
    )
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_promptly_and_says_how_to_go_on(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("src.measure.runner.load_model", interrupt)
    code, _, err = call(run.main, *TINY_OVERRIDES, f"results_dir={tmp_path}")
    assert code == 130
    assert err.endswith("stopped; nothing was recorded\n")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_after_a_record_says_that_it_is_kept(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from src.measure import runner

    real = runner.load_model

    def interrupt_the_second(*arguments: object) -> object:
        if list(tmp_path.iterdir()):
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "load_model", interrupt_the_second)
    code, _, err = call(run.main, "--multirun", *TINY_OVERRIDES, "seed=0,1", f"results_dir={tmp_path}")
    assert code == 130
    assert "stopped; what was recorded is kept, and the same command goes on from there" in err


@pytest.mark.parametrize("order", [("--multirun", 1), ("-m", 8)])
def test_flags_may_stand_between_settings(order: tuple[str, int], call: Call, tmp_path: Path) -> None:
    flag, place = order
    arguments = [*TINY_OVERRIDES, "seed=0,1", f"results_dir={tmp_path}"]
    code, out, err = call(run.main, *arguments[:place], flag, *arguments[place:])
    assert code == 0, err
    assert out.count("records: ") == 2


def test_output_that_the_terminal_has_no_letters_for_loses_nothing(tmp_path: Path) -> None:
    """The table's signs are not in Latin 1: it ended in an error after everything had been measured."""
    isolated = [each for each in TINY_OVERRIDES if each != "isolate=false"]
    arguments = [*isolated, "methods=[prepacking,full-batching]", "repeats=1", f"results_dir={tmp_path}"]
    done = subprocess.run(  # by the child, whose output is the parent's
        [sys.executable, "-m", "src.run", *arguments], cwd=ROOT, capture_output=True, timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode("latin-1")
    assert not re.search(rb"[\r\x1b]", done.stdout + done.stderr)  # of a line that only a terminal redraws
    assert "| prepacking " in done.stdout.decode("latin-1")
    reported = subprocess.run(
        [sys.executable, "-m", "src.report", f"results_dir={tmp_path}"], cwd=ROOT, capture_output=True, timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "nonsense"},
    )  # fmt: skip
    assert reported.returncode == 0, reported.stderr.decode()
    assert (tmp_path / "report" / "time_per_batch.png").is_file()


def test_the_shipped_real_questions_run_with_the_real_tokenizer(tmp_path: Path) -> None:
    arguments = ("num_prompts=32", "batch_size=16", "repeats=1", "model=llama-8m", f"results_dir={tmp_path}")
    done = finished("method=prepacking", "dataset=mmlu", *arguments)
    assert done.returncode == 0, done.stderr
    assert "using the real prompts that come with the program" in done.stderr
    assert "mmlu (shipped real texts), llama-8m" in done.stdout
    assert "| prepacking |" in done.stdout
