"""Times the methods of a run in turns: warm-up and timed passes, then a loop where passes are too short to watch."""

from __future__ import annotations

import gc
import itertools
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import terminal
from ..cli import warn
from ..prefilling.method import PHASES, dataset_bins
from ..records import store
from .batch import timed_batch
from .compiling import Compiled
from .faults import reshuffled
from .memory import PeakMemory
from .outcome import FAILURES, Outcome, Pass, Run, UsageLoop, status_of
from .plan import Plan
from .process import CpuTimes, CpuUse
from .rows import precise
from .sampler import Counters, Sampler
from .timer import PhaseTimer


def time_in_turns(run: Run, counters: Counters) -> None:
    """Warm-up and timed passes: repeats outermost, methods in a seeded random order inside, so drift hits all alike.

    With ``precision`` set, repeats go on until the intervals are that narrow, or ``max_repeats`` is reached. What each
    pass took is added to its method's outcome; a method that fails leaves the comparison, and the others go on.
    """
    plan = run.plan
    c, rng = plan.config, np.random.default_rng(plan.config.seed)
    timer = PhaseTimer(*plan.devices, synchronizes="no-sync" not in plan.faults)
    memory = PeakMemory(*plan.devices)
    batches = sum(len(outcome.batches) for outcome in run.timed)
    with _bar(plan, (c.warmup + c.repeats) * batches) as bar, Sampler(counters, c.sampler_interval_s) as sampler:
        repeat = -c.warmup - 1
        while (repeat := repeat + 1) < c.repeats or _go_on(run, repeat):
            if repeat >= c.repeats:
                bar.total += batches
            for place, index in enumerate(rng.permutation(len(run.timed))):
                outcome = run.timed[index]
                if outcome.status != "ok":
                    continue
                if "own-shuffle" in plan.faults:
                    drawn = outcome.assignment
                    seed = (c.seed, index, repeat + c.warmup)
                    outcome.reshuffled = reshuffled(drawn.method, drawn.batches, drawn.bins, c.batch_size, seed)
                _take_turn(run, outcome, timer, memory, sampler, bar, (repeat, place))
        for outcome in run.outcomes:
            outcome.reshuffled = None
            short = not all(done.usage.valid for done in outcome.passes)
            if outcome.passes and short and not outcome.computes_unseen(plan.device.type):
                outcome.loop = _utilization_loop(plan, outcome, timer, sampler)
    if sampler.failure:
        warn(f"the sampler stopped ({sampler.failure}); utilization is incomplete")


def _bar(plan: Plan, total: int) -> Any:
    """A line of progress, in batches."""
    return tqdm(
        total=total,
        desc=f"{plan.config.metric} {plan.config.protocol}",
        unit="batch",
        mininterval=0.5,
        leave=False,
        # A log of a run has no use for a line that is redrawn, and of two such lines one would write over the other.
        disable=True if terminal.progress_shown() else None,
    )


def _take_turn(
    run: Run,
    outcome: Outcome,
    timer: PhaseTimer,
    memory: PeakMemory,
    sampler: Sampler,
    bar: Any,
    place: tuple[int, int],
) -> None:
    """One pass of a method: of the warm-up where the repeat, first of ``place``, is negative.

    The first warm-up pass leaves out the batches that verification has just run: their shapes are warm.
    """
    plan, repeat = run.plan, place[0]
    gc.disable()
    try:
        memory.reset()
        unsettled = Compiled.now()
        _settle(plan, outcome, timer)
        memory.mark()
        compiled, before, start = Compiled.now(), CpuTimes.now(), time.perf_counter()
        outcome.compiled += compiled - unsettled
        skip = outcome.verified_batches if repeat == -plan.config.warmup < 0 else set()
        samples = _timed_pass(plan, outcome, timer, bar, place, skip)
    except FAILURES as error:
        outcome.fail(*status_of(error))
        return
    finally:
        gc.enable()
    end, cpu = time.perf_counter(), CpuUse.since(before)
    compiled = Compiled.now() - compiled
    if repeat < 0:
        outcome.compiled += compiled
    else:
        outcome.compiled_timed += compiled
        peak = memory.read(run.held_beside_mb(outcome))
        outcome.passes.append(Pass(samples, end - start, sampler.usage(start, end), peak, cpu))


def _settle(plan: Plan, outcome: Outcome, timer: PhaseTimer) -> None:
    """On a GPU prefill untimed first, so that a pass does not pay for memory that a running server would hold already.

    Torch's allocator gave its memory back before the pass, so that the next method finds it: the largest batch fetches
    it anew. Batches that were shuffled anew may have lengths that a library has to plan for first.
    """
    if plan.device.type != "cuda" or outcome.method.external:
        return
    largest = int(np.prod(outcome.shapes, axis=1).argmax())
    for number in range(len(outcome.batches)) if outcome.reshuffled else [largest]:
        timed_batch(plan, outcome, timer, *outcome.batch(number))


def _timed_pass(
    plan: Plan, outcome: Outcome, timer: PhaseTimer, bar: Any, place: tuple[int, int], skip: set[int]
) -> list[dict[str, Any]]:
    samples, share_s, kept = [], 0.0, None
    if outcome.bins and "untimed-packing" not in plan.faults:
        start = time.perf_counter()
        dataset_bins(plan.prompts.lengths, plan.config.batch_size, plan.pack)
        share_s = (time.perf_counter() - start) / len(outcome.batches)
    for number in range(len(outcome.batches)):
        if number not in skip:
            numbers, phases, done = timed_batch(plan, outcome, timer, *outcome.batch(number))
            # The authors' loop gives a batch's results back only once it has those of the next.
            kept, done = (done if "keeps-last-batch" in plan.faults else None), None
            if share_s:  # of packing the whole dataset, which every batch must have waited for
                phases["plan"] = phases.get("plan", 0.0) + share_s
            samples.append(store.sample_row(*place, number, numbers, phases, timer.host_seconds + share_s, PHASES))
        bar.update()
    del kept
    return samples


def _go_on(run: Run, done: int) -> bool:
    """Whether another repeat is wanted: an interval is wider than asked, and max_repeats is not reached."""
    c = run.plan.config
    going = [outcome for outcome in run.outcomes if outcome.status == "ok"]
    return c.precision is not None and bool(going) and done < c.max_repeats and not precise(going, c.precision)


def _utilization_loop(plan: Plan, outcome: Outcome, timer: PhaseTimer, sampler: Sampler) -> UsageLoop | None:
    """Run a method's batches on, untimed, until there are enough windows to believe utilization, within the limit.

    None where nothing was learned: loops are switched off, there is no counter to wait for, or the first batch failed.
    """
    limit_s, counters = plan.config.utilization_loop_s, sampler.counters
    if not limit_s or counters.source == "none" or sampler.failure:
        return None
    start, usage = time.perf_counter(), None
    try:
        for number in itertools.cycle(range(len(outcome.batches))):
            timed_batch(plan, outcome, timer, *outcome.batch(number))
            now = time.perf_counter()
            # The first window still averages over what ran before the loop.
            usage = sampler.usage(start + counters.window_s, now)
            if usage.valid or now - start >= limit_s:
                break
    except FAILURES as error:  # its times stand; utilization stays as it is
        warn(f"{outcome.method.name}: the loop for utilization ended early ({status_of(error)[1]})")
    return None if usage is None else UsageLoop(usage, now - start)
