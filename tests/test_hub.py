"""What the hub's absence, refusals and answers become. A small hub on this machine stands in for it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY_OVERRIDES, command, tiny_model
from mirror import STRANGER, TOKEN, repository, serve

from src import hub

CARD = b"---\nconfigs:\n- config_name: all\n  data_files:\n  - split: test\n    path: data/test-*\n---\nQuestions.\n"
MODEL, DATA = (
    "model.weights=hub model.path=tiny/",
    "dataset.source=hub dataset.text_field=question dataset.hub_id=tiny/",
)
SHORT = [*TINY_OVERRIDES, "repeats=1", "warmup=0", "verify_batches=1", "num_prompts=8", "batch_size=8"]
# Measures for each line of settings that comes in: a process of its own for each would mostly import.
SEVERAL = """
import contextlib, copy, gc, io, json, os, sys, time
from src import cli, compose, hub
from src.jobs import worker
common, cases = json.load(sys.stdin)
base = compose.compose(common)
gc.freeze()
for typed, environment in cases:
    cli.warn.cache_clear()
    os.environ.update(environment)
    if "HF_ENDPOINT" in environment:
        hub.absence.cache_clear()
    asked = copy.deepcopy(base)
    for key, value in (word.split("=") for word in typed.split()):
        group, _, name = key.rpartition(".")
        setattr(getattr(asked, group) if group else asked, name, value)
    start, err = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            code = worker.measure_and_print(asked)
        except cli.BAD_INPUT as error:
            code = cli.report(error)
    print(json.dumps([code, err.getvalue(), time.perf_counter() - start]))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model as its repository holds it, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<unk>": 0} | {f"w{i}": i for i in range(3, 211)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def questions(seed: int) -> dict[str, bytes]:
    """A dataset as its repository holds it."""
    rng = random.Random(seed)
    texts = [" ".join(f"w{rng.randint(3, 210)}" for _ in range(rng.randint(2, 40))) for _ in range(20)]
    lines = "".join(json.dumps({"question": text}) + "\n" for text in texts)
    return {"README.md": CARD, "data/test-00000.jsonl": lines.encode()}


def environment(endpoint: str, home: Path, **others: str) -> dict[str, str]:
    paths = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_DATASETS_CACHE": str(home / "datasets")}
    return {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""} | paths | others


def rows(results: Path) -> list[dict[str, Any]]:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*/record.json"))]
    return sorted((record["row"] for record in records), key=lambda row: str(row["dataset_detail"]))


