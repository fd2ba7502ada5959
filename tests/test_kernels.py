"""Which attention kernel ran is seen and not assumed, and the ideal takes the fastest that there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from conftest import draw_prompts, tiny_model
from torch.nn.attention import SDPBackend

from src.measure import kernels, runner, turns
from src.measure.kernels import fastest, ideals, kernels_in, kernels_of
from src.measure.plan import prepare
from src.measure.timer import NoTimer
from src.prefilling import cpp
from src.prefilling.ideal import FusedIdeal, Ideal
from src.prefilling.method import PrefillOptions
from src.records.store import Record
from src.report.words import validity

CPU = torch.device("cpu")
FLASH_2 = "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, cutlass::bfloat16_t>>"
FLASH_2_SPLIT = "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4>>"
FLASH_3 = "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::Mainloop>>>"
FLASH_4 = "kernel_cutlass_kernel_flash_attncuteflash_fwd_sm100FlashAttentionForwardSm100_object_at_0x7f_tensorptrbf16"
CUDNN = "cudnn_generated_fort_native_sdpa_sm90_knob_7_64x128x128_4x1x1_kernel0_0"
EFFICIENT = "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>)"
FORWARD = "aten::_flash_attention_forward"
PRODUCT = "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_TNT"


@pytest.mark.parametrize(
    ("operators", "on_device", "found"),
    [
        (["aten::_scaled_dot_product_flash_attention_for_cpu"], [], ["flash (CPU)"]),
        (["aten::_scaled_dot_product_attention_math"], [], ["math"]),
        (["aten::mm", "aten::softmax"], [PRODUCT], []),
        (["aten::_scaled_dot_product_flash_attention", FORWARD], [FLASH_2], ["FlashAttention 2"]),
        ([FORWARD], [FLASH_2_SPLIT], ["FlashAttention 2"]),
        ([FORWARD], [FLASH_3], ["FlashAttention 3"]),
        ([FORWARD], [FLASH_4], ["FlashAttention 4"]),
        ([FORWARD], [PRODUCT], ["FlashAttention"]),  # no version is made up
        (["aten::_scaled_dot_product_cudnn_attention"], [CUDNN, PRODUCT], ["cuDNN"]),
        (["aten::_scaled_dot_product_cudnn_attention"], [], ["cuDNN"]),
        (["aten::_scaled_dot_product_efficient_attention"], [EFFICIENT], ["memory-efficient"]),
        (["aten::_scaled_dot_product_attention_math"], [FLASH_2], ["FlashAttention 2", "math"]),
    ],
)  # fmt: skip
def test_names_of_kernels_are_told_from_what_a_profiler_sees(
    operators: list[str], on_device: list[str], found: list[str]
) -> None:
    assert kernels_in([(name, 1.0) for name in operators], [(name, 2.0) for name in on_device]) == found


def test_several_kernels_come_by_their_time() -> None:
    assert kernels_in([], [(CUDNN, 1.0), (EFFICIENT, 5.0), (CUDNN, 1.0)]) == ["memory-efficient", "cuDNN"]


@pytest.mark.parametrize(
    "how",
    [
        ["forward=fused", "dtype=bfloat16"],
        ["forward=transformers", "dtype=float32"],
        ["protocol=paper"],
    ],
    ids=" ".join,
)
def test_the_kernel_of_each_method_on_a_cpu(how: list[str], measure: Callable[..., list[Record]]) -> None:
    modern = "protocol=paper" not in how
    methods = ["full-batching", "length-ordered", "prepacking", "dataset-prepacking", *["padding-free"] * modern]
    rows = [r.row for r in measure(f"methods=[{','.join(methods)}]", "repeats=1", f"ideal={str(modern).lower()}", *how)]
    ours = "C++ (CPU)" if modern and cpp.missing() is None else "flash (CPU)"
    assert [row.attention_kernel for row in rows] == [ours] * len(methods)
    # The ideal is the faster of the model's own forward and, where the methods use it, ours.
    assert {row.ideal_attention_kernel for row in rows} <= ({"flash (CPU)", ours} if modern else {None})


def test_a_serving_engines_thread_is_seen_too(measure: Callable[..., list[Record]]) -> None:
    (record,) = measure("method=continuous-batching", "repeats=1", "num_prompts=4")
    assert record.row.attention_kernel == "flash (CPU)"


def test_what_a_profiler_cannot_see_is_empty_and_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernels_of(lambda: torch.ones(3) + 1, CPU) == (None, None)

    def lost() -> None:
        raise RuntimeError("CUPTI is not there")

    assert kernels_of(lost, CPU) == (None, None)
    assert "note: which attention kernel ran is not known (RuntimeError: CUPTI is not there)" in capsys.readouterr().err


class Fake:
    """Takes so long for a batch, or cannot."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.batches = seconds, 0

    def prefill(self, prompts: Sequence[Any], t: object) -> None:
        self.batches += 1
        if self.seconds is None:
            raise RuntimeError("No available kernel")
        time.sleep(self.seconds)


