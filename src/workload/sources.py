"""Reads what a dataset holds: from local files, the hub, or the prompts that come with the program."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import hub
from ..cli import UserError, warn
from ..config import DatasetConfig
from . import files
from .forms import CHAT, KNOWN, TEXT, TURNS, Item, PromptsOfFile, items_of
from .parse import Parsed, numbered, parse, refuse, worth_reading

SHIPPED = Path(__file__).parent / "shipped"
SAID = {  # words in an error of datasets, and the setting that is wrong then
    "Unknown split": "dataset.split",
    "BuilderConfig": "dataset.hub_config",
    "Config name is missing": "dataset.hub_config",
}


@dataclass(frozen=True)
class Read:
    """All that a dataset holds.

    Attributes:
        items: its prompts, those without content among them.
        form: ``forms.TEXT`` or another one.
        words: the form in words.
        detail: where they are from exactly: file names and hash, hub id and revision.
    """

    items: list[Item]
    form: str
    words: str
    detail: str


def read_files(dataset: DatasetConfig) -> Read:
    """The prompts of the files that ``dataset.path`` names, in their order.

    Raises:
        UserError: there is no such file, it holds no prompts, or several hold prompts of different forms.
    """
    if not dataset.path:
        raise UserError("dataset.path", "no file is named", f"give dataset.path=prompts.jsonl ({files.FORMATS})")
    paths = files.find(dataset.path)
    bad: list[str] = []
    found = [_read_file(path, dataset, bad) for path in paths]
    for path, each in zip(paths, found, strict=True):
        if each.form != found[0].form:
            problem = f"'{paths[0].name}' holds {found[0].form} and '{path.name}' {each.form}"
            raise UserError("dataset.path", problem, "give files of one form")
    if bad:
        warn(f"{len(bad):,} records are left out, as they hold no prompt; the first: {bad[0]}")
    items = [item for each in found for item in each.items]
    return Read(items, found[0].form, in_words(found, dataset.turns), files.detail(paths))


def _read_file(path: Path, dataset: DatasetConfig, bad: list[str]) -> PromptsOfFile:
    def on_bad(place: str, reason: str) -> None:
        if not dataset.skip_bad:
            refuse(place, reason)
        bad.append(f"{path.name}, {place}: {reason}")

    ending = next((ending for ending in reversed(path.suffixes) if ending not in files.COMPRESSED), "").lower()
    content = files.contents(path)
    try:
        parsed = parse(content, path.name, ending, KNOWN, dataset.text_field, on_bad)
        return items_of(parsed, path.name, dataset.text_field, dataset.turns, on_bad)
    except (ValueError, RecursionError, csv.Error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        remedy = "mend it, or pass over such records with dataset.skip_bad=true"
        raise UserError("dataset.path", f"'{path.name}' holds no prompts as it is ({reason})", remedy) from None


def in_words(found: list[PromptsOfFile], turns: str) -> str:
    """The form of prompts for people: ``chat messages of 812 conversations``."""
    if found[0].form == CHAT:
        return f"{found[0].words} of {sum(each.conversations for each in found):,} conversations ({TURNS[turns]})"
    return " and ".join(dict.fromkeys(each.words for each in found))


def shipped_lines(name: str) -> list[str]:
    """The JSON objects, one a line, of prompts that come with the program.

    Raises:
        UserError: there are none of that name.
    """
    file = SHIPPED / f"{name}.jsonl"
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.jsonl")))
        raise UserError("dataset.shipped", f"no prompts '{name}' come with the program", f"choose one of {names}")
    return file.read_text(encoding="utf-8").splitlines()


def read_shipped(dataset: DatasetConfig, sample: str) -> Read:
    """The real prompts of a dataset that come with the program.

    Raises:
        UserError: there are none of this dataset.
    """
    if not dataset.shipped:
        raise UserError("dataset.source", f"no prompts of '{dataset.name}' come with the program", "use source=auto")
    if sample == "authors":
        warn("sample=authors: the prompts that come with the program are a part of the dataset, and so not their draw")
    records = [json.loads(line) for line in shipped_lines(dataset.shipped)]
    detail = f"shipped {dataset.shipped} sha256:{files.file_hash(SHIPPED / f'{dataset.shipped}.jsonl')}"
    return Read(
        [Item(record[dataset.text_field]) for record in records], TEXT, f"texts of '{dataset.text_field}'", detail
    )


def read_hub(dataset: DatasetConfig) -> Read:
    """The prompts of a hub dataset, or of its copy in the cache or a folder.

    Raises:
        UserError: it cannot be had, has no such split or field, or the field holds no prompts.
    """
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
    names = worth_reading(table.column_names, KNOWN, dataset.text_field)
    values = table.select_columns(names).to_list() if names else []
    parsed = Parsed(values, numbered(values), table.column_names)
    read = items_of(parsed, dataset.hub_id, dataset.text_field, dataset.turns, _refuse_record)
    return Read(read.items, read.form, in_words([read], dataset.turns), detail)


def _refuse_record(place: str, reason: str) -> None:
    raise UserError("dataset.text_field", f"{place}: {reason}", "choose a field that holds prompts throughout")


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
