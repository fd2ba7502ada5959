"""Which attention kernel ran, seen in one profiled, untimed pass; and the fastest one, which the ideal takes.

What torch picks under scaled-dot-product attention depends on the GPU, the type, the shape and the release: it may be
FlashAttention in one method and cuDNN in the next, and then two methods differ by their kernels too.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import PreTrainedModel

from ..cli import UserError, warn
from ..prefilling.attention.kernels import pick_kernel
from ..prefilling.attention.native import OPERATOR
from ..prefilling.attention.spans import SPAN, SPAN_OF_TORCH
from ..prefilling.ideal import FusedIdeal, Ideal
from ..prefilling.method import PrefillOptions, TokenIds
from ..prefilling.supported import unfit
from .timer import PhaseTimer

# Kernels on a GPU by a part of their names, the more specific first.
DEVICE_KERNELS = (
    ("FlashAttention 4", r"flash_?attn.?cute|FlashAttentionForwardSm"),
    ("FlashAttention 3", r"FlashAttnFwd|flash_fwd_sm90"),
    ("FlashAttention 2", r"flash_fwd(_splitkv)?_kernel"),
    ("cuDNN", r"cudnn.*(sdpa|flash|fmha)"),
    ("memory-efficient", r"fmha_cutlass|PyTorchMemEffAttention"),
    ("FlexAttention", r"triton_tem_"),  # of what is compiled here, attention alone is made from a template
)
FLASH = "FlashAttention"  # the operator does not say which version
OPERATORS = {
    OPERATOR: "C++ (CPU)",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash (CPU)",
    "aten::_scaled_dot_product_flash_attention": FLASH,
    "aten::_flash_attention_forward": FLASH,
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_cudnn_attention_forward": "cuDNN",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient",
    "aten::_efficient_attention_forward": "memory-efficient",
    "aten::_scaled_dot_product_attention_math": "math",
}
WHOLE = "a batch"  # its name in a profile
SPANS = {WHOLE, SPAN, SPAN_OF_TORCH, *OPERATORS}  # what is no kernel of a GPU, whatever a profile calls it
IDEAL_RUNS = 2  # timed, after one to warm up


def kernels_in(operators: Iterable[tuple[str, float]], on_device: Iterable[tuple[str, float]]) -> list[str]:
    """The attention kernels among what a profiler saw, those that took longest first.

    A kernel's own name on the GPU says more than the operator that called it, which counts where no such name is known.

    Args:
        operators, on_device: names of torch's operators and of a GPU's kernels, each with its time.
    """
    found: dict[str, float] = defaultdict(float)
    for name, spent in on_device:
        if word := next((word for word, pattern in DEVICE_KERNELS if re.search(pattern, name)), None):
            found[word] += spent
    told = set(found)
    for name, spent in operators:
        word = OPERATORS.get(name)
        if word and word not in told and not (word == FLASH and any(known.startswith(FLASH) for known in told)):
            found[word] += spent
    return sorted(found, key=lambda word: -found[word])


def kernels_of(run: Callable[[], object], device: torch.device) -> tuple[str | None, float | None]:
    """The attention kernels of ``run``, called once under torch's profiler, and the share of its time in attention.

    Returns:
        The kernels in words, and the share; None where it saw none.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # a serving engine has a thread
    try:
        with profile(activities=activities, experimental_config=everywhere) as profiler, record_function(WHOLE):
            run()
        events = profiler.events() or []
    except Exception as error:  # a failing profiler may cost a column, but never a measurement
        warn(f"which attention kernel ran is not known ({type(error).__name__}: {' '.join(str(error).split())[:120]})")
        return None, None
    operators = [(event.name, event.self_cpu_time_total) for event in events if event.name in OPERATORS]
    on_device = [(e.name, e.self_device_time_total) for e in events if e.device_type != torch.autograd.DeviceType.CPU]
    words = " and ".join(kernels_in(operators, on_device)) or None
    # A span of ours may be listed a second time, among what ran on the device.
    on_host = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    spent = on_the_device if device.type == "cuda" else lambda event: event.cpu_time_total
    within, whole = (sum(spent(event) for event in on_host if event.name == name) for name in (SPAN, WHOLE))
    return words, within / whole if within and whole else None


def on_the_device(event: Any) -> float:
    """Time of the GPU's kernels that were launched within an event of a profile, microseconds.

    A profile may link to a span the range that it covers on the GPU, as if that were a kernel, which is left out.
    """
    own = sum(kernel.duration for kernel in event.kernels if kernel.name not in SPANS)
    return float(own + sum(on_the_device(child) for child in event.cpu_children))


AnyIdeal = Ideal | FusedIdeal


def fastest(engines: Sequence[AnyIdeal], prompts: Sequence[TokenIds], *devices: torch.device) -> AnyIdeal:
    """The engine that prefills a batch fastest; those that cannot are left out, and of one there is nothing to try."""
    if len(engines) == 1:
        return engines[0]
    timer = PhaseTimer(*devices)
    taken: list[tuple[float, int]] = []
    for place, engine in enumerate(engines):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # several lines on why a kernel does not serve
                for run in range(1 + IDEAL_RUNS):
                    timer.start()
                    engine.prefill(prompts, timer)
                    timer.stop()
                    if run:
                        taken.append((timer.host_seconds, place))
        except Exception:  # no such kernel for this type, shape or GPU, as each library says it; memory that runs out
            continue
    return engines[min(taken)[1]] if taken else engines[0]


def ideals(model: PreTrainedModel, options: PrefillOptions) -> list[AnyIdeal]:
    """The ideal by the model's own forward with each kernel that there may be, torch's own choice first; and by ours.

    Ours only where the methods use it: it holds weights a second time on CPUs.
    """
    split, fits = getattr(model, "hf_device_map", None), unfit(model.config, options.forward) is None
    ours: list[AnyIdeal] = []
    if options.forward != "transformers" and fits and not split:
        with contextlib.suppress(UserError):  # a forward that this device has none of: its methods are skipped
            ours = [FusedIdeal(model, options)]
    if model.device.type != "cuda":
        return [Ideal(model), *ours]
    pinned = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    varlen = [Ideal(model, "varlen")] if pick_kernel(model.device, model.dtype) == "varlen" and not split else []
    return [Ideal(model), *(Ideal(model, backend) for backend in pinned), *varlen, *ours]
