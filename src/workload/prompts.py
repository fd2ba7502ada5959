"""Prompts as token ids: a seeded sample of a hub dataset, files, what comes with the program, or a length profile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import hub, paper
from ..cli import UserError, warn
from ..config import DatasetConfig
from . import arrivals, files
from .forms import CHAT, LENGTHS, TOKENS, Item
from .profiles import read_profile
from .sample import draw, follow
from .sources import Read, read_files, read_hub, read_shipped, shipped_lines
from .tokenizer import Tokenizer, rendered

FIRST_ORDINARY_TOKEN = 3  # ids below are <unk>, <s>, </s> in the Llama and Mistral vocabularies
BEGIN_OF_SEQUENCE = 1
SHIPPED_IN_WORDS = "the real prompts that come with the program"

TokenIds = NDArray[np.int64]


@dataclass(frozen=True)
class Prompts:
    """Prompts in sampled order.

    Attributes:
        token_ids: one int64 array [length] per prompt, none empty.
        texts: the prompts' texts, None where only token ids or lengths are known.
        source: ``hub``, ``file``, ``shipped`` or ``profile``.
        detail: which one exactly: hub id and revision, file name and hash, or profile.
        tokenizer: what turned text into token ids, None where there was no text.
        left_out: texts of the dataset that are no prompts (empty ones, for example), before sampling.
        order: int64 [n], the order in which batches are cut from them, where the sample decides it.
        form: in words, what was read: ``texts of 'question'``; empty for a length profile.
        arrivals_s: float64 [n], when each came, seconds; None where that is not known of all.
        output_tokens: int64 [n], how many tokens answered each; None where that is not known of all.
    """

    token_ids: list[TokenIds]
    texts: list[str] | None
    source: str
    detail: str
    tokenizer: Tokenizer | None
    left_out: int = 0
    order: NDArray[np.int64] | None = None
    form: str = ""
    arrivals_s: NDArray[np.float64] | None = None
    output_tokens: NDArray[np.int64] | None = None

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
    in_order: bool = False,
) -> Prompts:
    """Sample ``num_prompts`` prompts, seeded; all of them, with a note, where the dataset holds fewer.

    Of the paper's datasets, texts of one word or less are left out before sampling, as in the paper (section 4). Of
    others only what is empty is, for many scripts write sentences without a space. What is left out is said.

    Args:
        sample: ``own``, or ``authors``: the prompts that their code draws, whatever the seed. What is cut then is
            decoded and tokenized once more, as they do.
        in_order: of a dataset that knows when each prompt came, those that follow each other from a seeded place on,
            in the order of their times, which drawing some of them would thin out.

    Raises:
        UserError: the dataset cannot be had in the way that ``dataset.source`` asks for, or holds no prompt.
    """
    rng, make_tokenizer = np.random.default_rng(seed), functools.cache(make_tokenizer)
    source = dataset.source
    if source == "auto":
        source = "file" if dataset.path else "hub" if dataset.hub_id else "profile"
    if source == "hub":
        try:
            found = read_hub(dataset)
        except UserError as error:
            instead = "" if dataset.source == "hub" else _embedded(dataset, num_prompts, vocab_size, make_tokenizer)
            if not instead:
                raise
            words = f"the length profile '{dataset.profile}'" if instead == "profile" else SHIPPED_IN_WORDS
            hub.fall_back(error, words)
            source = instead
    if source == "profile":
        return _from_profile(dataset, num_prompts, rng, vocab_size, sample, in_order)
    if source == "file":
        found = read_files(dataset)
    elif source == "shipped":
        found = read_shipped(dataset, sample)
    return _drawn(found, source, dataset, num_prompts, rng, vocab_size, make_tokenizer, sample, in_order)


def _embedded(dataset: DatasetConfig, wanted: int, vocab_size: int, make_tokenizer: Callable[[], Tokenizer]) -> str:
    """Which of what comes with the program stands in for a dataset.

    Real texts do where they are as many as are wanted, and the model knows the tokens that they come to.
    """
    if dataset.shipped and wanted <= len(shipped_lines(dataset.shipped)) and make_tokenizer().vocab_size <= vocab_size:
        return "shipped"
    return "profile" if dataset.profile else ""


def _drawn(
    read: Read,
    source: str,
    dataset: DatasetConfig,
    wanted: int,
    rng: np.random.Generator,
    vocab_size: int,
    make_tokenizer: Callable[[], Tokenizer],
    sample: str,
    in_order: bool,
) -> Prompts:
    """A sample of what was read, as token ids."""
    setting = {"file": "dataset.path", "shipped": "dataset.source"}.get(source, "dataset.hub_id")
    usable = _usable(read, dataset, setting)
    if in_order and _all_timed(usable, read, setting):
        drawn = follow(len(usable), wanted, rng)
    else:
        drawn = draw(len(usable), wanted, rng, sample)
    chosen = [usable[index] for index in drawn.chosen]
    contents: list[Any] = [item.content for item in chosen]
    texts, tokenizer, most, form = None, None, dataset.max_tokens, read.words
    encoded: list[Any] = contents
    if read.form == LENGTHS:
        encoded = [random_ids(min(length, most or length), vocab_size, rng) for length in contents]
    elif read.form != TOKENS:
        tokenizer, texts = make_tokenizer(), contents
        if read.form == CHAT:
            texts, how = rendered(contents, tokenizer, setting)
            form = f"{form}, {how}"
        encoded = tokenizer.encode(texts)
        if most and sample == "authors":
            texts = tokenizer.decode([ids[:most] for ids in encoded])
            encoded, most = tokenizer.encode(texts), None
    token_ids = [np.asarray(ids[:most], dtype=np.int64) for ids in encoded]
    _check_ids(token_ids, texts, tokenizer, vocab_size, setting)
    if source == "file":
        warn(f"{files.named(read.detail)}: {form}")
    came = [item.arrival_s for item in chosen]
    outputs = [item.output_tokens for item in chosen]
    return Prompts(
        token_ids, texts, source, read.detail, tokenizer, len(read.items) - len(usable), drawn.order, form,
        None if None in came else np.array(came, dtype=np.float64),
        None if None in outputs else np.array(outputs, dtype=np.int64),
    )  # fmt: skip


def _usable(read: Read, dataset: DatasetConfig, setting: str) -> list[Item]:
    """What of the records are prompts; what is left out is said."""
    fewest, short = (2, "hold fewer than two words") if dataset.name in paper.DATASETS else (1, "are empty")
    usable = [item for item in read.items if _is_prompt(item.content, fewest)]
    if not usable:
        raise UserError(setting, f"all records of {files.named(read.detail)} {short}", "check dataset.text_field")
    if left_out := len(read.items) - len(usable):
        warn(f"{left_out:,} of {len(read.items):,} records of {files.named(read.detail)} {short}: they are left out")
    return usable


def _all_timed(items: Sequence[Item], read: Read, setting: str) -> bool:
    """Whether every prompt says when it came, in an order that can be; an error where only some do."""
    times = [item.arrival_s for item in items]
    missing = times.count(None)
    if 0 < missing < len(times):
        problem = f"{missing:,} of {len(times):,} requests of {files.named(read.detail)} do not say when they came"
        raise UserError(setting, problem, "give each a time, or leave those out")
    if not missing:
        arrivals.check_order(np.array(times, dtype=np.float64), setting)
    return not missing


def _check_ids(
    token_ids: Sequence[TokenIds], texts: Sequence[str] | None, tokenizer: Tokenizer | None, vocab_size: int,
    setting: str,
) -> None:  # fmt: skip
    """See that no prompt is empty, and that the model knows every token."""
    if texts and not all(map(len, token_ids)):
        empty = texts[[len(ids) for ids in token_ids].index(0)]
        raise UserError(setting, f"the tokenizer makes no token of {ascii(empty)[:60]}", "take it out of the dataset")
    highest = max(int(ids.max()) for ids in token_ids)
    if highest >= vocab_size:
        whose = f"tokenizer's ({tokenizer.name}, id {highest:,})" if tokenizer else f"prompts' (id {highest:,})"
        raise UserError(
            "model",
            f"its vocabulary of {vocab_size:,} is smaller than the {whose}",
            "choose a model with a larger vocabulary, or dataset.source=profile",
        )


def _is_prompt(content: Any, fewest_words: int) -> bool:
    """Whether a record's content can be prefilled."""
    return len(content.split()) >= fewest_words if isinstance(content, str) else bool(content)


