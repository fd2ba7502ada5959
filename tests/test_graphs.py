"""Graphs give what the forward gives, whatever batch comes next; on a CPU a capture is stood in for by a call."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, draw_prompts, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.attention import varlen as torch_varlen
from torch.nn.functional import scaled_dot_product_attention

from src.cli import UserError
from src.measure.compiling import Compiled
from src.measure.verify import verify
from src.prefilling import graphs, modern, passes
from src.prefilling.attention import flex, segments, varlen
from src.prefilling.attention.spans import Spans
from src.prefilling.engines import make_engine
from src.prefilling.forward import FusedForward
from src.prefilling.graphs import MOST_TOKENS, GraphForward, bucket_of, power_of_two
from src.prefilling.method import PrefillOptions
from src.prefilling.methods import METHODS
from src.records.store import Record

MODELS = {family: tiny_model(family) for family in ("llama", "mistral", "qwen3")}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, this machine has none")


def by_offsets(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, _: torch.Tensor,
               longest: int, __: int, scale: float, window_size: tuple[int, int],
               enable_gqa: bool = False) -> torch.Tensor:  # fmt: skip
    """What torch documents of its variable-length kernel: [tokens, heads, head_dim] each, empty segments allowed."""
    ends = starts.tolist()
    assert ends == sorted(ends)
    assert ends[-1] == len(q)
    assert max(np.diff(ends)) <= longest
    out = torch.empty_like(q)
    for start, end in itertools.pairwise(ends):
        at = torch.arange(end - start)
        sees = at[:, None] >= at
        if window_size[0] >= 0:
            sees &= at[:, None] - at <= window_size[0]
        parts = (each[start:end].transpose(0, 1)[None] for each in (q, k, v))
        found = scaled_dot_product_attention(*parts, attn_mask=sees, scale=scale, enable_gqa=enable_gqa)
        out[start:end] = found[0].transpose(0, 1)
    return out


class Kept:
    """Keys and values of each layer, as a forward hands them out."""

    def __init__(self) -> None:
        self.kv: list[torch.Tensor] = []

    def __call__(self, layer: int, kv: torch.Tensor) -> None:
        assert layer == len(self.kv)
        self.kv.append(kv.clone())


def called(run: Callable[[], None]) -> Callable[[], None]:
    run()
    return run


@given(batches=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=6), min_size=1, max_size=5),
       family=st.sampled_from(["llama", "mistral", "qwen3"]))  # fmt: skip
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_graph_gives_what_the_forward_gives(
    batches: list[list[int]], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", by_offsets)
    fused = FusedForward.of(MODELS[family])
    made = GraphForward(fused, called)
    for lengths in batches:
        size = np.array(lengths)
        spans = Spans(np.cumsum(size) - size, size, 1, int(size.sum()), (FAMILIES[family].get("sliding_window"),))
        ids = torch.from_numpy(np.concatenate(draw_prompts(lengths)))[None]
        positions = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None]
        last = torch.from_numpy(np.cumsum(size) - 1)
        wanted, had = Kept(), Kept()
        want = fused(ids, positions, segments.plan(spans), last, wanted)
        have = made(ids, positions, varlen.plan(spans), last, had)
        assert torch.allclose(have, want, atol=1e-4)
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(had.kv, wanted.kv, strict=True))
    assert made.graphs <= len({(bucket_of(sum(each)), len(each)) for each in batches}) * 8


def test_a_graph_serves_every_batch_of_its_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", by_offsets)
    monkeypatch.setattr(modern, "kernel_of", lambda *_: varlen)
    made = GraphForward(FusedForward.of(MODELS["llama"]), called)
    monkeypatch.setattr(modern, "_forward", lambda model, name: made)
    engine = make_engine(MODELS["llama"], METHODS["padding-free"], PrefillOptions("ttft", forward="graphs"))
    batches = [(draw_prompts([40, 3, 17, 9]), None), (draw_prompts([33, 20, 21, 1], seed=3), None)]
    assert verify(MODELS["llama"], batches, engine, "none").problem is None
    assert made.graphs == 1
    done = engine.prefill(batches[0][0], NoLaps())
    assert done.computed_tokens == 128, "pads of the bucket are computed, too"


def test_graphs_are_kept_with_the_model_for_every_method_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", by_offsets)
    monkeypatch.setattr(modern, "kernel_of", lambda *_: varlen)
    monkeypatch.setattr(graphs, "cuda_graph", lambda run, pool: called(run))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(modern, "_forward", lambda model, name: GraphForward.of(model))
    model, before = tiny_model("llama"), Compiled.now()
    prompts = draw_prompts([40, 3, 17, 9])
    wanted = make_engine(model, METHODS["padding-free"], PrefillOptions("ttft")).prefill(prompts, NoLaps())
    for method in ("padding-free", "prepacking", "padding-free"):
        engine = make_engine(model, METHODS[method], PrefillOptions("ttft", forward="graphs"))
        assert engine.prefill(prompts, NoLaps()).first_tokens == wanted.first_tokens
    # A line of 69 tokens, and two bins of 40: both fit the bucket of 128, of as many segments or fewer.
    assert 1 <= GraphForward.of(model).graphs <= 2
    assert (Compiled.now() - before).graphs == GraphForward.of(model).graphs
    assert (Compiled.now() - before).seconds > 0
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.down_proj.weight.mul_(2)
    assert GraphForward.of(model).graphs == 0, "weights have changed, and so has the forward"


def test_graphs_need_attention_that_reads_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    made = GraphForward(FusedForward.of(MODELS["llama"]), called)
    monkeypatch.setattr(modern, "_forward", lambda model, name: made)
    with pytest.raises(UserError, match="graphs need attention by offsets, and this is attention=segments"):
        make_engine(MODELS["llama"], METHODS["prepacking"], PrefillOptions("ttft", attention="segments"))


class NoLaps:
    def lap(self, phase: str) -> None:
        """Nobody looks at the clock."""


@given(tokens=st.integers(1, 2 * MOST_TOKENS))
def test_buckets_hold_what_they_are_for(tokens: int) -> None:
    bucket = bucket_of(tokens)
    assert (bucket is None) == (tokens > MOST_TOKENS)
    if bucket is not None:
        assert tokens <= bucket < tokens + 512
        assert bucket_of(bucket) == bucket
    assert power_of_two(tokens) // 2 < tokens <= power_of_two(tokens)


@pytest.mark.parametrize(("forward", "why"), [
    ("graphs", "graphs are CUDA's, and this is a CPU"), ("compiled", "compiled passes bring nothing on a CPU"),
])  # fmt: skip
def test_what_brings_nothing_on_a_cpu_is_skipped_with_the_reason(
    forward: str, why: str, measure: Callable[..., list[Record]]
) -> None:
    (record,) = measure("method=padding-free", f"forward={forward}")
    assert record.row.status == "skipped"
    assert record.row.status_reason == f"forward: {why}; use forward=fused"


@pytest.mark.slow
@pytest.mark.skipif(flex.missing(torch.device("cpu"), torch.float32) is not None, reason="needs a C++ compiler")
@pytest.mark.parametrize("family", sorted(MODELS))
def test_compiled_passes_give_what_prompts_alone_give(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = FusedForward.of(MODELS[family], compiled=True)
    assert FusedForward.of(MODELS[family]) is not compiled
    monkeypatch.setattr(modern, "_forward", lambda model, name: compiled)
    engine = make_engine(MODELS[family], METHODS["padding-free"], PrefillOptions("ttft", forward="compiled"))
    batches = [(draw_prompts(lengths), None) for lengths in ([40, 3, 17, 9], [100, 1, 5], [1])]
    assert verify(MODELS[family], batches, engine, "none").problem is None


@pytest.mark.skipif(flex.missing(torch.device("cpu"), torch.float32) is not None, reason="needs a C++ compiler")
def test_what_cannot_be_compiled_is_an_error_and_not_slower_code_of_the_same_name() -> None:
    from torch._dynamo import config

    doubled = passes.compiled_whole(lambda x: 2 * x, dynamic=False)
    assert config.recompile_limit >= passes.MOST_COMPILED
    with config.patch(recompile_limit=1):
        assert doubled(torch.ones(2)).tolist() == [2, 2]
        with pytest.raises(RuntimeError, match="compiled 1 times already"):
            doubled(torch.ones(3))


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("forward", ["graphs", "compiled"])
def test_a_gpu_gives_by_graphs_and_compiled_what_prompts_alone_give(forward: str) -> None:
    model: Any = tiny_model("llama", torch.bfloat16).to("cuda")
    engine = make_engine(model, METHODS["padding-free"], PrefillOptions("ttft", forward=forward))
    batches = [(draw_prompts(lengths), None) for lengths in ([40, 3, 17, 9], [200, 1, 5], [33, 20, 21, 1])]
    assert verify(model, batches, engine, "none").problem is None
