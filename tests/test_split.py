"""A model that is split over devices: where its layers go, and that every method computes what it does on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from conftest import TINY, carry, draw_prompts, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from src import generate, prefill
from src.cli import UserError
from src.measure.nvml import Reading, SplitCounters
from src.measure.timer import PhaseTimer
from src.prefilling import split

LENGTHS = [9, 4, 13, 1, 6]
LAYERS = 6


def skeleton(**changes: Any) -> Any:
    shape = {
        key: value for key, value in (TINY | {"num_hidden_layers": LAYERS} | changes).items() if key != "model_type"
    }
    return split.skeleton(AutoConfig.for_model("llama", **shape), torch.float32, "sdpa")


def weight_bytes(model: Any) -> int:
    return sum(weight.numel() * 4 for weight in model.parameters())


@pytest.fixture
def in_two_parts(tmp_path: Path) -> Any:
    """A model whose upper layers come from a disk, layer by layer: accelerate carries what goes between the parts."""
    model = tiny_model()
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
              "model.norm": "disk", "lm_head": "disk"}  # fmt: skip
    return dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, skip_keys="past_key_values")


@settings(max_examples=20)
@given(st.integers(2, 4), st.integers(0, 200))
def test_layers_are_whole_in_order_and_within_memory(gpus: int, spare_pct: int) -> None:
    model = skeleton()
    largest = max(weight_bytes(layer) for layer in [*model.model.layers, model.lm_head, model.model.embed_tokens])
    # Each GPU may have to leave out one part that does not fit any more.
    room = (weight_bytes(model) * (100 + spare_pct)) // (100 * gpus) + 2 * largest
    places = split.places_for(model, "sequential", torch.float32, "none", dict.fromkeys(range(gpus), room))
    used = dict.fromkeys(range(gpus), 0)
    for name, weight in model.named_parameters():
        used[split.place_of(places, name).index] += weight.numel() * 4
    assert max(used.values()) <= room
    numbers = [split.place_of(places, f"model.layers.{layer}").index for layer in range(LAYERS)]
    assert numbers == sorted(numbers)
    assert split.place_of(places, "model.embed_tokens.weight").index == 0
    for layer in range(LAYERS):  # a residual connection does not cross devices
        assert (
            len({split.place_of(places, name) for name, _ in model.named_parameters() if f"layers.{layer}." in name})
            == 1
        )


@pytest.mark.parametrize(("loadbit", "fits"), [("none", False), ("4", True)])
def test_weights_that_fit_nowhere_are_refused_and_never_offloaded(loadbit: str, fits: bool) -> None:
    model = skeleton(hidden_size=256, intermediate_size=1024, vocab_size=64)
    room = {0: weight_bytes(model) // 3, 1: weight_bytes(model) // 3}
    if fits:
        assert split.places_for(model, "sequential", torch.float32, loadbit, room)
        return
    with pytest.raises(UserError, match=r"device_map: the weights do not fit into what is free \(0\.0 GB on GPU 0"):
        split.places_for(model, "sequential", torch.float32, loadbit, room)


@pytest.mark.parametrize("protocol", ["modern", "paper"])
@pytest.mark.parametrize("method", ["full-batching", "prepacking", "padding-free"])
def test_a_split_model_computes_what_a_whole_one_does(in_two_parts: Any, method: str, protocol: str) -> None:
    options: dict[str, Any] = {"metric": "ttft", "protocol": protocol, "forward": "transformers", "max_tokens": 12}
    prompts = draw_prompts(LENGTHS)
    whole, parts = carry(tiny_model(), prompts, method, **options), carry(in_two_parts, prompts, method, **options)
    assert parts.first_tokens == whole.first_tokens
    for ours, theirs in zip(parts.cache.layers, whole.cache.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_the_library_takes_a_split_model(in_two_parts: Any) -> None:
    prompts = draw_prompts(LENGTHS)
    assert torch.equal(prefill(in_two_parts, prompts).logits, prefill(tiny_model(), prompts).logits)
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    ours, theirs = (generate(model, None, prompts, **options) for model in (in_two_parts, tiny_model()))
    assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="its weights are on cpu and meta; load all of them on one device, or with"):
        prefill(in_two_parts, prompts, forward="fused")


def test_the_row_says_which_layers_are_where(in_two_parts: Any) -> None:
    assert split.in_words(in_two_parts) == "cpu: embed_tokens, rotary_emb, layer 0; disk: layer 1, norm, lm_head"
    assert split.in_words(tiny_model()) is None
    model = tiny_model()
    names = ["model.embed_tokens", *(f"model.layers.{layer}" for layer in range(5)), "model.norm", "lm_head"]
    model.hf_device_map = {name: int(place > 3) for place, name in enumerate(names)}
    assert split.in_words(model) == "cuda:0: embed_tokens, layers 0-2; cuda:1: layers 3-4, norm, lm_head"


def test_the_counters_of_several_gpus_are_read_as_one() -> None:
    class Part:
        def __init__(self, reading: Reading) -> None:
            self.read = lambda: reading

        def windows(self, seconds: float, readings: int) -> int:
            return min(readings, int(seconds))

    first = {"utilization_pct": 90.0, "process_memory_mb": 100.0, "power_w": 300.0, "temperature_c": 50.0,
             "sm_clock_mhz": 1900.0, "clock_event_reasons": 4.0}  # fmt: skip
    second = {"utilization_pct": 10.0, "process_memory_mb": 50.0, "temperature_c": 70.0, "sm_clock_mhz": 1500.0,
              "clock_event_reasons": 33.0}  # fmt: skip
    parts: Any = [Part(Reading(first)), Part(Reading(second, {"power_w": "not supported"}))]
    reading = SplitCounters(parts).read()
    assert reading.values == {"utilization_pct": 50.0, "process_memory_mb": 150.0, "temperature_c": 70.0,
                              "sm_clock_mhz": 1500.0, "clock_event_reasons": 37.0}  # fmt: skip
    assert reading.gaps == {"power_w": "not supported"}
    assert SplitCounters(parts).windows(3.5, 10) == 3


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs, this machine has fewer")
@pytest.mark.parametrize("protocol", ["modern", "paper"])
def test_a_model_on_two_gpus_is_right_and_its_phases_are_waited_for(measure: Any, protocol: str) -> None:
    records = measure(
        "device=auto", "device_map=auto", "forward=transformers", f"protocol={protocol}", "dtype=float32",
        "methods=[full-batching,prepacking]", "++model.architecture.num_hidden_layers=6",
    )  # fmt: skip
    assert [record.row.status for record in records] == ["ok", "ok"]
    assert all("cuda:1" in str(record.row.split) for record in records)
    assert records[0].row.device_name.startswith(f"{torch.cuda.device_count()} x ")
    timer, a = PhaseTimer(torch.device("cuda:0"), torch.device("cuda:1")), torch.randn(4096, 4096, device="cuda:1")
    timer.start()
    for _ in range(20):
        a @ a
    timer.lap("forward")
    assert timer.stop()["forward"] == pytest.approx(timer.host_seconds, rel=0.1)
