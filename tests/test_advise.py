"""The cost model and the advice: work counted as the methods do it, costs found again, advice that keeps its rules."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_OVERRIDES, command, draw_prompts, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from src.advise import __main__ as command_line
from src.advise import calibrate, choosing, cost
from src.advise.choosing import Choice
from src.advise.cost import CalibrationBatch, CostModel, fit
from src.advise.settings import COMPOSED
from src.cli import UserError
from src.config import Config
from src.measure.plan import prepare
from src.measure.process import CpuUse
from src.measure.timer import NoTimer
from src.measure.work import TERMS, ForwardSettings, memory_bytes, work_of
from src.prefilling.attention import segments
from src.prefilling.attention.kernels import KERNELS
from src.prefilling.attention.spans import Spans
from src.prefilling.engines import make_engine
from src.prefilling.method import Method, PrefillOptions
from src.prefilling.methods import METHODS
from src.prefilling.packing import first_fit_decreasing as ffd
from src.prefilling.shape import Shape

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=12)
NAMES = list(TERMS)
CPU = torch.device("cpu")
MODELLED = [method for method in METHODS.values() if not method.serves]
# Two layers of hidden size 4, two heads of 2, one head of keys and values, MLP of 3, a vocabulary of 5.
FORWARD = ForwardSettings(4, "segments", ffd)
HAND = Shape(168, 20, 5, 8, 8, layers=2, query_parameters=16, kv_parameters=16, tied=False, window=None)


def work(
    method: str, lengths: list[int], kernel: str = "segments", shape: Shape = HAND, most: int | None = None
) -> dict[str, float]:
    return dict(
        zip(NAMES, work_of(shape, METHODS[method], lengths, ForwardSettings(4, kernel, ffd, most)), strict=True)
    )


def test_work_counted_by_hand() -> None:
    padded = work("full-batching", [3, 1])
    assert padded == {
        "layers": 2,
        "prompts": 2 * 2 * (20 + 84 - 32),
        "tokens": 2 * 6 * (84 + 32),
        "pairs": 4 * (6 + 6) * 8,
        "calls": 2,
        "gathered": 0,
        "zeroed": 0,
        "scattered": 0,
    }
    packed = work("padding-free", [3, 1], "varlen")
    assert packed["tokens"] == padded["tokens"] * 4 / 6
    assert packed["pairs"] == 4 * (6 + 1) * 8
    assert (packed["zeroed"], packed["scattered"]) == (6 * 8 * 4, 2 * 4 * 8 * 4)
    assert work("padding-free", [3, 1])["gathered"] == 6 * (8 + 8) * 4  # one call, padded to 3
    parts = work("full-batching", [3, 1], "varlen", most=3)
    assert (parts["layers"], parts["calls"], parts["pairs"]) == (4, 4, padded["pairs"])
    assert (parts["zeroed"], parts["scattered"]) == (6 * 8 * 4, 2 * 6 * 8 * 4)  # each part goes into one cache
    windowed = work("full-batching", [40, 1], shape=replace(HAND, window=4))
    # By blocks of 4 queries: the first against 4 keys, each other against 7.
    assert windowed["pairs"] == pytest.approx(4 * 2 * (4 * 4 + 9 * 4 * 7) * 8)
    short = work("full-batching", [6], shape=replace(HAND, window=4))
    assert short["pairs"] == pytest.approx(4 * (4 * 4 + 2 * 5) * 8)
    exact = work("full-batching", [40, 1], "varlen", replace(HAND, window=4))
    assert exact["pairs"] == pytest.approx(4 * 2 * (1 + 2 + 3 + 37 * 4) * 8)
    assert work("padding-free", [9, 1], "dense", replace(HAND, window=4))["pairs"] == 4 * 100 * 8
    assert windowed["scattered"] == 2 * windowed["zeroed"] == 2 * 80 * 8 * 4  # into left padding


@given(LENGTHS)
def test_less_padding_is_less_work(lengths: list[int]) -> None:
    free, packed, padded = (work(name, lengths) for name in ("padding-free", "prepacking", "full-batching"))
    assert free["tokens"] <= packed["tokens"] <= padded["tokens"]
    assert free["prompts"] == packed["prompts"] == padded["prompts"]
    if len(set(lengths)) == 1:
        assert free["tokens"] == padded["tokens"]


# Each shape of flex is compiled anew, which takes long: two methods are enough.
FEW = {("flex", "prepacking", None), ("flex", "full-batching", 130)}


@pytest.mark.parametrize(("kernel", "method", "most"), [
    (kernel, method, most)
    for kernel, method, most in itertools.product(KERNELS, MODELLED, (None, 130))
    if not KERNELS[kernel].missing(CPU, torch.float32) and (kernel != "flex" or (kernel, method.name, most) in FEW)
], ids=lambda each: getattr(each, "name", str(each)))  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "mistral"])  # mistral has a sliding window
def test_the_work_is_what_the_method_computes(method: Method, most: int | None, kernel: str, family: str) -> None:
    model, lengths = tiny_model(family), [9, 120, 3, 3, 50, 70]
    options = PrefillOptions(max_tokens=most, attention=kernel)
    done = make_engine(model, method, options).prefill(draw_prompts(lengths), NoTimer())
    shape = Shape.of(model.config)
    counted = dict(zip(NAMES, work_of(shape, method, lengths, ForwardSettings(4, kernel, ffd, most)), strict=True))
    of_layer = shape.layer_parameters / shape.layers
    everywhere = shape.layer_parameters - of_layer + shape.query_parameters + shape.kv_parameters
    assert counted["tokens"] == 2 * everywhere * done.computed_tokens
    assert done.attention_pairs is not None
    assert counted["pairs"] == pytest.approx(4 * done.attention_pairs * shape.attention)
    assert (counted["layers"] > shape.layers) == (most is not None)
    if most is None:
        spans = np.array(lengths if method.packs else [120] * 6)
        planned = segments.plan(Spans(np.cumsum(spans) - spans, spans, 1, int(spans.sum())))
        assert counted["calls"] == (len(planned.groups) if kernel == "segments" else 1) * shape.layers


def synthetic(costs: np.ndarray, noise: float, seed: int = 0) -> list[CalibrationBatch]:
    rng, samples = np.random.default_rng(seed), []
    for group, mix in enumerate(calibrate.MIXES):
        for name in calibrate.CALIBRATED:
            done = work_of(HAND, METHODS[name], mix.lengths(1.0, 2048), FORWARD)
            samples.append(
                CalibrationBatch(group, name, done, float(done @ costs) * np.exp(noise * rng.standard_normal()))
            )
    return samples


TRUE_COSTS = np.array([1e-4, 2e-8, 1e-9, 5e-10, 2e-5, 3e-9, 1e-9, 4e-9])


def test_true_costs_are_found_again() -> None:
    model = fit(synthetic(TRUE_COSTS, noise=0.0))
    assert model.costs == pytest.approx(TRUE_COSTS, rel=1e-4)
    assert all(model.spread(method.name) < 1e-4 for method in MODELLED)


def test_the_stated_interval_holds_the_truth() -> None:
    held = []
    for seed in range(20):
        model = fit(synthetic(TRUE_COSTS, noise=0.05, seed=seed))
        assert (model.costs >= 0).all()
        for name in ("prepacking", "padding-free"):
            lengths = [17, 300, 40, 40, 90, 800]  # on none of which it was calibrated
            done = np.array([work_of(HAND, METHODS[each], lengths, FORWARD)
                             for each in ("full-batching", name)])  # fmt: skip
            predicted, true = model.seconds(done), done @ TRUE_COSTS
            error = abs(np.log(predicted[0] / predicted[1] * true[1] / true[0]))
            held.append(error < model.speedup_spread(name))
    assert np.mean(held) > 0.9


def test_a_calibration_that_says_too_little_is_refused() -> None:
    samples = synthetic(TRUE_COSTS, 0.0)
    with pytest.raises(ValueError, match="at least 3"):
        fit([sample for sample in samples if sample.group < 2])
    with pytest.raises(ValueError, match="not measured once on every batch"):
        fit(samples[1:])


def test_memory_counts_one_padded_cache_for_every_method() -> None:
    needed = {method.name: memory_bytes(HAND, method, [30, 2, 2], FORWARD) for method in MODELLED}
    assert needed["padding-free"] < needed["full-batching"] == needed["length-ordered"]
    assert needed["padding-free"] > 4 * (168 + 20 + 3 * 30 * 8)
    unheld = memory_bytes(HAND, METHODS["padding-free"], [30, 2, 2], replace(FORWARD, pads_are_held=False))
    assert needed["padding-free"] - unheld == 4 * (3 * 30 - 34) * 8


def choice(method: str, batch_size: int, ms_per_prompt: float, speedup: float) -> Choice:
    """Two batches of like prompts; 1.25 MB a prompt."""
    seconds = np.array([ms_per_prompt * batch_size / 1000] * 2)
    lengths = [[5] * batch_size] * 2
    return Choice(METHODS[method], batch_size, [], [], lengths, seconds, 1.25 * batch_size, speedup, spread=0.05)


FOUND = [
    choice("full-batching", 8, 40, 1.0), choice("full-batching", 32, 50, 1.0), choice("full-batching", 64, 60, 1.0),
    choice("prepacking", 8, 20, 2.0), choice("prepacking", 32, 10.3, 5.0), choice("prepacking", 64, 10, 6.0),
    choice("length-ordered", 8, 9, 4.4), choice("length-ordered", 32, 9, 5.5), choice("length-ordered", 64, 9, 6.6),
]  # fmt: skip


def test_the_smallest_batches_within_five_percent_are_advised_and_never_an_oracle_unasked() -> None:
    chosen, words = choosing.advise(FOUND, offline=False, memory_mb=None)
    assert (chosen.method.name, chosen.batch_size) == ("prepacking", 32)
    assert "prepacking with batch_size=32" in words
    assert "5.00x [4.76, 5.26]" in words
    assert (
        "Batches of 64 would serve 3.0% more prompts a second, but a first token would wait 0.64 s, not 0.33 s" in words
    )
    chosen, words = choosing.advise(FOUND, offline=True, memory_mb=None)
    assert (chosen.method.name, chosen.batch_size) == ("length-ordered", 8)
    assert "needs the whole dataset" in words


def test_what_needs_more_memory_is_not_advised() -> None:
    chosen, _ = choosing.advise(FOUND, offline=False, memory_mb=20)
    assert (chosen.method.name, chosen.batch_size) == ("prepacking", 8)
    with pytest.raises(UserError, match="give 10 or more"):
        choosing.advise(FOUND, offline=False, memory_mb=5)


def test_methods_that_the_model_cannot_tell_apart_are_named() -> None:
    rival = choice("padding-free", 32, 10.4, 4.9)
    assert "does not tell it from padding-free" in choosing.advise([*FOUND, rival], False, None)[1]
    slow = [choice("full-batching", 8, 10, 1.0), choice("prepacking", 8, 20, 0.5)]
    assert "no other method is expected to be faster" in choosing.advise(slow, False, None)[1]


def test_a_calibration_takes_the_time_it_is_given_and_is_written_whole(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    plan = prepare(tiny_config())
    shape = Shape.of(plan.source.config)
    measured, _ = calibrate.calibrate(calibrate.Bench(tiny_model(), plan), plan, shape, 2.0)
    groups = {entry["group"] for entry in measured}
    assert len(groups) >= calibrate.FEWEST_MIXES
    assert len(measured) == len(groups) * len(calibrate.CALIBRATED)
    model = fit(calibrate.samples_of(measured, plan, shape))
    assert (model.costs > 0).any()
    key = calibrate.key_of(plan, shape)
    folder = tmp_path / "calibrations"
    assert calibrate.load(folder, key, 2.0) is None
    path = calibrate.save(folder, key, 2.0, measured)
    assert [file.name for file in folder.glob("*")] == [path.name] == ["calibration-tiny-float32.json"]
    assert calibrate.load(folder, key, 2.0) == json.loads(json.dumps(measured))
    assert calibrate.load(folder, key, 60.0) is None  # asked for a longer one
    assert calibrate.load(folder, key | {"threads": 99}, 2.0) is None
    path.write_text("{", encoding="utf-8")
    assert calibrate.load(folder, key, 2.0) is None
    with pytest.raises(UserError, match="name a writable folder"):
        calibrate.save(path / "inside", key, 2.0, measured)


def test_batches_grow_with_the_time_and_stop_at_the_models_positions(tiny_config: Callable[..., Config]) -> None:
    plan = prepare(tiny_config())
    shape, methods = Shape.of(plan.source.config), [METHODS[name] for name in calibrate.CALIBRATED]
    sizes = [calibrate.sized(plan, shape, methods, tokens) for tokens in (3e3, 1e5, 1e6, 1e12)]
    totals = [sum(map(sum, each.values())) for each in sizes]
    assert totals == sorted(totals)
    assert len(sizes[0]) < len(sizes[1]) == len(calibrate.MIXES)
    assert max(map(max, sizes[-1].values())) == plan.source.max_positions
    assert calibrate.sized(plan, shape, methods, 10) == {}


def test_a_machine_too_slow_for_the_time_is_told_so(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = prepare(tiny_config())
    monkeypatch.setattr(calibrate, "_probe", lambda *_: 100.0)
    with pytest.raises(UserError, match="calibration_s: 5 s are too few here: a token takes 1e"):
        calibrate.calibrate(calibrate.Bench(tiny_model(), plan), plan, Shape.of(plan.source.config), 5.0)


TINY = [each for each in TINY_OVERRIDES if each.split("=")[0].lstrip("+").split(".")[0] in COMPOSED]
Call = Callable[..., tuple[int, str, str]]


def test_advice_is_given_checked_and_its_calibration_reused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate.CpuUse, "since", lambda _: CpuUse(1.0, 0.0))  # tests may share the machine
    arguments = [*TINY, f"results_dir={tmp_path}", "batch_sizes=[2,4]", "calibration_s=1"]
    code, out, err = call(command_line.main, *arguments, "check=true", "check_batches=2")
    assert code == 0, err
    assert "calibration: " in out
    assert out.count("| prepacking ") == 4  # two sizes, predicted and checked
    assert "Use " in out
    assert "Errors of times: median" in out
    code, again, err = call(command_line.main, *arguments)
    assert (code, "calibration: " in again, "calibrating" in err) == (0, False, False)
    assert again.split("\n\nUse ")[0].strip() in out
    code, out, err = call(command_line.main, *arguments, "recalibrate=true")
    assert (code, "calibration: " in out) == (0, True)
    monkeypatch.setattr(calibrate.CpuUse, "since", lambda _: CpuUse(1.0, 0.5))
    code, out, err = call(command_line.main, *arguments, "recalibrate=true")
    assert (code, "calibration: " in out) == (0, False)  # not kept
    assert "other processes used 50% of the processor" in err


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("batch_sizes=[]", "batch_sizes: []; give whole numbers of 1 or more"),
        ("batch_sizes=[8,0]", "batch_sizes: [8, 0]; give whole numbers"),
        ("batch_sizes=[13]", "batch_sizes: 13 is larger than the data (12 usable prompts); give at most 12"),
        ("batch_sizes=many", "batch_sizes[0]: Value 'many'"),
        ("batch_sizes=13", "batch_sizes: 13 is larger than the data"),
        ("calibration_s=nan", "calibration_s: nan s; give 1 to 3600"),
        ("memory_mb=-1", "memory_mb: -1 MB; give a number above 0"),
        ("check_batches=0", "check_batches: 0 is too small"),
        ("methods=[prepacking]", "methods: there is no such setting"),
        ("dataset=nonsense", "dataset: unknown 'nonsense'"),
        ("device=tpu", "device: unknown 'tpu'"),
        ("nonsense", "nonsense: arguments have the form setting=value"),
    ],
)
def test_bad_input_ends_in_one_line(typed: str, expected: str, call: Call, tmp_path: Path) -> None:
    code, out, err = call(command_line.main, *TINY, f"results_dir={tmp_path}", typed)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert err.startswith(f"error: {expected}")


def test_help_lists_the_settings_without_loading_torch() -> None:
    done = command("src.advise", "--help")
    assert done.returncode == 0
    assert "calibration_s=60" in done.stdout
    code = "import sys, src.advise.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_model_has_costs_for_every_kind_of_work() -> None:
    assert len(TERMS) == len(work_of(HAND, METHODS["prepacking"], [3, 4], FORWARD)) == len(TRUE_COSTS)
    model = CostModel(TRUE_COSTS, {"full-batching": np.zeros(4), "prepacking": np.full(4, 0.1)})
    assert model.spread("dataset-prepacking") == model.spread("prepacking")
    assert model.speedup_spread("prepacking") == pytest.approx(model.spread("prepacking"))
    model = replace(model, residuals={"full-batching": np.full(4, 0.1), "prepacking": np.full(4, 0.1)})
    assert model.speedup_spread("prepacking") == 0  # on the same batches, errors in common cancel
    assert model.speedup_spread("length-ordered") == pytest.approx(np.sqrt(2) * model.spread("full-batching"))
    assert torch.get_num_threads() == 1
    assert set(cost.LIKE) <= set(METHODS)