def test_the_ideal_is_the_fastest_of_those_that_can() -> None:
    slow, quick, none = Fake(0.05), Fake(0.001), Fake(None)
    prompts = draw_prompts([3, 4])
    assert fastest([slow, quick, none], prompts, CPU) is quick  # type: ignore[list-item, comparison-overlap]
    assert (slow.batches, none.batches) == (3, 1)
    assert fastest([none, none], prompts, CPU) is none  # type: ignore[list-item, comparison-overlap]
    assert fastest([alone := Fake(None)], prompts, CPU) is alone  # type: ignore[list-item, comparison-overlap]
    assert alone.batches == 0  # of one there is nothing to try


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH, "segments"])
def test_the_ideal_computes_the_same_by_every_kernel(kernel: Any) -> None:
    model, prompts = tiny_model(), draw_prompts([7, 3, 5])
    wanted = Ideal(model).prefill(prompts, NoTimer())
    engine = Ideal(model, kernel)
    found = engine.prefill(prompts, NoTimer())
    assert torch.allclose(found.logits, wanted.logits, atol=1e-5)
    assert found.computed_tokens == wanted.computed_tokens == 15
    word = {SDPBackend.MATH: "math"}.get(kernel, "flash (CPU)")
    assert kernels_of(lambda: engine.prefill(prompts, NoTimer()), CPU)[0] == word


@pytest.mark.parametrize("forward", ["fused", "transformers"])
def test_the_ideal_is_by_the_models_own_forward_and_by_ours_where_the_methods_use_that(forward: str) -> None:
    model, prompts = tiny_model(), draw_prompts([7, 3, 5])
    found = ideals(model, PrefillOptions(forward=forward, attention="dense", metric="ttft"))
    assert [type(engine) for engine in found] == ([Ideal] if forward == "transformers" else [Ideal, FusedIdeal])
    done = [engine.prefill(prompts, NoTimer()) for engine in found]
    assert torch.allclose(done[-1].logits, done[0].logits, atol=1e-5)
    assert {each.computed_tokens for each in done} == {15}
    assert all(each.first_tokens is None for each in done)
    assert "dense" not in found[-1].attention  # it takes the best kernel, whatever the methods are given


def test_a_row_says_where_its_kernel_is_not_the_ideals(
    monkeypatch: pytest.MonkeyPatch, tiny_config: Callable[..., Any]
) -> None:
    monkeypatch.setattr(kernels, "ideals", lambda model, _: [Ideal(model, SDPBackend.MATH)])
    plan = prepare(tiny_config("method=full-batching", "ideal=true", "repeats=1"))
    (record,) = runner.measure(plan)
    said = f"its attention ran on {'flash (CPU)' if cpp.missing() else 'C++ (CPU)'}, the ideal's on math"
    assert said in str(record.row.notes).split("; ")
    assert validity([record.row])[-1] == f"note: full-batching: {said}"
    assert record.row.fraction_of_ideal is not None


def test_the_profiled_pass_is_not_among_the_timed_ones(
    monkeypatch: pytest.MonkeyPatch, tiny_config: Callable[..., Any]
) -> None:
    events: list[str] = []
    real_profile, real_timed = kernels.kernels_of, turns._timed_pass
    monkeypatch.setattr(kernels, "kernels_of", lambda *a: (events.append("profiled"), real_profile(*a))[1])
    monkeypatch.setattr(turns, "_timed_pass", lambda *a: (events.append("timed"), real_timed(*a))[1])
    (record,) = runner.measure(prepare(tiny_config("method=prepacking")))
    assert events == ["timed"] * 3 + ["profiled"]  # warm-up and two repeats
    assert len(record.samples) == 2 * 3
