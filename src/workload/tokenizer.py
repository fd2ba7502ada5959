"""Text to token ids: the model's own tokenizer, or the real Mistral-7B one that needs no hub."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..cli import UserError

Message = dict[str, str]  # role and content of one turn of a conversation


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes:
        encode: maps texts to token ids, begin-of-sequence token included where there is one; ``decode`` undoes it.
        template: maps conversations, each a list of messages, to the texts that the model learnt to answer, without
            the first token of a sequence if ``encode`` adds it; None where the model has no chat template.
    """

    name: str
    vocab_size: int
    encode: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[list[int]]], list[str]]
    template: Callable[[Sequence[list[Message]]], list[str]] | None = None


def mistral_tokenizer() -> Tokenizer:
    """The SentencePiece model of Mistral-7B v0.1 (32,000 pieces, as Llama 2 has), shipped inside mistral-common."""
    from sentencepiece import SentencePieceProcessor

    model_file = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
    processor = SentencePieceProcessor(model_file=str(model_file))
    encode = functools.partial(_encode_with_sentencepiece, processor)
    return Tokenizer("mistral-7b-v0.1 (mistral-common)", processor.vocab_size(), encode, processor.decode)


def model_tokenizer(path: str, revision: str | None, gguf: str | None = None) -> Tokenizer:
    """The tokenizer of a hub model, a local folder, or a GGUF file in it.

    Raises:
        OSError, ValueError: there is none that transformers can load without running the repository's code.
    """
    from transformers import AutoTokenizer

    options = {"gguf_file": gguf} if gguf else {"revision": revision, "trust_remote_code": False}
    loaded = AutoTokenizer.from_pretrained(path, **options)
    if not loaded("a prompt").input_ids:
        raise ValueError(f"{path} holds a tokenizer that gives no tokens")
    return Tokenizer(
        gguf or path,
        len(loaded),
        functools.partial(_encode_with_transformers, loaded),
        functools.partial(loaded.batch_decode, skip_special_tokens=True),
        functools.partial(_render, loaded) if loaded.chat_template else None,
    )


# Functions of the module, so that a plan with its tokenizer can be sent to another process.
def _encode_with_sentencepiece(processor: Any, texts: Sequence[str]) -> list[list[int]]:
    return processor.encode(list(texts), add_bos=True)  # type: ignore[no-any-return]


def _encode_with_transformers(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts)).input_ids  # type: ignore[no-any-return]


def _render(tokenizer: Any, conversations: Sequence[list[Message]]) -> list[str]:
    """The conversations through the model's chat template, ready for its answer."""
    texts = [
        str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        for messages in conversations
    ]
    start = tokenizer.bos_token  # some templates write it, and encoding adds it once more
    added = bool(start) and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    return [text.removeprefix(start) for text in texts] if added else texts


def rendered(conversations: Sequence[list[Message]], tokenizer: Tokenizer, setting: str) -> tuple[list[str], str]:
    """Conversations as the texts that the model answers, and in words how they were made.

    Args:
        setting: the one that is at fault where a conversation does not fit the template.

    Raises:
        UserError: the template refuses a conversation, as some do with roles that do not alternate.
    """
    if tokenizer.template is None:
        lines = [[*(f"{each['role'].capitalize()}: {each['content']}" for each in messages), "Assistant:"]
                 for messages in conversations]  # fmt: skip
        return ["\n".join(each) for each in lines], "role by role, as the model has no chat template"
    try:
        return tokenizer.template(conversations), "through the model's chat template"
    except Exception as error:  # jinja's and Python's own, as the template has it
        problem = f"the chat template of {tokenizer.name} refuses a conversation ({' '.join(str(error).split())[:120]})"
        raise UserError(setting, problem, "use dataset.turns=first, or another model") from None
