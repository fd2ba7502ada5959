"""Advice under load: predicted queues are simulated as measured ones are, and the advice keeps its rules."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from src.advise import __main__ as command_line
from src.advise import under_load
from src.advise.cost import CostModel
from src.advise.under_load import ChoiceUnderLoad, Predictor
from src.config import Config
from src.interval import Interval
from src.measure.plan import prepare
from src.measure.work import TERMS
from src.prefilling.methods import METHODS
from src.prefilling.shape import Shape
from src.queueing.waits import Waits

LOADED = ["metric=ttft", "arrivals=poisson", "num_prompts=200", "batch_size=1", "methods=[full-batching]"]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def predictor(tiny_config: Callable[..., Config]) -> Predictor:
    """Of a machine on which a position costs a tenth of a millisecond, and nothing else costs anything."""
    plan = prepare(tiny_config(*LOADED, "rate=20", "slo_ms=100"))
    shape = Shape.of(plan.source.config)
    last = shape.layer_parameters / shape.layers - shape.query_parameters - shape.kv_parameters
    each = shape.layer_parameters - last
    costs = np.array([1e-4 / (2 * each) if name == "tokens" else 0.0 for name in TERMS])
    residuals = {name: np.array([0.1, -0.1, 0.05]) for name in ("full-batching", "prepacking", "padding-free")}
    return Predictor(plan, shape, CostModel(costs, residuals))


def test_batches_take_what_the_model_says(predictor: Predictor) -> None:
    lengths = predictor.lengths
    served = predictor.served(METHODS["padding-free"], "fifo", 4, 20.0, predictor.serve(METHODS["padding-free"]))
    for batch, start_s, end_s in zip(served.batches, served.starts_s, served.ends_s, strict=True):
        assert end_s - start_s == pytest.approx(1e-4 * lengths[batch].sum())
    slower = predictor.waits(METHODS["padding-free"], "fifo", 4, 20.0, 3.0)
    assert slower.busy_share == pytest.approx(
        3 * predictor.waits(METHODS["padding-free"], "fifo", 4, 20.0).busy_share, rel=0.05
    )


def test_the_largest_rate_is_the_last_that_keeps_the_objective(predictor: Predictor) -> None:
    method = METHODS["full-batching"]
    largest = predictor.largest(method, "fifo", 8)
    assert predictor.waits(method, "fifo", 8, largest).ttft["p99"].value <= 0.1
    above = predictor.waits(method, "fifo", 8, largest * 1.0906)
    assert above.ttft["p99"].value > 0.1 or not above.stable
    assert predictor.largest(method, "fifo", 8, 2.0) < largest < predictor.largest(method, "fifo", 8, 0.5)
    assert predictor.largest(METHODS["padding-free"], "fifo", 8) >= largest
    assert predictor.largest(method, "fifo", 8, 1e5) == 0.0  # a prompt alone takes longer than the objective


def test_every_method_and_policy_is_advised_on(predictor: Predictor) -> None:
    found = under_load.choices(predictor, [4, 16])
    assert {(each.method.name, each.policy) for each in found} >= {
        (method, policy) for method in ("full-batching", "prepacking", "padding-free")
        for policy in ("fifo", "token-budget", "buckets", "lookahead", "shortest-first")
    }  # fmt: skip
    assert (found[0].method.name, found[0].policy) == ("full-batching", "fifo")
    for each in found:
        assert each.p99_s.low <= each.p99_s.value <= each.p99_s.high
        assert each.largest is None or each.largest.low <= each.largest.value <= each.largest.high
    shown = under_load.table(found, 100.0)
    assert shown.count("\n") == len(found) + 1
    best, words = under_load.advice(found, predictor.plan.config)
    assert best.largest is not None
    assert best.largest.value == max(each.largest.value for each in found if each.largest)
    assert words.startswith(
        f"Use {best.method.name} with policy={best.policy} batch_size={best.batch_size}: p99 is expected"
    )
    assert "It keeps the objective of 100 ms up to" in words


def a_choice(method: str, p99_s: float, largest: Interval | None, stable: bool = True) -> ChoiceUnderLoad:
    one = {name: Interval(p99_s, p99_s, p99_s) for name in ("mean", "p50", "p90", "p99")}
    waits = Waits(one, one, 0.5, 20, 20.0, None, stable)
    return ChoiceUnderLoad(METHODS[method], "fifo", 8, waits, Interval(p99_s, 0.9 * p99_s, 1.1 * p99_s), largest)


def test_advice_in_words(tiny_config: Callable[..., Config]) -> None:
    c = tiny_config(*LOADED, "rate=20", "slo_ms=100")
    base, packed = (
        a_choice("full-batching", 0.09, Interval(20, 18, 22)),
        a_choice("prepacking", 0.05, Interval(40, 30, 50)),
    )
    assert under_load.advice([base, packed], c)[1] == (
        "Use prepacking with policy=fifo batch_size=8: p99 is expected to be 50 ms [45, 55] at 20 prompts a second. It "
        "keeps the objective of 100 ms up to 40 [30, 50] prompts a second, 2.00x of full-batching, fifo."
    )
    near = a_choice("padding-free", 0.06, Interval(38, 30, 45))
    assert under_load.advice([base, packed, near], c)[1].endswith(
        "The prediction does not tell it from padding-free with policy=fifo batch_size=8."
    )
    late = [a_choice("full-batching", 0.4, None), a_choice("prepacking", 0.2, None)]
    assert under_load.advice(late, c)[1] == (
        "Nothing is expected to keep the objective of 100 ms at 20 prompts a second. "
        "prepacking with policy=fifo batch_size=8 comes nearest."
    )
    assert "objective" not in under_load.advice([replace(packed, largest=None)], replace(c, slo_ms=None))[1]


BAD = {
    "rate=0": "rate: 0; give a number above 0",
    "rate=2 slo_ms=-1": "slo_ms: -1; give a number above 0",
    "slo_ms=100": "slo_ms: needs a rate at which prompts arrive",
    "rate=2 offline=true": "offline: is not considered with rate=",
    "rate=2 memory_mb=100": "memory_mb: is not considered with rate=",
    "rate=2 arrivals=storm": "arrivals: unknown 'storm'",
    "rate=2 policy=fifo": "policy: there is no such setting",
    "burstiness=2": "burstiness: has no effect with arrivals=all",
}


@pytest.mark.parametrize("typed", BAD)
def test_bad_input_is_one_line(typed: str, call: Call) -> None:
    code, out, err = call(command_line.main, *typed.split())
    assert (code, out) == (2, "")
    assert BAD[typed] in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_command_calibrates_predicts_and_checks(call: Call, tmp_path: object) -> None:
    code, out, err = call(
        command_line.main, "model=llama-8m", "dataset=mmlu", "dataset.source=profile", "dataset.max_tokens=64",
        "rate=30", "slo_ms=500", "num_prompts=60", "batch_sizes=[4,8]", "calibration_s=3", "check=true", "device=cpu",
        f"results_dir={tmp_path}",
    )  # fmt: skip
    assert code is None or code == 0, err
    assert out.count("| lookahead |") + out.count("lookahead |") >= 3
    assert re.search(r"Use [a-z-]+ with policy=[a-z-]+ batch_size=\d|Nothing is expected", out)
    assert "Checked with batches that are really computed" in out
    assert out.count("| Measured p99 (ms)") == 1 or "Measured p99 (ms)" in out
