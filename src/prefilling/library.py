"""Prepacking for programs: prefill a batch with a Hugging Face model, and have transformers' own ``generate`` go on.

    from prepack_bench import generate, prefill    # in a checkout: from src import generate, prefill

    done = prefill(model, prompts, tokenizer=tokenizer)               # KV cache, mask, logits at last tokens
    new = generate(model, tokenizer, prompts, max_new_tokens=20)      # as model.generate of a left-padded batch

Prompts are packed into bins of the longest prompt's length by first-fit decreasing, one forward computes the bins with
restart positions and attention within each prompt, and keys and values are scattered into one left-padded row a prompt
(arXiv 2404.09529, sections 3.1 and 3.2).

The model is used as it is: its own code runs, and only its attention is replaced, by one that sees prompts apart, for
the length of a call. Nothing here is safe for two threads that share a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from ..cli import UserError
from .cache import new_cache
from .layout import left_padded
from .method import PrefillOptions, TokenIds
from .methods import METHODS
from .modern import Modern
from .supported import check_model, check_output, check_positions

Prompt: TypeAlias = str | Sequence[int] | NDArray[np.integer[Any]] | torch.Tensor

BATCH_METHODS = tuple(name for name, each in METHODS.items() if not (each.serves or each.needs_dataset or each.engine))
MAX_TOKENS = 32_768  # of one forward: a batch of more is computed by parts

# What `generate` gives to model.generate itself, and what would have transformers compute the prompts once more.
_OURS = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values")
_CLASHING = (
    "assistant_model",
    "cache_implementation",
    "prefill_chunk_size",  # some versions would compute the prompts anew behind their cache, and be wrong
    "prompt_lookup_num_tokens",
    "token_healing",
)


@dataclass(frozen=True)
class PrefillOutput:
    """A prefilled batch, on the model's device. Prompts are in the order they were given in.

    Attributes:
        cache: per layer keys and values [k, kv_heads, longest, head_dim], each prompt's last token in the last column;
            whole even where the model has a sliding window. Its tensors are inference tensors: they grow and are
            sliced as usual, but are not to be written in place.
        attention_mask: int64 [k, longest], 1 where the cache holds a prompt's token, 0 on the pads left of it.
        logits: [k, vocab] in the model's type, at each prompt's last token: they choose its first new token.
        position_ids: int64 [k, 1], the position of each prompt's first new token. Who continues by hand has to give
            them to the model, which else counts the cache's columns, pads included, and add 1 for every token.
        computed_tokens: token positions that passed through the model, pads included.
    """

    cache: DynamicCache
    attention_mask: torch.Tensor
    logits: torch.Tensor
    position_ids: torch.Tensor
    computed_tokens: int


class _Untimed:
    def lap(self, phase: str) -> None:
        """Nobody looks at the clock."""


def prefill(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    method: str = "prepacking",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    forward: str = "transformers",
) -> PrefillOutput:
    """Compute the KV cache of a batch of prompts, and the logits of each prompt's first new token.

    Equal, within rounding, to each prompt run alone, in the type of the model's weights: ``torch.autocast`` is off
    within the call. The first new tokens by greedy choice are
    ``output.logits.argmax(-1)``; ``generate`` goes on by whatever transformers can do.

    Args:
        model: a causal LM of one of ``supported.FAMILIES``, with its weights on one device, in evaluation mode.
        prompts: k prompts of at least one token: token ids, without pads, or strings, which the tokenizer encodes as
            it does by default (special tokens included). 1-D arrays and tensors serve as lists.
        method: ``prepacking`` (arXiv 2404.09529, section 3); ``padding-free``: all prompts in one row;
            ``full-batching``: each a row of its own, padded.
        tokenizer: needed for prompts that are strings.
        forward: ``transformers``: the model's own code; the model is as before when the call returns or raises.
            ``fused``: a faster forward for Llama, Mistral, Qwen2 and Qwen3. It joins weights of the model in place
            (they become views of larger tensors; on CPUs it keeps a second copy, laid out for oneDNN). Where weights
            have changed since the last call, or layers been replaced by an adapter's, it is made anew.
            ``compiled``: the same with its elementwise parts compiled, some seconds at the first call.

    Raises:
        ValueError: the model is not supported, or a prompt cannot be prefilled: what, and what would be right.
    """
    check_model(model, forward)
    check_output(model)
    return _prefilled(model, _token_ids(model, prompts, tokenizer), method, forward)


def _prefilled(model: PreTrainedModel, ids: list[TokenIds], method: str, forward: str) -> PrefillOutput:
    if method not in BATCH_METHODS:
        raise ValueError(f"method: unknown '{method}'; choose one of {', '.join(BATCH_METHODS)}")
    options = PrefillOptions(metric="prefill", forward=forward, max_tokens=MAX_TOKENS)
    with torch.autocast(model.device.type, enabled=False):
        try:
            engine = Modern(model, METHODS[method], options, left_padded=True)
        except UserError as error:  # a forward that this device has none of
            raise ValueError(str(error)) from None
        done = engine.prefill(ids, _Untimed())
    assert done.cache is not None
    assert done.mask is not None
    assert done.logits is not None
    mask = done.mask.clone()
    return PrefillOutput(done.cache, mask, done.logits.clone(), mask.sum(-1, keepdim=True), done.computed_tokens)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[Prompt],
    *,
    method: str = "prepacking",
    forward: str = "transformers",
    **options: Any,
) -> Any:
    """Prefill a batch by ``prefill`` and continue it with ``model.generate``, as it would continue a left-padded batch.

    Each prompt's last token is computed a second time, as the first step of ``model.generate``: so its own processors,
    samplers and criteria choose every token, the first included, and see the whole prompts.

    Args:
        model, prompts, method, forward: as of ``prefill``.
        tokenizer: encodes strings, names the pad, and finds stop strings; None where all prompts are token ids.
        options: all that ``model.generate`` takes (``max_new_tokens``, ``do_sample``, ``num_beams``,
            ``generation_config``, ``stop_strings``, ``streamer``, ``logits_processor``, …), less what stands for the
            prompts or their cache.

    Returns:
        What ``model.generate`` returns: int64 [k, longest + new], prompts left-padded, or the object that
        ``return_dict_in_generate=True`` asks for; with ``num_return_sequences=n``, k * n rows.

    Raises:
        ValueError: as ``prefill``, or an option would have the prompts computed once more.
    """
    check_model(model, forward)
    check_positions(model)
    _check_options(model, options)
    ids = _token_ids(model, prompts, tokenizer)
    done = _prefilled(model, ids, method, forward)
    layout = left_padded(ids)
    token_ids = np.where(layout.segments < 0, _pad_token(model, tokenizer, options), layout.token_ids)
    cache = done.cache
    if token_ids.shape[1] == 1:
        cache = new_cache()  # without its last token, a prompt of one token has no cache
    else:
        cache.crop(-1)  # model.generate computes the tokens that the cache lacks
        copies = [_setting(model, options, name) or 1 for name in ("num_beams", "num_return_sequences")]
        if max(copies) > 1:
            cache.batch_repeat_interleave(max(copies))  # model.generate repeats prompts, but not a cache
    if tokenizer is not None and _setting(model, options, "stop_strings"):
        options.setdefault("tokenizer", tokenizer)
    carry_on: Any = model.generate
    return carry_on(
        torch.from_numpy(token_ids).to(model.device),
        attention_mask=done.attention_mask,
        past_key_values=cache,
        **options,
    )


def _token_ids(
    model: PreTrainedModel, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase | None
) -> list[TokenIds]:
    """Every prompt as int64 [length]."""
    if isinstance(prompts, (str, Mapping)) or getattr(prompts, "ndim", 1) != 1:
        wrong = f"a padded {type(prompts).__name__}" if not isinstance(prompts, str) else "one string"
        raise ValueError(f"prompts: {wrong}; give a list of strings, or of lists of token ids without pads")
    if not len(prompts):
        raise ValueError("prompts: the list is empty; give at least one prompt")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts and tokenizer is None:
        raise ValueError("prompts: strings need tokenizer=; give one, or prompts as lists of token ids")
    encoded = iter(tokenizer(texts)["input_ids"] if texts and tokenizer is not None else [])
    found = [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]
    embeddings: Any = model.get_input_embeddings()
    return [_checked(number, prompt, embeddings.num_embeddings) for number, prompt in enumerate(found)]


def _checked(number: int, prompt: Any, vocabulary: int) -> TokenIds:
    ids = prompt.detach().cpu().numpy() if isinstance(prompt, torch.Tensor) else np.asarray(prompt)
    if ids.ndim == 1 and not ids.size:
        raise ValueError(f"prompts: prompt {number} is empty; a prompt needs at least one token")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"prompts: prompt {number} is no list of token ids; give whole numbers, or strings")
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(f"prompts: prompt {number} holds token ids outside of 0 to {vocabulary - 1}, the vocabulary")
    return ids.astype(np.int64)


def _check_options(model: PreTrainedModel, options: dict[str, Any]) -> None:
    for name in _OURS:
        if name in options:
            raise ValueError(f"{name}: it is made from the prompts; leave it out")
    unset = (None, False, "hybrid")  # the last stands in old models' files, and transformers ignores it
    for name in _CLASHING:
        if _setting(model, options, name) not in unset:
            raise ValueError(f"{name}: it cannot go on from a cache of prefilled prompts; leave it out")
    if _setting(model, options, "use_cache") is False:
        raise ValueError("use_cache: False would have the prompts computed once more; it has to be True")


def _setting(model: PreTrainedModel, options: dict[str, Any], name: str) -> Any:
    """What ``model.generate`` takes ``name`` to be: an option, or of the configuration given, or of the model's."""
    configurations = [options.get("generation_config"), model.generation_config]
    sources = [options, *(vars(configuration) for configuration in configurations if configuration is not None)]
    return next((source[name] for source in sources if source.get(name) is not None), None)


def _pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, options: dict[str, Any]) -> int:
    """What stands left of shorter prompts. No token is computed from it, but processors of logits see it."""
    ends = _setting(model, options, "eos_token_id")
    candidates = (
        getattr(tokenizer, "pad_token_id", None),
        _setting(model, options, "pad_token_id"),
        ends[0] if isinstance(ends, list) and ends else ends,
    )
    return next((int(token) for token in candidates if isinstance(token, int)), 0)
