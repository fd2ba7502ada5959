"""Where prompts come from: a hub dataset, a local file, or a real dataset's length profile. All end as token ids."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src import hub
from src.cli import UserError, warn
from src.config import DatasetConfig
from src.workload.tokenizer import Tokenizer

PROFILE_DIR = Path(__file__).parent / "length_profiles"
FILE_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
FIRST_ORDINARY_TOKEN = 3  # ids below are <unk>, <s>, </s> in the Llama and Mistral vocabularies
BEGIN_OF_SEQUENCE = 1
SAID = {  # by datasets, where it is another setting that is wrong
    "Unknown split": "dataset.split",
    "BuilderConfig": "dataset.hub_config",
    "Config name is missing": "dataset.hub_config",
}

TokenIds = NDArray[np.int64]


@dataclass(frozen=True)
class Prompts:
    """Prompts in sampled order.

    Attributes:
        token_ids: one int64 array [length] per prompt, none empty.
        texts: the prompts' texts, None where they were drawn from a length profile.
        source: ``hub``, ``file`` or ``profile``.
        detail: which one exactly: hub id and revision, file name and hash, or profile.
        tokenizer: what turned text into token ids, None for a length profile.
    """

    token_ids: list[TokenIds]
    texts: list[str] | None
    source: str
    detail: str
    tokenizer: Tokenizer | None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each prompt, int64 [n]."""
        return np.array([len(ids) for ids in self.token_ids], dtype=np.int64)


def load_prompts(
    dataset: DatasetConfig, num_prompts: int, seed: int, vocab_size: int, make_tokenizer: Callable[[], Tokenizer]
) -> Prompts:
    """Sample ``num_prompts`` prompts, seeded; all of them, with a note, where the dataset holds fewer.

    As in the paper (section 4), texts of one word or less are dropped before sampling.

    Raises:
        UserError: the dataset cannot be had in the way that ``dataset.source`` asks for, or holds no prompt.
    """
    rng = np.random.default_rng(seed)
    source = dataset.source
    if source == "auto":
        source = "file" if dataset.path else "hub" if dataset.hub_id else "profile"
    if source == "profile":
        return _from_profile(dataset, num_prompts, rng, vocab_size)
    if source == "file":
        texts, detail = _read_file(dataset)
    else:
        try:
            texts, detail = _read_hub(dataset)
        except UserError as error:
            if dataset.source == "hub" or not dataset.profile:
                raise
            hub.fall_back(error, f"the length profile '{dataset.profile}'")
            return _from_profile(dataset, num_prompts, rng, vocab_size)
    setting = "dataset.path" if source == "file" else "dataset.hub_id"
    texts = [text for text in texts if len(text.split()) > 1]
    if not texts:
        raise UserError(setting, f"{detail} holds no text of two words or more", "check dataset.text_field")
    chosen = _sample(len(texts), num_prompts, rng)
    texts = [texts[index] for index in chosen]
    tokenizer = make_tokenizer()
    token_ids = [np.asarray(ids[: dataset.max_tokens], dtype=np.int64) for ids in tokenizer.encode(texts)]
    highest = max(int(ids.max()) for ids in token_ids)
    if highest >= vocab_size:
        raise UserError(
            "model",
            f"its vocabulary of {vocab_size:,} is smaller than the tokenizer's ({tokenizer.name}, id {highest:,})",
            "choose a model with a larger vocabulary, or dataset.source=profile",
        )
    return Prompts(token_ids, texts, source, detail, tokenizer)


def _sample(available: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if wanted > available:
        warn(f"num_prompts={wanted:,}, but only {available:,} prompts are usable: all of them are used")
    return rng.permutation(available)[:wanted]


def _from_profile(dataset: DatasetConfig, wanted: int, rng: np.random.Generator, vocab_size: int) -> Prompts:
    lengths, detail = read_profile(dataset.profile or dataset.name)
    lengths = lengths[_sample(len(lengths), wanted, rng)]
    if dataset.max_tokens:
        lengths = np.minimum(lengths, dataset.max_tokens)
    low = min(FIRST_ORDINARY_TOKEN, vocab_size - 1)
    token_ids = [rng.integers(low, vocab_size, length, dtype=np.int64) for length in lengths]
    for ids in token_ids:
        ids[0] = min(BEGIN_OF_SEQUENCE, vocab_size - 1)
    return Prompts(token_ids, None, "profile", detail, None)


def read_profile(name: str) -> tuple[NDArray[np.int64], str]:
    """Token lengths of every prompt that a length profile counts, int64 [prompts], and what it is.

    Args:
        name: a shipped profile's name, or the path of a CSV with the columns token_length and count.

    Raises:
        UserError: no such profile, or a row that is not two whole numbers of at least 1.
    """
    path = PROFILE_DIR / f"{name}.csv"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in PROFILE_DIR.glob("*.csv")))
        raise UserError("dataset.profile", f"there is no '{name}'", f"choose one of {shipped}, or a CSV's path")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(int(row["token_length"]), int(row["count"])) for row in csv.DictReader(file)]
        if not rows or min(min(row) for row in rows) < 1:
            raise ValueError("no rows, or a number below 1")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else error
        raise UserError(
            "dataset.profile", f"{path.name} is not a length profile ({reason})", "columns: token_length,count"
        ) from None
    lengths, counts = zip(*rows, strict=True)
    return np.repeat(np.array(lengths, dtype=np.int64), counts), f"profile {path.stem} sha256:{_file_hash(path)}"


