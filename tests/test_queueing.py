"""The queue before a device: arrivals, policies, clocks, and what waiting comes to, against what theory says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.cli import UserError
from src.config import POLICIES
from src.prefilling.method import dataset_bins
from src.prefilling.methods import METHODS
from src.prefilling.packing import first_fit_decreasing
from src.queueing import loop, policy
from src.queueing.loop import Served, by_engine, real, virtual
from src.queueing.policy import Rules, bounds, chooser
from src.queueing.waits import waits_of
from src.workload import arrivals
from src.workload.batches import cut, length_ordered_batches

BATCHING = ("full-batching", "prepacking", "padding-free")


def rules(lengths: Sequence[int], arrivals_s: Sequence[float] | None = None, method: str = "full-batching",
          batch_size: int = 4, **changes: object) -> Rules:  # fmt: skip
    given: dict[str, object] = {"token_budget": 50, "lookahead": 8, "buckets": (10, 100), "ageing": 10.0}
    times = np.zeros(len(lengths)) if arrivals_s is None else np.array(arrivals_s, dtype=np.float64)
    return Rules(METHODS[method], np.array(lengths), times, batch_size, first_fit_decreasing, **(given | changes))  # type: ignore[arg-type]


def by_tokens(of: Rules, second_per_token: float = 0.01) -> Callable[[Sequence[int]], float]:
    return lambda members: second_per_token * len(members) * int(of.lengths[list(members)].max())


# --- the loop, against queueing theory


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_equal_service_times_and_poisson_arrivals_wait_as_pollaczek_and_khinchine_say(load: float) -> None:
    """M/D/1: one at a time, D seconds each; the mean wait in the queue is load * D / (2 * (1 - load))."""
    number, service_s = 400_000, 0.25
    times_s = arrivals.poisson(number, load / service_s, np.random.default_rng(5))
    alone = chooser("fifo", rules([1] * number, times_s.tolist(), batch_size=1))
    served = virtual(times_s, alone, lambda _: service_s)
    found = waits_of(served, None, draws=0)
    assert np.isnan(found.queue["mean"].low)
    assert found.queue["mean"].value == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.03)
    assert found.ttft["mean"].value == pytest.approx(found.queue["mean"].value + service_s)
    assert found.busy_share == pytest.approx(load, rel=0.02)
    assert found.stable


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=40),
    lengths=st.lists(st.integers(1, 60), min_size=40, max_size=40),
    name=st.sampled_from(POLICIES), method=st.sampled_from(BATCHING), batch_size=st.integers(1, 6),
)  # fmt: skip
def test_everybody_is_served_once_in_time_and_the_device_never_idles_while_somebody_waits(
    gaps: list[float], lengths: list[int], name: str, method: str, batch_size: int
) -> None:
    times_s = np.cumsum(gaps)
    of = rules(lengths[: len(gaps)], times_s.tolist(), method, batch_size, lookahead=2 * batch_size)
    served = virtual(times_s, chooser(name, of), by_tokens(of))
    assert sorted(number for batch in served.batches for number in batch) == list(range(len(gaps)))
    starts_s, ends_s = np.array(served.starts_s), np.array(served.ends_s)
    assert (starts_s[served.batch_of] >= times_s).all()
    assert (starts_s[1:] >= ends_s[:-1]).all()
    for number in range(1, len(starts_s)):  # idle until the next start: nobody waited
        if starts_s[number] > ends_s[number - 1]:
            late = [one for batch in served.batches[number:] for one in batch]
            assert times_s[late].min() == starts_s[number]
    # Little's law: prompts there on average = prompts a second * time each is there, over the whole run.
    edges = np.unique(np.concatenate([times_s, ends_s]))
    there = [((times_s <= at) & (ends_s[served.batch_of] > at)).sum() for at in edges[:-1]]
    span_s = edges[-1] - edges[0]
    if span_s > 0:
        mean_s = (ends_s[served.batch_of] - times_s).mean()
        assert (there * np.diff(edges)).sum() / span_s == pytest.approx(len(gaps) / span_s * mean_s)


def test_a_server_that_cannot_keep_up_is_told_from_one_that_can() -> None:
    for load, kept in ((0.5, True), (0.9, True), (1.3, False), (3.0, False)):
        times_s = arrivals.poisson(3000, load, np.random.default_rng(2))
        served = virtual(times_s, chooser("fifo", rules([1] * 3000, batch_size=1)), lambda _: 1.0)
        assert waits_of(served, None).stable is kept, load


def test_arrivals_within_a_few_batches_are_no_rate() -> None:
    """A burst of two batches is over soon, whatever rate it is called."""
    for number, told in ((32, None), (3000, False)):
        times_s = np.linspace(0, number / 1e6, number)
        served = virtual(times_s, chooser("fifo", rules([1] * number, batch_size=32)), lambda _: 1.0)
        assert waits_of(served, None).stable is told


def test_arrivals_that_stop_end_real_time_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match="prompts stopped arriving"):
        real(np.array([1e300, 2e300]), chooser("fifo", rules([1, 1])), lambda _: 0.0)


def test_intervals_hold_what_they_promise() -> None:
    """Of 100 runs the 95 % interval of the mean wait of M/D/1 at half load holds the truth in 88 and more."""
    held = 0
    for seed in range(100):
        times_s = arrivals.poisson(600, 0.5, np.random.default_rng(seed))
        found = waits_of(virtual(times_s, chooser("fifo", rules([1] * 600, batch_size=1)), lambda _: 1.0), None, seed)
        held += found.queue["mean"].low <= 0.5 <= found.queue["mean"].high
    assert 88 <= held <= 100


def test_few_busy_periods_leave_no_interval() -> None:
    together = virtual(np.zeros(50), chooser("fifo", rules([1] * 50)), lambda _: 1.0)
    found = waits_of(together, 3.0)
    assert found.busy_periods == 1
    assert np.isnan(found.ttft["p99"].low)
    assert (found.ttft["p50"].value, found.ttft["p99"].value) == (7.0, 13.0)
    assert found.goodput == pytest.approx(12 / 13)  # the first three batches of four, in 13 seconds


def test_an_engine_has_a_queue_of_its_own() -> None:
    found = waits_of(by_engine(np.array([0.0, 1.0, 5.0]), [2.0, 2.5, 6.0]), 1.2)
    assert found.busy_periods == 2
    assert found.busy_share == pytest.approx(3.5 / 6)
    assert np.isnan(found.queue["mean"].value)
    assert found.ttft["mean"].value == pytest.approx(4.5 / 3)
    assert found.goodput == pytest.approx(1 / 6)
    overtaken = waits_of(by_engine(np.array([0.0, 1.0]), [5.0, 3.0]), 2.5)
    assert overtaken.busy_share == 1, "the first token of the prompt that came first was the last"
    assert overtaken.goodput == pytest.approx(1 / 5)


# --- policies


@pytest.mark.parametrize("method", BATCHING)
def test_looking_at_one_batch_is_first_come_first_served(method: str) -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 23).tolist()
    times_s = np.sort(np.random.default_rng(2).random(23))
    of = rules(lengths, times_s.tolist(), method, lookahead=4)
    served = virtual(times_s, chooser("lookahead", of), by_tokens(of))
    as_today = virtual(times_s, chooser("fifo", of), by_tokens(of))
    assert [sorted(batch) for batch in served.batches] == [sorted(batch) for batch in as_today.batches]
    together = virtual(np.zeros(23), chooser("lookahead", of), by_tokens(of))
    today = [sorted(batch.tolist()) for batch in cut(np.arange(23), 4)]
    assert [sorted(batch) for batch in together.batches] == today


@pytest.mark.parametrize("method", BATCHING)
def test_looking_at_everything_is_the_offline_oracle(method: str) -> None:
    lengths = np.random.default_rng(3).integers(1, 60, 45)
    of = rules(lengths.tolist(), None, method, lookahead=45)
    served = virtual(np.zeros(45), chooser("lookahead", of), by_tokens(of))
    oracle = length_ordered_batches(lengths, 4)
    if method == "prepacking":
        oracle, _ = dataset_bins(lengths, 4, first_fit_decreasing)
    assert served.batches == [batch.tolist() for batch in oracle]


def test_a_token_budget_is_kept_but_for_a_prompt_that_is_longer() -> None:
    of = rules([20, 20, 20, 90, 5, 5, 5, 5, 5], batch_size=4)
    served = virtual(np.zeros(9), chooser("token-budget", of), by_tokens(of))
    assert served.batches == [[0, 1], [2], [3], [4, 5, 6, 7], [8]]


def test_buckets_keep_like_lengths_together_and_serve_the_one_who_waits_longest() -> None:
    of = rules([50, 5, 60, 7, 400, 8], batch_size=2)
    assert virtual(np.zeros(6), chooser("buckets", of), by_tokens(of)).batches == [[0, 2], [1, 3], [4], [5]]
    lengths = np.arange(1, 101)
    assert bounds(4, lengths) == (26, 51, 76, 100)
    assert bounds([16, 64], lengths) == (16, 64)
    assert bounds(3, np.full(9, 7)) == (7,)


def test_the_shortest_come_first_and_a_long_one_is_served_in_time() -> None:
    """A prompt of 100 tokens among short ones that fill the device: it waits 100 / ageing seconds, and not for ever."""
    times_s = np.concatenate([[0.0], np.linspace(0, 60, 1200)])
    lengths = [100] + [1] * 1200
    waited = {}
    for ageing in (5.0, 20.0):
        of = rules(lengths, times_s.tolist(), batch_size=1, ageing=ageing)
        served = virtual(times_s, chooser("shortest-first", of), lambda _: 0.06)
        waited[ageing] = served.starts_s[served.batch_of[0]]
        assert waited[ageing] <= 100 / ageing * 1.25 + 0.06
    assert waited[20.0] < waited[5.0]


def test_a_policy_that_chooses_wrongly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ([], [0, 0], [7]):
        module = type("Module", (), {"make": staticmethod(lambda _, wrong=wrong: lambda *_: wrong)})
        monkeypatch.setattr(policy.importlib, "import_module", lambda _, module=module: module)
        with pytest.raises(UserError, match=r"src/queueing/policies/mine\.py: of 2 who wait it chose"):
            chooser("mine", rules([1, 1]))([0, 1], 0.0)
    monkeypatch.setattr(policy.importlib, "import_module", lambda _: object())
    with pytest.raises(UserError, match="it holds no policy; give it make"):
        chooser("mine", rules([1]))


# --- clocks


def test_the_virtual_clock_tells_what_the_real_one_shows() -> None:
    """The same arrivals and service times: each prompt waits the same in both, to within what threads take."""
    times_s = arrivals.poisson(60, 40.0, np.random.default_rng(4))
    of = rules([10] * 60, times_s.tolist())

    def work(members: Sequence[int]) -> float:
        time.sleep(0.02)
        return 0.02

    shown = waits_of(real(times_s, chooser("fifo", of), work), 0.1)
    told = waits_of(virtual(times_s, chooser("fifo", of), lambda _: 0.02), 0.1)
    assert shown.ttft["mean"].value == pytest.approx(told.ttft["mean"].value, abs=0.008)
    assert shown.busy_share == pytest.approx(told.busy_share, abs=0.12)
    assert shown.stable is told.stable is True


def test_idle_time_is_passed_over() -> None:
    began = time.perf_counter()
    served = virtual(np.array([0.0, 3600.0]), chooser("fifo", rules([1, 1])), lambda _: 1.0)
    assert time.perf_counter() - began < 1
    assert (served.starts_s, served.ends_s) == ([0.0, 3600.0], [1.0, 3601.0])


# --- arrivals


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_gamma_gaps_have_the_rate_and_the_burstiness_asked_for(burstiness: float, variation: float) -> None:
    gaps = np.diff(arrivals.gamma(200_000, 5.0, burstiness, np.random.default_rng(0)))
    assert gaps.mean() == pytest.approx(0.2, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.02)
    poisson = np.diff(arrivals.poisson(200_000, 5.0, np.random.default_rng(0)))
    assert poisson.std() / poisson.mean() == pytest.approx(1.0, rel=0.02)


def test_the_shipped_traces_are_what_their_readme_says() -> None:
    for name, number, variation in (("azure-conv-2023", 19_366, 1.09), ("azure-code-2023", 8_819, 13.2)):
        times_s, lengths = arrivals.shipped(name)
        assert len(times_s) == len(lengths) == number
        assert (lengths > 0).all()
        arrivals.check_order(times_s, "trace")
        gaps = np.diff(times_s)
        assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.01)
    assert arrivals.names() == ["azure-code-2023", "azure-conv-2023"]


def test_a_trace_is_stretched_to_the_rate_and_keeps_its_shape() -> None:
    times_s = arrivals.trace_times("azure-conv-2023", 500, np.random.default_rng(9))
    found = arrivals.stretched(times_s, 20.0)
    assert found[0] == 0
    assert (len(found) - 1) / found[-1] == pytest.approx(20.0)
    ratio = np.diff(found)[np.diff(times_s) > 0] / np.diff(times_s)[np.diff(times_s) > 0]
    assert ratio == pytest.approx(ratio[0])
    again = arrivals.trace_times("azure-conv-2023", 500, np.random.default_rng(9))
    other = arrivals.trace_times("azure-conv-2023", 500, np.random.default_rng(10))
    assert np.array_equal(times_s, again)
    assert not np.array_equal(times_s, other)


TRACES = {
    "gone.csv": (None, "there is neither a shipped trace nor a file"),
    "back.csv": ("arrival_s,prompt_tokens\n0,5\n4,5\n1,5\n", "request 3 comes 3 s before the one before it"),
    "timeless.csv": ("prompt_tokens\n5\n6\n", "does not say of every request when it came"),
    "strange.csv": ("arrival_s,prompt_tokens\n0,5\nnan,5\n4,5\n", "nan"),
    "short.csv": ("arrival_s,prompt_tokens\n0,5\n4,5\n", "has 2 requests, and num_prompts=3"),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_bad_trace_is_named(name: str, tmp_path: Path) -> None:
    content, said = TRACES[name]
    if content:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said) as error:
        arrivals.trace_times(str(tmp_path / name), 3, np.random.default_rng(0))
    assert "\n" not in str(error.value)


def test_requests_that_came_together_have_no_rate() -> None:
    with pytest.raises(UserError, match="all of its prompts arrive at the same moment"):
        arrivals.stretched(np.zeros(3), 1.0)


def test_what_was_served_is_told_by_batch() -> None:
    served = Served(np.zeros(3))
    served.add([2, 0], 0.0, 1.0)
    served.add([1], 1.0, 2.0)
    assert served.batch_of.tolist() == [0, 1, 0]
    assert loop.by_engine(np.zeros(2), [1.0, 2.0]).batches == [[0], [1]]
