"""The limit: never above what a real forward computes, exact where that can be counted by hand, additive, monotone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from src.measure import rates as estimate
from src.measure.limit import least_bytes, least_operations, limit_seconds
from src.measure.rates import Rates, copy_bandwidth, matmul_rate
from src.prefilling.models import find_model
from src.prefilling.shape import Shape

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=8)
# Two layers of hidden size 4, two heads of 2, one head of keys and values, MLP of 3, a vocabulary of 5.
HAND = Shape(
    layer_parameters=2 * (2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 3),
    vocabulary=4 * 5,
    vocab_size=5,
    attention=2 * 4,
    kv_width=2 * 2 * 2,
    layers=2,
    query_parameters=4 * 4,
    kv_parameters=2 * 4 * 2,
    tied=False,
    window=None,
)


def test_the_least_operations_of_a_prompt_counted_by_hand() -> None:
    first_layer = 3 * (32 + 16 + 36) + 2 * 4 * (1 + 2 + 3)  # three tokens; scores and values of six pairs of width 4
    last_layer = 3 * 16 + (32 + 36) + 2 * 4 * 3  # keys and values of three tokens; all else of the last one
    assert least_operations(HAND, [3]) == 2 * (first_layer + last_layer + 20)


def test_the_least_bytes_of_a_prompt_counted_by_hand() -> None:
    weights, embedding, kv, ids = 168, 20 + 3 * 4, 3 * 8, 3 * 8
    assert least_bytes(HAND, [3], element_size=2) == 2 * (weights + embedding + kv) + ids
    assert least_bytes(HAND, [3], 2, weight_size=0.5) == 0.5 * weights + 2 * (embedding + kv) + ids
    assert least_bytes(replace(HAND, tied=True), [3], 2) == 2 * (weights + 20 + kv) + ids


def test_a_window_is_all_that_a_query_sees() -> None:
    windowed = least_operations(replace(HAND, window=2), [3])
    assert least_operations(HAND, [3]) - windowed == 2 * 2 * 4 * (1 + 1)  # one pair less in either layer
    assert least_operations(replace(HAND, window=3), [3]) == least_operations(HAND, [3])


@given(LENGTHS, LENGTHS)
def test_operations_add_up_and_bytes_share_the_weights(one: list[int], other: list[int]) -> None:
    assert least_operations(HAND, one + other) == pytest.approx(
        least_operations(HAND, one) + least_operations(HAND, other)
    )
    assert least_bytes(HAND, one + other, 4) < least_bytes(HAND, one, 4) + least_bytes(HAND, other, 4)


@given(LENGTHS, st.data())
def test_more_tokens_never_cost_less(lengths: list[int], data: st.DataObject) -> None:
    longer = list(lengths)
    longer[data.draw(st.integers(0, len(lengths) - 1))] += data.draw(st.integers(1, 20))
    for shape in (HAND, replace(HAND, window=4)):
        assert least_operations(shape, longer) > least_operations(shape, lengths)
    assert least_bytes(HAND, longer, 4) > least_bytes(HAND, lengths, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_forward_computes_less_than_the_limit(family: str) -> None:
    model = tiny_model(family)
    model.set_attn_implementation("eager")  # its products are all counted
    shape = Shape.of(model.config)
    for lengths in ([1], [2], [7, 1, 30], [12, 12]):
        counted = 0
        for length in lengths:
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                model(input_ids=torch.ones(1, length, dtype=torch.long), logits_to_keep=1)
            counted += counter.get_total_flops()
        least = least_operations(shape, lengths)
        assert least <= counted
        if max(lengths) == 1:  # nothing can be left out: all that is counted beyond is the rotary angles
            assert least == pytest.approx(counted, rel=0.01)


def test_the_limit_is_the_slower_of_computing_and_moving() -> None:
    operations, moved = least_operations(HAND, [3, 5]), least_bytes(HAND, [3, 5], 4)
    assert limit_seconds(HAND, [3, 5], 4, Rates(1.0, math.inf)) == operations
    assert limit_seconds(HAND, [3, 5], 4, Rates(math.inf, 1.0)) == moved
    assert limit_seconds(HAND, [3, 5], 4, Rates(operations, moved / 2)) == 2


def test_the_shape_is_read_off_a_models_weights() -> None:
    model = tiny_model("qwen3", num_key_value_heads=4, tie_word_embeddings=True)
    shape, layer = Shape.of(model.config), model.get_decoder().layers[0]
    linear = [module.weight.numel() for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    assert (shape.layer_parameters, shape.layers, shape.tied) == (2 * sum(linear), 2, True)
    assert shape.query_parameters == layer.self_attn.q_proj.weight.numel()
    assert shape.kv_parameters == layer.self_attn.k_proj.weight.numel() + layer.self_attn.v_proj.weight.numel()
    assert Shape.of(tiny_model("mistral").config).window == 5


def test_rates_are_measured_in_bounded_time_also_where_a_type_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    tried = []

    def slow(product: Callable[[], torch.Tensor], device: torch.device) -> float:
        size = len(product())
        tried.append(size)
        return size**3 / 128**3 * 0.3  # seconds: a product twice as large would take 2.4

    monkeypatch.setattr(estimate, "_products", lambda a, b: [lambda: a])
    monkeypatch.setattr(estimate, "_seconds_of", slow)
    assert matmul_rate(cpu, torch.bfloat16) == pytest.approx(2 * 128**3 / 0.3)
    assert set(tried) == {128}
    assert copy_bandwidth(cpu) > 1e8


@pytest.mark.parametrize("faster", [0, 1])
def test_the_rate_is_that_of_the_faster_library(faster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a method whose products are another library's could be beyond the limit."""
    a, b = torch.randn(5, 7), torch.randn(3, 7)
    ways = estimate._products(a, b)
    assert all(torch.allclose(way(), a @ b.T, atol=1e-5) for way in ways)
    taken = [0.2, 0.2]
    taken[faster] = 0.1
    monkeypatch.setattr(estimate, "_products", lambda *_: [0, 1])
    monkeypatch.setattr(estimate, "_seconds_of", lambda way, device: taken[way])
    assert matmul_rate(torch.device("cpu"), torch.float32) == 2 * 128**3 / 0.1


def test_every_shipped_model_has_a_limit(tiny_config: object) -> None:
    from src.compose import compose
    from src.config import CONFIG_DIR

    for path in sorted((CONFIG_DIR / "model").glob("*.yaml")):
        source = find_model(compose([f"model={path.stem}", "model.weights=random"]).model)
        shape = Shape.of(source.config)
        dense = shape.operations(1, 100, 1)
        assert 0.5 * dense < least_operations(shape, [100]) < dense


def test_rates_that_memory_does_not_suffice_for_cost_no_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within memory_limit_mb the buffers of this measurement made methods that fit end as out of memory."""
    cpu, real = torch.device("cpu"), estimate._products

    def few(a: torch.Tensor, b: torch.Tensor) -> list[Callable[[], torch.Tensor]]:
        if len(a) > 256:
            raise RuntimeError("[enforce] can't allocate memory")
        return real(a, b)

    monkeypatch.setattr(estimate, "_products", few)
    assert estimate.usual_rate.__wrapped__(cpu, torch.float32) > 0
    assert estimate.measure_rates(cpu, torch.float32) is None
    assert "too little memory to measure this machine's rates" in capsys.readouterr().err
    monkeypatch.setattr(estimate, "_products", lambda a, b: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        estimate.measure_rates(cpu, torch.float32)
