"""Right before fast: each method's first tokens and KV against each prompt run alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from src.measure.timer import NoTimer
from src.prefill.cache import new_cache
from src.prefill.methods import Engine, TokenIds
from src.prefill.packing import Bins

# Largest allowed norm of a layer's KV difference over the norm of the layer. A wrong mask or position gives about 1;
# rounding gives 1e-6 in float32 and a few hundredths in bfloat16 after tens of layers. Quantized products round
# activations or weights again by the shape of the product, 8-bit ones with outliers chosen over the whole batch.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
QUANTIZED_TOLERANCE = {"none": 0.0, "4": 6e-2, "8": 2e-1}


@dataclass
class Verification:
    """What the check found. ``problem`` is None where the method is right."""

    prompts: int = 0
    max_abs_diff: float = 0.0
    max_rel_diff: float = 0.0
    near_ties: int = 0
    problem: str | None = None


@torch.inference_mode()
def verify(
    model: PreTrainedModel,
    batches: Sequence[tuple[Sequence[TokenIds], Bins | None]],
    engine: Engine,
    loadbit: str,
) -> Verification:
    """Prefill ``batches`` with ``engine`` and compare every prompt's first token and KV with the prompt run alone.

    The engine must have been made for the ttft metric. A serving engine that keeps its KV to itself is judged by its
    first tokens.

    A first token that differs is accepted only as a near-tie: the lone prompt's logits of the two differ by less than
    the tolerance times their spread.
    """
    found = Verification()
    tolerance = max(TOLERANCE[model.dtype], QUANTIZED_TOLERANCE[loadbit])
    for prompts, bins in batches:
        done = engine.prefill(prompts, NoTimer(), bins)
        assert done.first_tokens is not None
        kept = done.cache.layers if done.cache else []
        for number, (ids, token) in enumerate(zip(prompts, done.first_tokens, strict=True)):
            alone = new_cache()
            logits = (
                model(
                    input_ids=torch.from_numpy(ids).to(model.device)[None],
                    past_key_values=alone,
                    use_cache=True,
                    logits_to_keep=1,
                )
                .logits[0, -1]
                .float()
            )
            found.prompts += 1
            for layer, (ours, theirs) in enumerate(zip(kept, alone.layers, strict=False)):
                for name in ("keys", "values"):
                    want = getattr(theirs, name)[0].float()
                    start = int(done.mask[number].argmax()) if done.mask is not None else 0
                    have = getattr(ours, name)[number, :, start : start + len(ids)].float()
                    difference = (have - want).abs()
                    relative = float((have - want).norm() / want.norm())
                    found.max_abs_diff = max(found.max_abs_diff, float(difference.max()))
                    found.max_rel_diff = max(found.max_rel_diff, relative)
                    if not relative <= tolerance:
                        found.problem = found.problem or (
                            f"{name} of layer {layer} differ from the prompt run alone by {relative:.2g} of their norm "
                            f"(allowed {tolerance:.2g}), prompt of {len(ids)} tokens"
                        )
            if token != int(logits.argmax()):
                gap = float(logits.max() - logits[token])
                if gap <= tolerance * float(logits.std()) * 10:
                    found.near_ties += 1
                else:
                    found.problem = found.problem or (
                        f"first token {token} instead of {int(logits.argmax())}, logits {gap:.3g} apart"
                    )
    return found
