"""Each attention kernel gives what each prompt alone gives, under every layout, and says what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, TINY_OVERRIDES, draw_prompts, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from src.cli import UserError
from src.config import CHOICES, Config
from src.measure.verify import verify
from src.prefilling.attention import dense, flash, flex, segments, varlen
from src.prefilling.attention.kernels import AUTO, KERNELS, kernel_of
from src.prefilling.attention.spans import Spans, causal, windows_of
from src.prefilling.engines import make_engine
from src.prefilling.method import PrefillOptions
from src.prefilling.methods import METHODS, method_of
from src.records.store import Record

CPU = torch.device("cpu")
HERE = [name for name, module in KERNELS.items() if not module.missing(CPU, torch.float32)]
MODELS = {family: tiny_model(family) for family in FAMILIES}
PROMPTS = draw_prompts([60, 3, 17, 140, 1, 9])


def test_the_settings_are_the_kernels() -> None:
    assert CHOICES["attention"] == (AUTO, *KERNELS)


@pytest.mark.parametrize("kernel", HERE)
@pytest.mark.parametrize("method", ["full-batching", "prepacking", "padding-free"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_kernel_gives_what_prompts_alone_give(family: str, method: str, kernel: str) -> None:
    forwards = ["fused"] if kernel == "flex" else ["fused", "transformers"]  # compiling takes seconds
    for forward in forwards:
        options = PrefillOptions(forward=forward, attention=kernel, max_tokens=170)
        found = verify(MODELS[family], [(PROMPTS, None)], make_engine(MODELS[family], METHODS[method], options), "none")
        assert found.problem is None
        assert found.prompts == len(PROMPTS)


@pytest.mark.parametrize("kernel", HERE)
def test_a_mask_that_shows_too_much_is_found(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = KERNELS[kernel].plan
    monkeypatch.setattr(
        KERNELS[kernel], "plan", lambda spans: real(Spans(np.array([0]), np.array([spans.tokens]), 1, spans.tokens))
    )
    engine = make_engine(MODELS["llama"], METHODS["padding-free"], PrefillOptions(attention=kernel))
    found = verify(MODELS["llama"], [(PROMPTS, None)], engine, "none")
    assert found.problem is not None
    assert "differ from the prompt run alone" in found.problem


Lengths = st.lists(st.integers(1, 400), min_size=1, max_size=12)


@given(lengths=Lengths, gap=st.integers(0, 70), window=st.none() | st.integers(1, 300))
@settings(deadline=None)
def test_blocks_are_those_that_a_look_at_every_pair_finds(lengths: list[int], gap: int, window: int | None) -> None:
    size = np.array(lengths)
    spans = Spans(np.cumsum(size) - size, size, 1, int(size.sum()) + gap, (window,))
    planned = flex.plan(spans)
    numbers, at = planned.numbers.numpy(), np.arange(len(planned.numbers))
    assert spans.tokens <= len(numbers) < spans.tokens + 4 * flex.BLOCK
    sees = (numbers[:, None] == numbers[None, :]) & (at[:, None] >= at[None, :])
    if window is not None:
        sees &= at[:, None] - at[None, :] < window
    count = len(numbers) // flex.BLOCK
    blocks = planned.blocks[window]
    for query in range(count):
        rows = sees[query * flex.BLOCK : (query + 1) * flex.BLOCK]
        parts = [rows[:, key * flex.BLOCK : (key + 1) * flex.BLOCK] for key in range(count)]
        partial = blocks.partial[query, : int(blocks.partial_number[query])].tolist()
        full = blocks.full[query, : int(blocks.full_number[query])].tolist()
        assert {key for key, part in enumerate(parts) if part.any()} <= {*partial, *full}
        assert all(parts[key].all() for key in full)
        assert not set(partial) & set(full)
        assert all(parts[key].any() for key in partial), "a block is computed for nothing"


@given(lengths=Lengths)
@settings(deadline=None)
def test_pairs_are_at_least_those_needed_and_exact_where_nothing_is_padded(lengths: list[int]) -> None:
    size = np.array(lengths)
    spans = Spans(np.cumsum(size) - size, size, 1, int(size.sum()))
    needed = sum(length * (length + 1) // 2 for length in lengths)
    assert causal(size) == varlen.plan(spans).pairs == flash.plan(spans).pairs == needed
    assert segments.plan(spans).pairs >= needed
    assert dense.plan(spans).pairs == sum(lengths) ** 2
    assert flex.plan(spans).pairs >= needed


@pytest.mark.parametrize("window", [None, 7])
def test_flash_is_given_offsets_and_gives_what_attention_is(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: None, query_length: int, is_causal: bool,
                 softmax_scale: float, sliding_window: int | None, cu_seq_lens_q: torch.Tensor,
                 cu_seq_lens_k: torch.Tensor, max_length_q: int, max_length_k: int,
                 attn_implementation: str) -> torch.Tensor:  # fmt: skip
        """As transformers documents its function: [1, tokens, heads, head_dim], offsets, whole windows."""
        seen.update(locals())
        at, number = (
            torch.arange(query_length),
            torch.bucketize(torch.arange(query_length), cu_seq_lens_q[1:], right=True),
        )
        sees = (number[:, None] == number) & (at[:, None] >= at)
        if sliding_window is not None:
            sees &= at[:, None] - at < sliding_window
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        found = scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=softmax_scale, enable_gqa=True)
        return found.transpose(1, 2)

    monkeypatch.setattr("transformers.modeling_flash_attention_utils._flash_attention_forward", stand_in)
    size = np.array([5, 1, 30, 12])
    spans, qkv = Spans(np.cumsum(size) - size, size, 1, 48, (window,)), torch.randn(49, 4 + 2 * 2, 16)
    want = segments.plan(spans).attend(qkv, 4, 2, 0.25, torch.zeros(49, 64), window)[:48]
    have = flash.plan(spans).attend(qkv[:48], 4, 2, 0.25, torch.zeros(48, 64), window)
    assert torch.allclose(have, want, atol=1e-5)
    assert seen["cu_seq_lens_q"].tolist() == [0, 5, 6, 36, 48]
    assert seen["max_length_q"] == 30


def test_what_a_machine_or_type_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert kernel_of(AUTO, CPU, torch.float32) is segments
    assert kernel_of(AUTO, cuda, torch.bfloat16) is varlen
    assert kernel_of(AUTO, cuda, torch.float32) is segments
    for wanted, device, dtype, problem in (
        ("varlen", CPU, torch.bfloat16, "runs on CUDA alone"),
        ("varlen", cuda, torch.float32, "has no float32"),
        ("flash", CPU, torch.bfloat16, "runs on CUDA alone"),
        ("flash", cuda, torch.float32, "has no float32"),
        ("flash", cuda, torch.bfloat16, "no FlashAttention package is installed; pip install flash-attn"),
    ):
        with pytest.raises(UserError, match=f"^attention: .*{problem}"):
            kernel_of(wanted, device, dtype)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"there is no C\+\+ compiler; install g\+\+"):
        kernel_of("flex", CPU, torch.float32)


def test_a_layer_has_the_window_of_its_kind() -> None:
    def config(**given: Any) -> Any:
        return SimpleNamespace(**{"model_type": "mistral", "sliding_window": 8} | given)

    assert windows_of(config(model_type="llama")) == (None,)
    assert windows_of(config()) == (8,)
    assert windows_of(config(layer_types=["full_attention"] * 2)) == (None,)
    assert windows_of(config(layer_types=["full_attention", "sliding_attention"])) == (8, None)


def test_kernels_are_measured_side_by_side_and_one_that_is_missing_is_skipped(
    measure: Callable[..., list[Record]],
) -> None:
    names = ["full-batching", "padding-free", "padding-free+dense", "padding-free+varlen"]
    found = {record.row.method: record.row for record in measure(f"methods=[{','.join(names)}]")}
    assert set(found) == set(names)
    row = found["padding-free+varlen"]
    assert (row.status, row.attention_asked) == ("skipped", "varlen")
    assert "torch's variable-length kernel runs on CUDA alone; use attention=segments" in (row.status_reason or "")
    masked, plain = found["padding-free+dense"], found["padding-free"]
    assert (masked.status, masked.attention_asked, plain.attention_asked) == ("ok", "dense", None)
    assert masked.attention == "dense mask, SDPA"
    assert masked.attention_pairs_ratio is not None
    assert plain.attention_pairs_ratio is not None
    assert masked.attention_pairs_ratio > 2 * plain.attention_pairs_ratio >= 2
    assert masked.speedup_over_full_batching is not None
    assert (masked.mask_s_mean or 0) > 0
    assert all(0 < (each.attention_share or 0) < 1 for each in (masked, plain))


@pytest.mark.parametrize(("setting", "problem"), [
    ("methods=[padding-free+fast]", "methods: unknown 'fast'; choose one of segments, dense, varlen, flex, flash"),
    ("methods=[padfree+dense]", "methods: unknown 'padfree'"),
    ("method=vllm+dense", "method: vllm attends by a kernel of its own choice; leave out +dense"),
    ("attention=fast", "attention: unknown 'fast'"),
    ("protocol=paper attention=dense", "attention: dense, but protocol=paper attends as the authors' code does"),
    ("protocol=paper method=prepacking+dense", "method: prepacking+dense, but protocol=paper"),
])  # fmt: skip
def test_a_kernel_that_there_is_not_is_refused(setting: str, problem: str, tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(UserError) as raised:
        tiny_config(*setting.split())
    assert problem in str(raised.value)


def test_a_method_with_a_kernel_is_the_method_with_another_name() -> None:
    found = method_of("prepacking+dense")
    assert (found.name, found.attention, found.rows) == ("prepacking+dense", "dense", "bin")
    assert method_of("no-such").rows == "prompt"
    assert TINY_OVERRIDES
