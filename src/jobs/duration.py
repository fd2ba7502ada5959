"""A rough estimate of how long a comparison takes, from its operations, a measured rate and what comes on top."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..measure.plan import Assignment, Plan
from ..prefilling.attention import dense, segments
from ..prefilling.shape import Shape
from ..prefilling.vllm import driver

REACHED = {"cpu": 0.6, "cuda": 0.7}  # whole prefills reach about this share of the matrix-product rate
START_S = {"cpu": 1.0, "cuda": 5.0}  # a process, the device, libraries; on a GPU its context and first kernels
RATES_S = {"cpu": 1.8, "cuda": 1.5}  # measuring the rates of products and copies, for the limit
DRAWN_PER_S = {"cpu": 1e8, "cuda": 2e9}  # weights drawn at random
ALONE_S = {"cpu": 0.003, "cuda": 0.03}  # per verified prompt, in addition to its operations: many small kernels
WINDOWS_S = {"cpu": 0.6, "cuda": 6.0}  # a pass that is shorter is looped for its utilization
CUDNN_S = 0.4  # cuDNN, which a recent GPU's attention prefers, plans every shape that it has not seen
ENGINE_S = {"continuous-batching": 3.0, "vllm": 90.0}  # starting a serving engine


@dataclass(frozen=True)
class Parts:
    """What a comparison's time is made of: ``fixed_s`` seconds around the forwards, and ``operations`` in them."""

    fixed_s: float
    operations: float


def parts_of(plan: Plan, times: float = 1.0) -> Parts:
    """Estimate a comparison: verification, warm-up and timed passes of each method, and what is done around them.

    Args:
        times: as if each batch had this many times as many prompts.
    """
    shape, c, kind = Shape.of(plan.source.config), plan.config, plan.device.type
    fixed_s = START_S[kind] + (shape.layer_parameters + shape.vocabulary) / DRAWN_PER_S[kind] + c.sampler_overhead_s
    fixed_s += RATES_S[kind] if c.ideal and not c.under_load else 0.0
    operations = 0.0
    for assignment in [*plan.methods, *([plan.ideal] if plan.ideal else [])]:
        if assignment.method.external and not driver.installed():
            continue
        batches = [
            shape.operations(*size, plan.logit_positions(*size, batch))
            for batch, size in zip(assignment.batches, assignment.shapes, strict=True)
        ]
        hardest = sorted(batches)[-c.verify_batches :]
        passes = 1 if c.under_load else c.warmup + c.repeats
        operations += passes * sum(batches)
        if kind == "cuda":
            operations += passes * max(batches)  # the untimed batch before each pass
            fixed_s += CUDNN_S * _planned_by_cudnn(plan, assignment)
        fixed_s += ENGINE_S.get(assignment.method.name, 0.0)
        if c.clock == "real":
            fixed_s += c.num_prompts / (c.rate or 1.0)
        if assignment is not plan.ideal:
            prompts = times * len(hardest) * c.batch_size
            operations += 2 * sum(hardest)  # by the method, and each prompt alone
            fixed_s += prompts * ALONE_S[kind] * (1 + c.generate_tokens)
            fixed_s += 0.0 if c.under_load else min(c.utilization_loop_s, WINDOWS_S[kind])
    return Parts(fixed_s, times * operations)


def _planned_by_cudnn(plan: Plan, assignment: Assignment) -> int:
    """Distinct shapes that a method's attention has, where cuDNN may serve it."""
    method, half = assignment.method, plan.dtype in (torch.float16, torch.bfloat16)
    kernel = method.attention or plan.config.attention
    if not half or plan.config.protocol == "paper" or method.serves or kernel not in (dense.NAME, segments.NAME):
        return 0
    if kernel == dense.NAME or not method.packs:
        return len(set(assignment.shapes))
    lengths = (plan.prompts.lengths[batch].tolist() for batch in assignment.batches)
    return len({(len(call), each[call[-1]]) for each in lengths for call in segments.calls_of(each)})


def in_words(seconds: float) -> str:
    """``40 s``, ``7 min`` or ``3 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
