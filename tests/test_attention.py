"""Each attention kernel gives what each prompt alone gives, under every layout, and says what it cannot do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import FAMILIES, draw_prompts, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import MistralConfig, Qwen2Config

from src.cli import UserError
from src.config import CHOICES, Config
from src.measure.compiling import Compiled
from src.measure.invariance import invariance
from src.measure.timer import NoTimer
from src.measure.verify import verify
from src.prefilling import cpp, onednn
from src.prefilling.attention import dense, flash, flex, native, segments, varlen
from src.prefilling.attention.kernels import AUTO, KERNELS, kernel_of
from src.prefilling.attention.spans import Spans
from src.prefilling.cache import new_cache
from src.prefilling.engines import make_engine
from src.prefilling.method import Prefilled, PrefillOptions
from src.prefilling.methods import METHODS, method_of
from src.prefilling.shape import windows_of
from src.records.row import Row
from src.records.store import Record
from src.report.section import make
from src.report.sections import kernels as kernels_section
from src.report.sections import today

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


@pytest.mark.parametrize("small", [0, onednn.SMALL])
@pytest.mark.parametrize("kernel", HERE)
def test_rows_of_products_are_filled_up_in_small_models_alone(
    kernel: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each new number of rows oneDNN makes code anew."""
    rows, real = set(), onednn.linear

    def linear(x: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        rows.add(len(x))
        return real(x, *others, **named)

    monkeypatch.setattr(onednn, "linear", linear)
    monkeypatch.setattr(onednn, "SMALL", small)
    engine = make_engine(MODELS["llama"], METHODS["padding-free"], PrefillOptions(attention=kernel))
    assert verify(MODELS["llama"], [(PROMPTS, None)], engine, "none").problem is None
    tokens = sum(map(len, PROMPTS))
    lines = tokens + (kernel == "segments")
    assert rows == {-(-lines // onednn.ROWS) * onednn.ROWS if small else lines, len(PROMPTS)}
    assert engine.prefill(PROMPTS, NoTimer()).computed_tokens == tokens


@pytest.mark.parametrize("kernel", HERE)
def test_rows_that_fill_up_bring_no_nan(kernel: str) -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.weight.data[0] = torch.nan  # no prompt has this token, which stands for pads
    engine = make_engine(model, METHODS["padding-free"], PrefillOptions(attention=kernel))
    assert torch.isfinite(engine.prefill(PROMPTS, NoTimer()).logits).all()


def test_a_layer_with_a_hook_sees_the_lines_rows_alone() -> None:
    model, seen = tiny_model("llama"), []
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    make_engine(model, METHODS["padding-free"], PrefillOptions(attention="dense")).prefill(PROMPTS, NoTimer())
    assert seen == [sum(map(len, PROMPTS)), len(PROMPTS)]  # of the last layer each prompt's last token alone


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


@given(lengths=Lengths, windows=st.sampled_from([(None,), (1,), (7,), (130,), (500,), (7, 130), (7, None)]))
@settings(deadline=None)
def test_pairs_are_at_least_those_needed_and_exact_where_nothing_is_padded(
    lengths: list[int], windows: tuple[int | None, ...]
) -> None:
    size = np.array(lengths)
    spans = Spans(np.cumsum(size) - size, size, 1, int(size.sum()), windows)
    widest = 10**6 if None in windows else max(window or 0 for window in windows)
    needed = sum(min(seen, widest) for length in lengths for seen in range(1, length + 1))
    for exact in (varlen, flash, native):
        assert exact.plan(spans).pairs == needed
    assert segments.plan(spans).pairs >= needed
    assert dense.plan(spans).pairs == sum(lengths) ** 2
    blocks = flex.plan(spans).blocks[None if None in windows else widest]
    assert flex.plan(spans).pairs == int(blocks.partial_number.sum() + blocks.full_number.sum()) * flex.BLOCK**2
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


@pytest.mark.parametrize("kernel", ["dense", "flex"])
def test_a_mask_follows_to_the_next_device_as_layers_of_a_split_model_need_it(kernel: str) -> None:
    size, there = np.array([5, 130, 12]), torch.device("meta")
    made = KERNELS[kernel].plan(Spans(np.cumsum(size) - size, size, 1, 147, (None, 7))).made().to(there)
    for window in (None, 7):
        mask = made.masks[window]
        tensors = [mask] if kernel == "dense" else [mask.kv_indices, mask.full_kv_indices, made.numbers]
        assert {tensor.device for tensor in tensors} == {there}
    if kernel == "flex":
        at = torch.zeros(1, dtype=torch.int64, device=there)
        assert made.masks[7].mask_mod(at, at, at, at).device == there


def test_what_a_machine_or_type_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert kernel_of(AUTO, CPU, torch.float32) is (segments if cpp.missing() else native)
    assert kernel_of(AUTO, cuda, torch.bfloat16) is varlen
    assert kernel_of(AUTO, cuda, torch.float32) is segments
    for wanted, device, dtype, problem in (
        ("varlen", CPU, torch.bfloat16, "runs on CUDA alone"),
        ("varlen", cuda, torch.float32, "has no float32"),
        ("native", cuda, torch.bfloat16, "this kernel is for CPUs"),
        ("native", CPU, torch.float16, "this kernel has no float16"),
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
    full, sliding = "full_attention", "sliding_attention"
    qwen2 = {"use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 2}
    assert windows_of(MistralConfig(sliding_window=8)) == (8,)
    assert windows_of(MistralConfig(sliding_window=None)) == (None,)
    assert windows_of(Qwen2Config(**qwen2, layer_types=[sliding] * 2)) == (8,)
    assert windows_of(Qwen2Config(**qwen2, layer_types=[full] * 2)) == (None,)
    assert windows_of(Qwen2Config(**qwen2, layer_types=[full, sliding])) == (8, None)
    assert windows_of(Qwen2Config(**qwen2 | {"use_sliding_window": False})) == (None,)


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
    ("methods=[padding-free+fast]", "methods: padding-free+fast: unknown attention kernel 'fast'; choose one of"),
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


class Rounds:
    """An engine whose keys, values and tokens are those of a prompt, but for what its batch's size adds to them."""

    attention = "none"

    def __init__(self, kv_moves: bool, token_moves: bool) -> None:
        self.kv_moves, self.token_moves = kv_moves, token_moves

    def prefill(self, prompts: Sequence[np.ndarray], t: Any, bins: Any = None) -> Prefilled:
        cache, longest = new_cache(), max(map(len, prompts))
        kv, mask = torch.zeros(len(prompts), 1, longest, 2), torch.zeros(len(prompts), longest, dtype=torch.int64)
        for number, ids in enumerate(prompts):
            kv[number, 0, longest - len(ids) :] = torch.from_numpy(ids)[:, None] + 0.5 * self.kv_moves * len(prompts)
            mask[number, longest - len(ids) :] = 1
        cache.update(kv, kv.clone(), 0)
        tokens = [int(ids[-1]) + self.token_moves * len(prompts) for ids in prompts]
        return Prefilled(cache, mask, None, tokens, kv.numel(), len(prompts))

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("kv_moves", [False, True])
@pytest.mark.parametrize("token_moves", [False, True])
def test_what_depends_on_the_batch_is_counted(kv_moves: bool, token_moves: bool) -> None:
    found = invariance(Rounds(kv_moves, token_moves), [PROMPTS, PROMPTS[:3]])
    assert (found.prompts, found.kv) == (9, 4 * sum(map(len, [*PROMPTS, *PROMPTS[:3]])))
    for name, moves in (("tokens", token_moves), ("kv", kv_moves)):
        assert found.percent(f"{name}_alone") == found.percent(f"{name}_other") == (0 if moves else 100)


def test_batch_invariance_is_recorded_where_it_is_asked_for(measure: Callable[..., list[Record]]) -> None:
    (asked,) = measure("method=padding-free", "invariance=true")
    (plain,) = measure("method=padding-free")
    assert plain.row.invariant_kv_alone_pct is None
    assert asked.row.invariant_tokens_other_pct == 100
    assert 0 < (asked.row.invariant_kv_alone_pct or 0) <= 100
    assert asked.row.seconds_per_batch_mean is not None


def row_of(method: str, seconds: float, dataset: str = "mmlu", **changes: Any) -> Row:
    kernel = method.partition("+")[2] or None
    return Row(
        run_id=f"{method}-{dataset}", comparison_id=dataset, method=method, dataset=dataset, model="tiny",
        metric="prefill", protocol="modern", batch_size=4, num_prompts=8, device_name="a CPU", forward="fused",
        attention_asked=kernel, seconds_per_batch_mean=seconds, dtype="float32", workload_fingerprint=dataset,
        speedup_over_full_batching=2.0 / seconds if seconds else None, created_at="2026-01-01T00:00:00+00:00",
        **{"experiment": "kernels", **changes},
    )  # fmt: skip


def timed(method: str, seconds: float, dataset: str = "mmlu", **changes: Any) -> Record:
    """A record of three repeats over six batches, which differ, and whose ratios of two methods hardly do."""
    rng = np.random.default_rng(len(method))
    samples = [{"repeat": repeat, "batch": batch, "seconds": seconds * (1 + batch / 10) * rng.uniform(0.99, 1.01)}
               for repeat in range(3) for batch in range(6)]  # fmt: skip
    row = row_of(method, seconds, dataset, repeats=3, num_batches=6, **changes)
    row.speedup_ci_low, row.speedup_ci_high = (value * (row.speedup_over_full_batching or 0) for value in (0.9, 1.1))
    return Record(row, {}, {}, samples)


def test_the_section_says_which_kernel_is_fastest_and_what_the_mask_costs() -> None:
    skipped = timed("padding-free+varlen", 0.0, status="skipped", status_reason="attention: on CUDA alone")
    skipped.row.seconds_per_batch_mean = None
    records = [timed("full-batching", 2.0), timed("prepacking+segments", 1.0), timed("prepacking+dense", 1.5),
               timed("padding-free+segments", 1.001), timed("padding-free+dense", 4.0), skipped,
               timed("full-batching", 1.0, "equal"), timed("prepacking+dense", 3.0, "equal")]  # fmt: skip
    section = make(kernels_section, records)
    assert len(section.table) == 7, "what was skipped has a note and no line"
    advice = section.notes[1]
    started = "mmlu: fastest is prepacking with segments; not told from it: padding-free with segments; under"
    assert advice.startswith(started)
    assert re.search(r"a dense mask prepacking takes 1\.50x \[1\.\d\d, 1\.\d\d\] the time that segments takes", advice)
    assert "still gains over padded rows (1.33x [1.20, 1.47])" in advice
    assert section.notes[0] == "equal: fastest is full-batching with auto"
    assert any("padding-free+varlen: skipped, attention: on CUDA alone" in note for note in section.notes)
    beside = dict(zip(section.table.frame["Method"] + section.table.frame["Kernel"] + section.table.frame["Prompts"],
                      section.table.frame["Over the fastest"], strict=True))  # fmt: skip
    assert beside["padding-freedensemmlu"] == pytest.approx(4.0)
    assert section.figure is not None
    grid = section.figure.axes[0].images[0].get_array()
    assert grid.shape == (5, 2)
    assert float(np.nanmin(grid)) == 0.0
    plt.close(section.figure)


def test_an_invalid_or_single_run_says_nothing_of_kernels() -> None:
    slow = timed("prepacking+dense", 3.0, valid=False, invalid_reasons="the host gave 9 % to others")
    section = make(kernels_section, [timed("full-batching", 6.0), timed("prepacking+segments", 1.0), slow])
    assert "not told from it: prepacking with dense" in section.notes[0]
    assert "neither surely gains nor loses over padded rows" in section.notes[0]
    assert [line[0] for line in section.table.texts()] == ["mmlu (INVALID)", "mmlu", "mmlu"]
    plt.close(section.figure)


def test_today_tells_kernel_from_layout() -> None:
    rows = [row_of(name, seconds, experiment="today") for name, seconds in
            (("full-batching", 2.0), ("full-batching+dense", 3.0), ("padding-free", 0.5))]  # fmt: skip
    for row in rows:
        row.metric, row.fraction_of_ideal, row.experiment = "ttft", 1.0, "today"
    section = make(today, [Record(row, {}, {}) for row in rows])
    assert (
        "of padding-free's 6.00x over padded rows under a dense mask, 1.50x is the kernel (no mask), 4.00x"
        in (section.notes[0])
    )
    plt.close(section.figure)


def test_a_method_with_a_kernel_is_the_method_with_another_name() -> None:
    found = method_of("prepacking+dense")
    assert (found.name, found.attention, found.rows) == ("prepacking+dense", "dense", "bin")
    assert method_of("no-such").rows == "prompt"


def test_what_is_compiled_while_batches_are_served_is_recorded(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    so_far = iter([Compiled(0, 0), Compiled(2, 1), Compiled(2, 1), Compiled(3, 2), Compiled(7, 5)])
    monkeypatch.setattr(Compiled, "now", classmethod(lambda _: next(so_far)))
    (record,) = measure("method=padding-free", "arrivals=poisson", "rate=400", "metric=ttft")
    assert (record.row.compile_s, record.row.recompiled_timed) == (7, 3)
