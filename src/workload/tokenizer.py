"""Text to token ids: the model's own tokenizer, or the real Mistral-7B one that needs no hub."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tokenizer:
    """``encode`` maps texts to token ids, begin-of-sequence token included where there is one; ``decode`` undoes it."""

    name: str
    vocab_size: int
    encode: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[list[int]]], list[str]]


def mistral_tokenizer() -> Tokenizer:
    """The SentencePiece model of Mistral-7B v0.1 (32,000 pieces, as Llama 2 has), shipped inside mistral-common."""
    from sentencepiece import SentencePieceProcessor

    model_file = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
    processor = SentencePieceProcessor(model_file=str(model_file))
    encode = functools.partial(_encode_with_sentencepiece, processor)
    return Tokenizer("mistral-7b-v0.1 (mistral-common)", processor.vocab_size(), encode, processor.decode)


def model_tokenizer(path: str, revision: str | None) -> Tokenizer:
    """The tokenizer of a hub model or local folder.

    Raises:
        OSError, ValueError: there is none that transformers can load without running the repository's code.
    """
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    if not loaded("a prompt").input_ids:
        raise ValueError(f"{path} holds a tokenizer that gives no tokens")
    return Tokenizer(path, len(loaded), functools.partial(_encode_with_transformers, loaded),
                     functools.partial(loaded.batch_decode, skip_special_tokens=True))  # fmt: skip


# Functions of the module, so that a plan with its tokenizer can be sent to another process.
def _encode_with_sentencepiece(processor: Any, texts: Sequence[str]) -> list[list[int]]:
    return processor.encode(list(texts), add_bos=True)  # type: ignore[no-any-return]


def _encode_with_transformers(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts)).input_ids  # type: ignore[no-any-return]
