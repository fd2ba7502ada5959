"""Whether a method is right: first tokens, KV cache and, where asked for, continuations against each prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache, PreTrainedModel

from ..prefilling.attention.kernels import without_cudnn
from ..prefilling.cache import new_cache
from ..prefilling.greedy import greedy
from ..prefilling.method import Engine, Prefilled, TokenIds
from ..prefilling.packing import Bins
from .timer import NoTimer

# Largest allowed norm of a layer's KV difference over the layer's norm. With a real model (SmolLM2-135M) and real
# questions, rounding gives at most 9e-6 in float32 and 0.09 in bfloat16; a prompt alone in bfloat16 lies up to 0.07
# from itself in float32. Positions off by one give 0.22 and more, a mask that shows one token too many 0.42, running
# positions 0.76, a plain causal mask 0.83. Quantized products round activations or weights again by the shape of the
# product, 8-bit ones with outliers chosen over the whole batch.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.15}
QUANTIZED_TOLERANCE = {"none": 0.0, "4": 0.15, "8": 0.2}
# How near two logits must lie for either token to be right, in standard deviations of the logits.
NEAR_TIE = {torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 0.6}
QUANTIZED_NEAR_TIE = {"none": 0.0, "4": 0.6, "8": 2.0}


@dataclass
class Verification:
    """What the check found. ``problem`` is None where the method is right; ``continued`` counts continued prompts."""

    prompts: int = 0
    max_abs_diff: float = 0.0
    max_rel_diff: float = 0.0
    near_ties: int = 0
    continued: int = 0
    generated_tokens: int = 0
    generated_equal: int = 0
    problem: str | None = None

    @property
    def generated_equal_pct(self) -> float | None:
        """Prompts whose whole continuation was equal, in percent of those continued; None where none was."""
        return 100 * self.generated_equal / self.continued if self.continued else None


@torch.inference_mode()
def verify(
    model: PreTrainedModel,
    batches: Sequence[tuple[Sequence[TokenIds], Bins | None]],
    engine: Engine,
    loadbit: str,
    generate_tokens: int = 0,
) -> Verification:
    """Prefill ``batches`` with ``engine`` and compare every prompt's first token and KV with the prompt run alone.

    The engine must have been made for the ttft metric. A serving engine that keeps its KV to itself is judged by its
    first tokens. With ``generate_tokens``, so many tokens after the first are generated greedily from the engine's own
    cache, and compared with ordinary greedy generation from the prompt alone.

    What is not finite, in keys, values or logits, is wrong on either side: where all logits are NaN, every method
    chooses the same token.

    A token that differs is accepted only as a near-tie: the lone prompt's logits of the two differ by at most
    ``NEAR_TIE`` of its logits' standard deviation. What follows it in that prompt's continuation is another text, and
    not compared.
    """
    found = Verification()
    tolerance = max(TOLERANCE[model.dtype], QUANTIZED_TOLERANCE[loadbit])
    near = max(NEAR_TIE[model.dtype], QUANTIZED_NEAR_TIE[loadbit])
    for prompts, bins in batches:
        done = engine.prefill(prompts, NoTimer(), bins)
        assert done.first_tokens is not None
        for number, (ids, token) in enumerate(zip(prompts, done.first_tokens, strict=True)):
            alone, lone_ids = new_cache(), torch.from_numpy(ids).to(model.device)[None]
            with without_cudnn(model.device):
                out = model(input_ids=lone_ids, past_key_values=alone, use_cache=True, logits_to_keep=1)
            logits = out.logits[0, -1].float()
            found.prompts += 1
            _compare_caches(found, done, number, alone, tolerance)
            own = [] if done.logits is None else [done.logits[number]]
            _see_finite(found, f"logits, which follow layer {len(alone.layers) - 1},", logits, *own)
            if token != int(logits.argmax()):
                _judge(found, "first token", token, logits, near)
        if generate_tokens and done.cache is not None:
            _continue(found, model, prompts, done, generate_tokens, near)
    return found


def _compare_caches(found: Verification, done: Prefilled, number: int, alone: Cache, tolerance: float) -> None:
    """Note where a prompt's keys or values in the batch differ from those that it has alone.

    Args:
        number: the prompt's row in the batch's cache.
        alone: keys and values [1, heads, tokens, head_dim] of the prompt run alone.
        tolerance: of the difference's norm over the norm.
    """
    start = int(done.mask[number].argmax()) if done.mask is not None else 0
    for layer, (ours, theirs) in enumerate(zip(done.cache.layers if done.cache else [], alone.layers, strict=False)):
        for name in ("keys", "values"):
            want = getattr(theirs, name)[0].float()
            tokens = want.shape[1]
            have = getattr(ours, name)[number, :, start : start + tokens].float()
            _see_finite(found, f"{name} of layer {layer}", want, have)
            difference = have - want
            relative = float(difference.norm() / want.norm())
            found.max_abs_diff = max(found.max_abs_diff, float(difference.abs().max()))
            found.max_rel_diff = max(found.max_rel_diff, relative)
            if not relative <= tolerance:
                found.problem = found.problem or (
                    f"{name} of layer {layer} differ from the prompt run alone by {relative:.2g} of their norm "
                    f"(allowed {tolerance:.2g}), prompt of {tokens} tokens"
                )


def _see_finite(found: Verification, what: str, alone: torch.Tensor, *own: torch.Tensor) -> None:
    """Note where the prompt run alone, or the method, gives something else than numbers."""
    for whose, tensor in (("the prompt run alone", alone), *(("the method", each) for each in own)):
        if not bool(torch.isfinite(tensor).all()):
            found.problem = found.problem or f"{what} are not finite in {whose}"


def _judge(found: Verification, what: str, token: int, logits: torch.Tensor, near: float) -> None:
    """Count a token that differs as a near-tie, or note the problem; logits [vocab] are the lone prompt's."""
    gap = float(logits.max() - logits[token])
    if gap <= near * float(logits.std()):
        found.near_ties += 1
    else:
        found.problem = found.problem or f"{what} {token} instead of {int(logits.argmax())}, logits {gap:.3g} apart"


def _continue(
    found: Verification,
    model: PreTrainedModel,
    prompts: Sequence[TokenIds],
    done: Prefilled,
    tokens: int,
    near: float,
) -> None:
    """Continue all prompts from the engine's cache, which grows by it, and each prompt alone; compare the tokens."""
    assert done.mask is not None
    assert done.first_tokens is not None
    first = torch.tensor(done.first_tokens, device=model.device)[:, None]
    mask = torch.cat([done.mask, done.mask.new_ones(len(prompts), 1)], dim=1)
    with without_cudnn(model.device):
        from_cache = greedy(model, first, mask, tokens, past_key_values=done.cache).sequences.tolist()
    for ids, ours in zip(prompts, from_cache, strict=True):
        prompt = torch.from_numpy(ids).to(model.device)[None]
        # The mask is given, because generation would mistake a token with the id of the pad for a pad.
        with without_cudnn(model.device):
            alone = greedy(model, prompt, torch.ones_like(prompt), tokens + 1, output_logits=True)
        theirs = alone.sequences[0, len(ids) :].tolist()
        found.continued += 1
        differs = next((place for place in range(tokens + 1) if ours[place] != theirs[place]), None)
        found.generated_tokens += tokens if differs is None else differs
        if differs is None:
            found.generated_equal += 1
        elif differs:  # the first tokens were judged before
            what = f"a prompt of {len(ids)} tokens goes on from its cache, {differs} after the first, with token"
            _judge(found, what, ours[differs], alone.logits[differs][0].float(), near)