def several(cases: list[tuple[str, dict[str, str]]], **known: str) -> list[tuple[int, str, float]]:
    """Exit code, standard error and seconds of each case: settings, and environment variables."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL],
        input=json.dumps([SHORT, cases]),
        env=os.environ | known,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_model_and_a_dataset_of_the_hub_are_pinned_and_kept_for_work_offline(
    weights: dict[str, bytes], tmp_path: Path
) -> None:
    model = repository(weights, cut={"model.safetensors": (9000, 1)})  # the download breaks off once, and goes on
    data = repository(questions(1), questions(2))
    typed = f"{MODEL}model {DATA}data model.revision=v1 results_dir={tmp_path}"
    choices = "dataset.hub_config=null dataset.data_dir=null,data dataset.revision=v1,main"
    with serve({"models/tiny/model": model, "datasets/tiny/data": data}) as mirror:
        known = environment(mirror.url, tmp_path / "home")
        done = command("src.run", "--multirun", *SHORT, *f"{typed}/online {choices}".split(), **known)
        assert done.returncode == 0, done.stderr
    online = rows(tmp_path / "online")
    commits = [data.refs["v1"], data.refs["main"]]
    assert [row["dataset_detail"] for row in online] == sorted(f"tiny/data@{commit} test" for commit in commits * 2)
    assert {row["model_detail"] for row in online} == {f"tiny/model@{model.refs['v1']}"}
    assert {(row["weights_source"], row["dataset_source"], row["tokenizer"]) for row in online} == {
        ("hub", "hub", "tiny/model")
    }
    assert {row["dataset"] for row in online} == {"data"}  # not the shipped one that it was made from
    again = f"{typed}/offline dataset.name=data dataset.revision="
    said = several(
        [(f"{again}{asked}", {}) for asked in ("v1", "main", "v1 dataset.data_dir=data", "v3")],
        **known | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    assert [code for code, _, _ in said] == [0, 0, 0, 2], said
    assert said[-1][1].splitlines() == [
        "error: dataset.source: tiny/data@v3: HF_HUB_OFFLINE is set and the cache does not hold it; "
        "use dataset.source=profile or dataset.source=file"
    ]
    offline, columns = rows(tmp_path / "offline"), ("dataset_detail", "model_detail", "workload_fingerprint")
    assert len(offline) == 3
    assert {tuple(row[name] for name in columns) for row in offline} == {
        tuple(row[name] for name in columns) for row in online
    }


PROFILE, RANDOM = "dataset.source=profile", "model.weights=random"
# What is typed, and the error that the run ends in.
# ruff: noqa: E501
REFUSALS = {
    f"{MODEL}private {PROFILE}": "model.path: the hub has no 'tiny/private' that you may see; check the id, or log in with `hf auth login` if it is private, use model.weights=random or a local folder",
    f"{MODEL}none {PROFILE}": "model.path: the hub has no 'tiny/none' that you may see; check the id",
    f"{MODEL}gated {PROFILE}": "model.path: tiny/gated is gated; accept its licence on the hub ({url}/tiny/gated) and log in with `hf auth login`, use model.weights=random or a local folder",
    f"{MODEL}forbidden {PROFILE}": "model.path: tiny/forbidden: your token may not read it; log in with one that may, or use",
    f"{MODEL}model model.revision=v9 {PROFILE}": "model.revision: tiny/model has no revision 'v9'; name a commit, tag or branch",
    f"{MODEL}empty {PROFILE}": "model.path: tiny/empty: it holds no config.json; name a model",
    f"{MODEL}cut {PROFILE}": "model.path: tiny/cut: the download broke off; start again",
    f"{MODEL}slow {PROFILE}": "model.path: tiny/slow: {url} did not answer in time; try later, raise HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT (seconds), or use model.weights=random or a local folder",
    f"{MODEL}model model.path=decapoda-research/llama-7b-hf {PROFILE}": "model.path: the hub has no 'decapoda-research/llama-7b-hf' that still loads (huggyllama/llama-7b replaces it); take that, or use",
    f"{MODEL}speechless {DATA}data": "model.path: tiny/speechless: {url} did not answer in time; try later",
    f"{RANDOM} {DATA}private": "dataset.source: the hub has no 'tiny/private' that you may see; check the id, or log in with",
    f"{RANDOM} {DATA}gated": "dataset.source: tiny/gated is gated; accept its licence on the hub ({url}/datasets/tiny/gated) and log in with `hf auth login`, use dataset.source=profile",
    f"{RANDOM} {DATA}data dataset.revision=v9": "dataset.revision: tiny/data has no revision 'v9'; name a commit, tag or branch",
    f"{RANDOM} {DATA}data dataset.split=train": "dataset.split: tiny/data could not be loaded (ValueError: Unknown split",
    f"{RANDOM} {DATA}data dataset.hub_config=some": "dataset.hub_config: tiny/data could not be loaded (ValueError: BuilderConfig 'some' not found. Available: ['all']",
    f"{RANDOM} {DATA}empty": "dataset.source: tiny/empty could not be loaded (",
    f"{RANDOM} {DATA}slow": "dataset.source: tiny/slow: {url} did not answer in time; try later",
    f"{RANDOM} {DATA}data dataset.hub_id=samsum": "dataset.source: the hub has no 'samsum' that still loads (knkarthick/samsum replaces it); take that, or use dataset.source=profile",
    f"{RANDOM} {DATA}data dataset.hub_id=lukaemon/mmlu": "(cais/mmlu replaces it)",
}  # fmt: skip


@pytest.mark.slow
def test_what_the_hub_refuses_ends_in_one_line_and_never_in_something_else(
    weights: dict[str, bytes], tmp_path: Path
) -> None:
    asked = {name: repository(weights) for name in ("model", "cut", "slow", "speechless")}
    asked["cut"].cut["model.safetensors"] = 9000, 99
    asked["slow"].slow = frozenset({"model.safetensors"})
    asked["speechless"].slow = frozenset({"tokenizer.json"})
    repositories = {f"models/tiny/{name}": found for name, found in asked.items()}
    for access in ("private", "gated", "forbidden"):
        repositories[f"models/tiny/{access}"] = repository(weights, access=access)
        repositories[f"datasets/tiny/{access}"] = repository(questions(1), access=access)
    repositories |= {f"{kind}/tiny/empty": repository({"README.md": b"Soon."}) for kind in ("models", "datasets")}
    repositories["datasets/tiny/data"] = repository(questions(1))
    repositories["datasets/tiny/slow"] = repository(questions(1), slow=frozenset({"data/test-00000.jsonl"}))
    repositories["datasets/lukaemon/mmlu"] = repository({"README.md": b"A script.", "mmlu.py": b"raise SystemExit"})
    either = "model.weights=auto model.path=tiny/gated dataset.source=auto dataset.hub_id=tiny/private dataset.name=own"
    allowed = f"{MODEL}gated {DATA}private"
    cases: list[tuple[str, dict[str, str]]] = [
        *((typed, {}) for typed in REFUSALS),
        (f"{MODEL}gated {PROFILE}", {"HF_TOKEN": STRANGER}),
        (f"{MODEL}model {PROFILE}", {"HF_TOKEN": "hf_mistyped"}),
        (either, {"HF_TOKEN": ""}),
        (allowed, {"HF_TOKEN": TOKEN}),
        (f"{RANDOM} dataset.source=hub", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ]
    results = [tmp_path / str(number) for number in range(len(cases))]
    with serve(repositories) as mirror:
        known = environment(mirror.url, tmp_path / "home", HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1")
        placed = [
            (f"{typed} results_dir={folder}", changed) for folder, (typed, changed) in zip(results, cases, strict=True)
        ]
        said = several(placed, **known)
    expected = [*(line.format(url=mirror.url) for line in REFUSALS.values()), "tiny/gated is gated", "mend HF_TOKEN"]
    for (typed, _), (code, err, seconds), line, folder in zip(cases[:-3], said[:-3], expected, results, strict=False):
        assert (code, len(err.splitlines())) == (2, 1), f"{typed}: {err}"
        assert err.startswith("error: ")
        assert line in err, typed
        assert seconds < 30, typed
        gated = "is gated" in line
        assert [row["status"] for row in rows(folder)] == ["gated"] * gated, typed
    assert not list((tmp_path / "home").rglob("models--tiny--cut/snapshots/*/model.safetensors"))
    assert not list((tmp_path / "home").rglob("*.incomplete"))

    code, err, _ = said[-3]
    assert code == 0, err
    assert [line for line in err.splitlines() if line.startswith("note: ")] == [
        "note: model.path: tiny/gated is gated; using random weights of tiny's published shape",
        "note: dataset.source: the hub has no 'tiny/private' that you may see; using the length profile 'mmlu'",
    ]
    assert [(row["weights_source"], row["dataset_source"]) for row in rows(results[-3])] == [("random", "profile")]
    code, err, _ = said[-2]
    assert code == 0, err
    assert [(row["weights_source"], row["dataset_source"]) for row in rows(results[-2])] == [("hub", "hub")]
    code, err, seconds = said[-1]
    assert (code, seconds < hub.PROBE_SECONDS + 5) == (2, True)
    assert err.splitlines() == [
        "error: dataset.source: cais/mmlu: http://127.0.0.1:9 cannot be reached and the cache does not hold it; "
        "use dataset.source=profile or dataset.source=file"
    ]


def probe(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> str | None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub, "_bound_waiting", lambda: None)  # other tests share this process
    hub.absence.cache_clear()
    try:
        return hub.absence()
    finally:
        hub.absence.cache_clear()


def test_a_hub_that_answers_anything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({}) as mirror:
        assert probe(monkeypatch, f"{mirror.url}/refused") is None


def test_a_hub_that_does_not_answer_is_known_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.perf_counter()
    assert probe(monkeypatch, "http://127.0.0.1:9") == "http://127.0.0.1:9 cannot be reached"
    assert time.perf_counter() - start < hub.PROBE_SECONDS + 2