def random_ids(length: int, vocab_size: int, rng: np.random.Generator) -> TokenIds:
    """Ordinary token ids at random behind a begin-of-sequence token, int64 [length]."""
    ids = rng.integers(min(FIRST_ORDINARY_TOKEN, vocab_size - 1), vocab_size, length, dtype=np.int64)
    ids[0] = min(BEGIN_OF_SEQUENCE, vocab_size - 1)
    return ids


def _from_profile(
    dataset: DatasetConfig, wanted: int, rng: np.random.Generator, vocab_size: int, sample: str, in_order: bool
) -> Prompts:
    name, came = dataset.profile or dataset.name, None
    if in_order and (trace := arrivals.OF_PROFILE.get(name)):  # its lengths and times belong together
        times_s, lengths = arrivals.shipped(trace)
        detail, drawn = f"trace {trace}", follow(len(lengths), wanted, rng)
        came = times_s[drawn.chosen]
    else:
        lengths, detail = read_profile(name)
        if sample == "authors":
            warn("sample=authors: a length profile has their draw, but not their texts")
        drawn = draw(len(lengths), wanted, rng, sample)
    lengths = lengths[drawn.chosen]
    if dataset.max_tokens:
        lengths = np.minimum(lengths, dataset.max_tokens)
    token_ids = [random_ids(length, vocab_size, rng) for length in lengths]
    return Prompts(token_ids, None, "profile", detail, None, order=drawn.order, arrivals_s=came)
