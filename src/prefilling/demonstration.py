"""Answers a batch of questions twice, from the packed cache and from a padded batch, and shows both side by side."""

from __future__ import annotations

import shutil
import statistics
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from ..cli import UserError
from ..config import ModelConfig
from .library import generate, prefill
from .loading import load_model
from .models import find_model

TURNS = 3  # of packed and padded, of which the medians are shown
WIDEST = 150  # columns of the terminal that are used


@dataclass
class Answered:
    """What one of the two ways computed and how long it took: prefill alone, and with the answers; seconds."""

    name: str
    positions: int
    prefill_s: float
    whole_s: float
    texts: list[str]


def answer(chosen: ModelConfig, questions: Sequence[str], new_tokens: int, threads: int | None) -> int:
    """Answer the questions greedily on the CPU, both ways; 1 where an answer is not equal.

    Args:
        new_tokens: of each answer, at most.
        threads: of torch; None for its own choice.

    Raises:
        UserError: the model cannot be had, has random weights or no chat template.
    """
    if threads:
        torch.set_num_threads(threads)
    logging.set_verbosity_error()
    source = find_model(chosen)
    if source.path is None:
        raise UserError("model", f"{chosen.name} has random weights here, which answer nothing", "use smollm2-135m")
    print(f"loading {source.detail} …", flush=True)
    model: Any = load_model(source, torch.device("cpu"), torch.float32, "none", seed=0)
    options = {"gguf_file": source.gguf} if source.gguf else {"revision": source.revision}
    tokenizer: Any = AutoTokenizer.from_pretrained(source.path, padding_side="left", **options)
    if tokenizer.chat_template is None:
        raise UserError("model", f"{chosen.name} has no chat template", "use an instruction-tuned model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True,
                                             tokenize=True, return_dict=True)["input_ids"]
               for question in questions]  # fmt: skip
    longest = max(map(len, prompts))
    padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    greedy: Any = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}

    def texts_of(tokens: Any) -> list[str]:
        return [text.strip() for text in tokenizer.batch_decode(tokens[:, longest:], skip_special_tokens=True)]

    @torch.inference_mode()
    def ordinary() -> None:
        model(**padded, use_cache=True, logits_to_keep=1)

    done = prefill(model, prompts)
    ordinary()  # untimed: the first call of either way sets up what later ones use
    turns = [(seconds_of(lambda: prefill(model, prompts)), seconds_of(ordinary)) for _ in range(TURNS)]
    packed_s, padded_s = (statistics.median(each) for each in zip(*turns, strict=True))
    packed_tokens, padded_tokens = generate(model, tokenizer, prompts, **greedy), model.generate(**padded, **greedy)
    answers = [
        (
            seconds_of(lambda: generate(model, tokenizer, prompts, **greedy)),
            seconds_of(lambda: model.generate(**padded, **greedy)),
        )
        for _ in range(TURNS)
    ]
    packed_whole_s, padded_whole_s = (statistics.median(each) for each in zip(*answers, strict=True))
    found = [
        Answered("packed", done.computed_tokens, packed_s, packed_whole_s, texts_of(packed_tokens)),
        Answered("padded", padded["input_ids"].numel(), padded_s, padded_whole_s, texts_of(padded_tokens)),
    ]
    show(questions, [len(ids) for ids in prompts], found)
    same = [torch.equal(ours, theirs) for ours, theirs in zip(packed_tokens, padded_tokens, strict=True)]
    print(
        f"{sum(same)} of {len(same)} answers are equal, token for token" + ("." if all(same) else ": that is a fault.")
    )
    return 0 if all(same) else 1


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def show(questions: Sequence[str], lengths: list[int], found: list[Answered]) -> None:
    """Each question with both answers side by side, and below them what they took."""
    width = min(shutil.get_terminal_size((100, 24)).columns, WIDEST)
    half = (width - 3) // 2
    for question, length, *answers in zip(questions, lengths, *(each.texts for each in found), strict=True):
        print(f"\n{textwrap.shorten(question, width - 14, placeholder=' …')}  ({length} tokens)")
        columns = [textwrap.wrap(answer, half) or [""] for answer in answers]
        for row in range(max(map(len, columns))):
            left, right = (column[row] if row < len(column) else "" for column in columns)
            print(f"{left:<{half}} | {right}")
    packed, padded = found
    print(f"\n{'':34}{packed.name:>10}{padded.name:>10}{'ratio':>8}")
    for what, ours, theirs, digits in (
        ("token positions of the prefill", packed.positions, padded.positions, 0),
        ("seconds of the prefill", packed.prefill_s, padded.prefill_s, 2),
        ("seconds with the answers", packed.whole_s, padded.whole_s, 2),
    ):
        print(f"{what:34}{ours:>10,.{digits}f}{theirs:>10,.{digits}f}{theirs / ours:>7.1f}x")
    print(f"({sum(lengths):,} tokens of {len(lengths)} questions; seconds: medians of {TURNS} turns)\n")
