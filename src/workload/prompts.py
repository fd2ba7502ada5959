"""Where prompts come from: a hub dataset, a local file, or a real dataset's length profile. All end as token ids."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import hub, paper
from ..cli import UserError, warn
from ..config import DatasetConfig
from . import files
from .sample import draw
from .tokenizer import Tokenizer

PROFILE_DIR = Path(__file__).parent / "length_profiles"
MADE_UP = ("equal", "uniform-800")  # shipped profiles whose lengths are those of no real dataset
MOST_OF_A_PROFILE = 20_000_000  # prompts that a profile may count; each takes 8 bytes, twice
LONGEST_PROMPT = 10_000_000  # tokens
FIRST_ORDINARY_TOKEN = 3  # ids below are <unk>, <s>, </s> in the Llama and Mistral vocabularies
BEGIN_OF_SEQUENCE = 1
SAID = {  # words in an error of datasets, and the setting that is wrong then
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
        left_out: texts of the dataset that are no prompts (empty ones, for example), before sampling.
        order: int64 [n], the order in which batches are cut from them, where the sample decides it.
    """

    token_ids: list[TokenIds]
    texts: list[str] | None
    source: str
    detail: str
    tokenizer: Tokenizer | None
    left_out: int = 0
    order: NDArray[np.int64] | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each prompt, int64 [n]."""
        return np.array([len(ids) for ids in self.token_ids], dtype=np.int64)


def load_prompts(
    dataset: DatasetConfig,
    num_prompts: int,
    seed: int,
    vocab_size: int,
    make_tokenizer: Callable[[], Tokenizer],
    sample: str = "own",
) -> Prompts:
    """Sample ``num_prompts`` prompts, seeded; all of them, with a note, where the dataset holds fewer.

    Of the paper's datasets, texts of one word or less are left out before sampling, as in the paper (section 4). Of
    others only what is empty is, for many scripts write sentences without a space. What is left out is said.

    Args:
        sample: ``own``, or ``authors``: the prompts that their code draws, whatever the seed. What is cut then is
            decoded and tokenized once more, as they do.

    Raises:
        UserError: the dataset cannot be had in the way that ``dataset.source`` asks for, or holds no prompt.
    """
    rng = np.random.default_rng(seed)
    source = dataset.source
    if source == "auto":
        source = "file" if dataset.path else "hub" if dataset.hub_id else "profile"
    if source == "profile":
        return _from_profile(dataset, num_prompts, rng, vocab_size, sample)
    if source == "file":
        every, detail = _read_file(dataset)
    else:
        try:
            every, detail = _read_hub(dataset)
        except UserError as error:
            if dataset.source == "hub" or not dataset.profile:
                raise
            hub.fall_back(error, f"the length profile '{dataset.profile}'")
            return _from_profile(dataset, num_prompts, rng, vocab_size, sample)
    setting = "dataset.path" if source == "file" else "dataset.hub_id"
    fewest, short = (2, "hold fewer than two words") if dataset.name in paper.DATASETS else (1, "are empty")
    usable = [text for text in every if text and len(text.split()) >= fewest]
    if not usable:
        raise UserError(setting, f"all records of {files.named(detail)} {short}", "check dataset.text_field")
    if left_out := len(every) - len(usable):
        warn(f"{left_out:,} of {len(every):,} records of {files.named(detail)} {short}: they are left out")
    drawn = draw(len(usable), num_prompts, rng, sample)
    texts = [usable[index] for index in drawn.chosen]
    tokenizer, most = make_tokenizer(), dataset.max_tokens
    encoded = tokenizer.encode(texts)
    if most and sample == "authors":
        texts = tokenizer.decode([ids[:most] for ids in encoded])
        encoded, most = tokenizer.encode(texts), None
    token_ids = [np.asarray(ids[:most], dtype=np.int64) for ids in encoded]
    if not all(map(len, token_ids)):
        empty = texts[[len(ids) for ids in token_ids].index(0)]
        raise UserError(setting, f"the tokenizer makes no token of {ascii(empty)[:60]}", "take it out of the dataset")
    highest = max(int(ids.max()) for ids in token_ids)
    if highest >= vocab_size:
        raise UserError(
            "model",
            f"its vocabulary of {vocab_size:,} is smaller than the tokenizer's ({tokenizer.name}, id {highest:,})",
            "choose a model with a larger vocabulary, or dataset.source=profile",
        )
    return Prompts(token_ids, texts, source, detail, tokenizer, left_out, drawn.order)


def _from_profile(
    dataset: DatasetConfig, wanted: int, rng: np.random.Generator, vocab_size: int, sample: str
) -> Prompts:
    lengths, detail = read_profile(dataset.profile or dataset.name)
    if sample == "authors":
        warn("sample=authors: a length profile has their draw, but not their texts")
    drawn = draw(len(lengths), wanted, rng, sample)
    lengths = lengths[drawn.chosen]
    if dataset.max_tokens:
        lengths = np.minimum(lengths, dataset.max_tokens)
    low = min(FIRST_ORDINARY_TOKEN, vocab_size - 1)
    token_ids = [rng.integers(low, vocab_size, length, dtype=np.int64) for length in lengths]
    for ids in token_ids:
        ids[0] = min(BEGIN_OF_SEQUENCE, vocab_size - 1)
    return Prompts(token_ids, None, "profile", detail, None, order=drawn.order)


def shipped_profiles() -> list[str]:
    """The names of the length profiles that come with the program."""
    return sorted(path.stem for path in PROFILE_DIR.glob("*.csv"))


def read_profile(name: str) -> tuple[NDArray[np.int64], str]:
    """Token lengths of every prompt that a length profile counts, int64 [prompts], and what it is.

    Args:
        name: a shipped profile's name, or the path of a CSV with the columns token_length and count.

    Raises:
        UserError: no such profile, or a row that is not two whole numbers of at least 1.
    """
    path = PROFILE_DIR / f"{name}.csv"
    if not path.is_file():
        path = Path(name).expanduser()
    if not path.is_file():
        names = ", ".join(shipped_profiles())
        raise UserError("dataset.profile", f"there is no '{name}'", f"choose one of {names}, or a CSV's path")
    try:
        header, lines = files.read_table(files.read_text(path), "token_length")
        if missing := [name for name in ("token_length", "count") if name not in header]:
            raise ValueError(f"it has no column {missing[0]}")
        places = [header.index(name) for name in ("token_length", "count")]
        rows = [tuple(_whole(cells[place]) for place in places) for cells in lines]
        if not rows or min(min(row) for row in rows) < 1:
            raise ValueError("no rows, or a number below 1")
        lengths, counts = zip(*rows, strict=True)
        if max(lengths) > LONGEST_PROMPT:
            raise ValueError(f"a prompt of {max(lengths):,} tokens; {LONGEST_PROMPT:,} are the most")
        if sum(counts) > MOST_OF_A_PROFILE:
            raise ValueError(f"it counts {sum(counts):,} prompts; {MOST_OF_A_PROFILE:,} are the most")
    except (OSError, ValueError, csv.Error) as error:
        problem = f"{path.name} is not a length profile ({error})"
        raise UserError("dataset.profile", problem, "columns: token_length,count") from None
    return np.repeat(np.array(lengths, dtype=np.int64), counts), f"profile {path.stem} sha256:{files.file_hash(path)}"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"'{text}' is no whole number") from None


def _read_file(dataset: DatasetConfig) -> tuple[list[str | None], str]:
    if not dataset.path:
        raise UserError("dataset.path", "no file is named", "give dataset.path=prompts.jsonl (json, csv, parquet, txt)")
    path = Path(dataset.path).expanduser()
    return files.read_prompts(path, dataset.text_field), f"{path.name} sha256:{files.file_hash(path)}"


def _read_hub(dataset: DatasetConfig) -> tuple[list[str | None], str]:
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
    field = dataset.text_field
    columns = dict.fromkeys(table.column_names) | ({field: table[field][:]} if field in table.column_names else {})
    return files.column_of(columns, field, dataset.hub_id), detail


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