def _read_file(dataset: DatasetConfig) -> tuple[list[str], str]:
    if not dataset.path:
        raise UserError("dataset.path", "no file is named", "give dataset.path=prompts.jsonl (json, csv, parquet, txt)")
    path = Path(dataset.path).expanduser()
    if not path.is_file():
        raise UserError("dataset.path", f"there is no file '{dataset.path}'", "give the path of an existing file")
    if path.suffix.lower() not in FILE_FORMATS:
        raise UserError("dataset.path", f"'{path.name}' has an unknown ending", f"use one of {', '.join(FILE_FORMATS)}")
    if path.stat().st_size == 0:
        raise UserError("dataset.path", f"'{path.name}' is empty", "give a file with one prompt per record")
    datasets = _datasets()
    kind = FILE_FORMATS[path.suffix.lower()]
    try:
        # A throw-away cache: nothing is left behind, and a changed file is never served stale.
        with tempfile.TemporaryDirectory() as cache:
            table = datasets.load_dataset(
                kind, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True
            )
            columns = {name: table[name][:] for name in table.column_names}
    except Exception as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            "dataset.path", f"'{path.name}' is not what its ending says ({reason})", f"give valid {path.suffix[1:]}"
        ) from None
    texts = _column(columns, dataset.text_field if kind != "text" else "text", path.name)
    return texts, f"{path.name} sha256:{_file_hash(path)}"


def _read_hub(dataset: DatasetConfig) -> tuple[list[str], str]:
    if not dataset.hub_id:
        raise UserError(
            "dataset.source", f"'{dataset.name}' is not on the hub", "use dataset.source=profile, or set dataset.hub_id"
        )
    hub.absence()
    datasets = _datasets()
    options: dict[str, Any] = {"split": dataset.split}
    if dataset.data_dir:  # a cache of its own: without the hub, datasets does not tell one folder from another
        cache = Path(datasets.config.HF_DATASETS_CACHE) / "folders" / dataset.data_dir.strip("/").replace("/", "--")
        options |= {"data_dir": dataset.data_dir, "cache_dir": str(cache)}
    commit = None
    try:
        if not Path(dataset.hub_id).is_dir():
            options["revision"] = commit = hub.commit_of(dataset.hub_id, "dataset", dataset.revision)
            _prefer_in_cache(datasets, commit)
        if commit and dataset.data_dir and hub.absence():
            table = _folder_in_cache(dataset, commit, cache)
        else:
            table = datasets.load_dataset(dataset.hub_id, dataset.hub_config, **options)
    except Exception as error:
        setting = next((setting for words, setting in SAID.items() if words in str(error)), "dataset.source")
        remedy = "use dataset.source=profile or dataset.source=file"
        raise hub.explain(error, setting, dataset.hub_id, remedy, dataset.revision) from None
    found = {Path(file["filename"]).parent.name for file in table.cache_files}
    if commit and found - {commit}:  # datasets names the folder after the hub commit
        problem = f"the cache holds {dataset.hub_id} at {', '.join(sorted(found))}, and {commit} cannot be had"
        raise UserError("dataset.revision", problem, "name one that the cache holds, or try again with the hub")
    detail = f"{dataset.hub_id}@{commit or dataset.revision or 'local'} {dataset.split}"
    return _column({name: table[name][:] for name in table.column_names}, dataset.text_field, dataset.hub_id), detail


def _prefer_in_cache(datasets: Any, commit: str) -> None:
    """Without the hub, datasets takes the newest of what it holds of a dataset, whichever commit was asked for."""
    for folder in Path(datasets.config.HF_DATASETS_CACHE).glob(f"*/*/*/{commit}"):
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(folder)


def _folder_in_cache(dataset: DatasetConfig, commit: str, cache: Path) -> Any:
    """A folder of a dataset, as an earlier run prepared it."""
    from datasets.packaged_modules.cache.cache import Cache

    name = str(dataset.hub_id).rpartition("/")[2]
    for info in cache.glob(f"*/{dataset.hub_config or ''}*/*/{commit}/dataset_info.json"):
        *_, config, version, _ = info.parent.parts
        parts = {"config_name": config, "version": version, "hash": commit, "cache_dir": str(cache)}
        return Cache(dataset_name=name, repo_id=dataset.hub_id, **parts).as_dataset(split=dataset.split)
    raise FileNotFoundError(f"{dataset.data_dir} of {dataset.hub_id}")


def _datasets() -> Any:
    """The datasets library, silent: what goes wrong is said by us, in one line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _column(columns: dict[str, list[Any]], field: str, where: str) -> list[str]:
    if field not in columns:
        raise UserError("dataset.text_field", f"{where} has no field '{field}'", f"choose one of {', '.join(columns)}")
    texts = [value for value in columns[field] if value is not None]
    if not all(isinstance(value, str) for value in texts):
        kinds = ", ".join(sorted({type(value).__name__ for value in texts} - {"str"}))
        raise UserError("dataset.text_field", f"'{field}' of {where} holds {kinds}", "choose a field of text")
    return texts


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
