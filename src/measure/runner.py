"""Carries out a plan: loads the model, verifies the methods, warms up, measures, and writes one record per method."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from .. import terminal
from ..cli import UserError, warn
from ..prefilling import cpp, split
from ..prefilling.engines import make_engine, start_serving
from ..prefilling.method import PHASES, Engine, dataset_bins
from ..prefilling.models import load_model
from ..prefilling.packing import Bins
from ..prefilling.vllm.driver import Missing
from ..records import store
from ..records.store import Record
from ..workload.batches import Batch
from . import kernels, load, machine
from .batch import timed_batch
from .compiling import Compiled
from .faults import reshuffled
from .invariance import invariance
from .memory import PeakMemory, give_back, keep_freed_memory, tensors_mb
from .memory_checks import leave_out_what_cannot_fit, skip_dominated
from .outcome import FAILURES, Outcome, Pass, Run, UsageLoop, status_of
from .overhead import sampler_overhead
from .plan import Plan
from .process import CpuTimes, CpuUse
from .rates import measure_rates
from .rows import precise, to_records
from .sampler import Counters, Sampler, counters_for
from .timer import NoTimer, PhaseTimer
from .verify import verify


def measure(plan: Plan) -> list[Record]:
    """Measure a plan's methods side by side and write one record each; what is recorded already is only read.

    Returns:
        The records, in the order of the plan's methods. A method that failed has a row with its status.

    Raises:
        UserError: the model cannot be loaded as asked, or results cannot be written.
    """
    c = plan.config
    if not c.rerun and (found := plan.recorded()) is not None:
        warn(f"{plan.comparison_id}: already recorded (rerun=true measures again)")
        return found
    run = Run(plan)
    torch.manual_seed(c.seed)
    if c.ideal and plan.arrivals_s is None:
        run.rates = measure_rates(plan.device, plan.dtype)
    if plan.device.type == "cpu" and c.memory_limit_mb is None:
        keep_freed_memory()  # within a limit, pieces too small for the next tensor would count against it
    counters, made = counters_for(*plan.devices), machine.manifest(plan.device)
    give_back()  # what an earlier comparison's model left
    if not c.rerun:
        skip_dominated(run)
    leave_out_what_cannot_fit(run)
    try:
        if any(outcome.status == "ok" for outcome in run.outcomes):
            _carry_out(run, counters)
    except FAILURES as error:  # loading; methods catch their own
        for outcome in run.outcomes:
            if outcome.status == "ok":
                outcome.fail(*status_of(error))
    give_back()  # for what writes the records
    # A GPU that no longer answers does not keep what was measured from being written.
    with contextlib.suppress(RuntimeError):
        made |= sampler_overhead(plan.device, counters, c.sampler_interval_s, c.sampler_overhead_s)
    finished = to_records(run, made)
    kept = [record for record in finished if record.row.status == "ok" or "no-failure-rows" not in plan.faults]
    store.write_each(kept, plan.results_dir)
    return finished


def _carry_out(run: Run, counters: Counters) -> None:
    """Load the model, verify the methods, time them, and look which attention kernels ran."""
    plan, c = run.plan, run.plan.config
    model = load_model(plan.source, plan.device, plan.dtype, c.loadbit, c.seed, c.device_map, plan.devices, c.numerics)
    run.split = split.in_words(model)
    if plan.device.type == "cpu" and plan.dtype in cpp.TYPES and c.protocol == "modern" and (why := cpp.missing()):
        warn(f"attention and norms run on torch's operators, which take longer on a CPU: {why}")
    if run.ideal:
        largest = max(plan.shuffled, key=lambda batch: plan.prompts.lengths[batch].sum())
        run.ideal.engine = kernels.fastest(kernels.ideals(model, plan.options), plan.token_ids(largest), *plan.devices)
    try:
        _verify(run, model)
        if not any(outcome.status == "ok" for outcome in run.outcomes):
            return  # nothing is left to hold against the ideal
        if plan.arrivals_s is None:
            _time(run, counters)
        else:
            load.serve(run, counters)
        _find_kernels(run)
    finally:
        for outcome in run.timed:
            if outcome.engine:
                outcome.engine.close()


def _verify(run: Run, model: PreTrainedModel) -> None:
    """Check each method on its batches with the longest prompts; what is wrong is not measured."""
    plan = run.plan
    c, lengths = plan.config, plan.prompts.lengths
    for outcome in run.outcomes:
        if outcome.status != "ok":
            continue
        longest = [-lengths[batch].max() for batch in outcome.batches]
        hardest = np.argsort(longest, kind="stable")[: c.verify_batches]
        chosen = [
            (plan.token_ids(outcome.batches[index]), outcome.bins[index] if outcome.bins else None) for index in hardest
        ]
        before, held_mb = Compiled.now(), tensors_mb(*plan.devices)
        try:
            outcome.engine = asked = _engine(plan, model, outcome)
            outcome.attention = outcome.engine.attention
            outcome.elementwise = getattr(outcome.engine, "elementwise", None)
            if outcome.method.external:  # its weights are its own: nothing to compare with
                continue
            if not outcome.method.serves:
                options = replace(plan.options, metric="ttft", keeps_logits=False)
                asked = make_engine(model, outcome.method, options)
            outcome.verification = verify(model, chosen, asked, c.loadbit, c.generate_tokens)
            outcome.verified_batches = set(hardest.tolist())
            if c.invariance:
                outcome.invariance = invariance(asked, [prompts for prompts, _ in chosen])
        except (Missing, UserError) as error:
            outcome.fail("skipped", str(error))
            continue
        except FAILURES as error:
            outcome.fail(*status_of(error))
            continue
        outcome.compiled = Compiled.now() - before
        if outcome.method.serves:
            outcome.holds_mb = tensors_mb(*plan.devices) - held_mb
        if outcome.verification.problem:
            outcome.fail("incorrect", outcome.verification.problem)


def _engine(plan: Plan, model: PreTrainedModel, outcome: Outcome) -> Engine:
    """The engine of a method; a serving engine is started, with room for the largest batch."""
    if not outcome.method.serves:
        return make_engine(model, outcome.method, plan.options)
    batches = [plan.prompts.lengths[batch].tolist() for batch in outcome.batches]
    return start_serving(model, outcome.method, batches, as_they_come=plan.arrivals_s is not None)


def _time(run: Run, counters: Counters) -> None:
    """Warm-up and timed passes: repeats outermost, methods in a seeded random order inside, so drift hits all alike.

    With ``precision`` set, repeats go on until the intervals are that narrow, or ``max_repeats`` is reached.
    The first warm-up pass leaves out the batches that verification has just run: their shapes are warm.
    """
    plan = run.plan
    c, rng = plan.config, np.random.default_rng(plan.config.seed)
    timer = PhaseTimer(*plan.devices, synchronizes="no-sync" not in plan.faults)
    memory = PeakMemory(*plan.devices)
    batches = sum(len(outcome.batches) for outcome in run.timed)
    bar = tqdm(
        total=(c.warmup + c.repeats) * batches,
        desc=f"{c.metric} {c.protocol}",
        unit="batch",
        mininterval=0.5,
        leave=False,
        # A log of a run has no use for a line that is redrawn, and of two such lines one would write over the other.
        disable=True if terminal.progress_shown() else None,
    )
    with bar, Sampler(counters, c.sampler_interval_s) as sampler:
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
                gc.disable()
                try:
                    memory.reset()
                    unsettled = Compiled.now()
                    _settle(plan, outcome, timer)
                    memory.mark()
                    compiled, before, start = Compiled.now(), CpuTimes.now(), time.perf_counter()
                    outcome.compiled += compiled - unsettled
                    skip = outcome.verified_batches if repeat == -c.warmup < 0 else set()
                    samples = _timed_pass(plan, outcome, timer, bar, (repeat, place), skip)
                except FAILURES as error:
                    outcome.fail(*status_of(error))
                    continue
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
        for outcome in run.outcomes:
            outcome.reshuffled = None
            short = not all(done.usage.valid for done in outcome.passes)
            if outcome.passes and short and not outcome.computes_unseen(plan.device.type):
                outcome.loop = _utilization_loop(plan, outcome, timer, sampler)
    if sampler.failure:
        warn(f"the sampler stopped ({sampler.failure}); utilization is incomplete")


def _settle(plan: Plan, outcome: Outcome, timer: PhaseTimer) -> None:
    """On a GPU prefill untimed first, so that a pass does not pay for memory that a running server would hold already.

    Torch's allocator gave its memory back before the pass, so that the next method finds it: the largest batch fetches
    it anew. Batches that were shuffled anew may have lengths that a library has to plan for first.
    """
    if plan.device.type != "cuda" or outcome.method.external:
        return
    largest = int(np.prod(outcome.shapes, axis=1).argmax())
    for number in range(len(outcome.batches)) if outcome.reshuffled else [largest]:
        timed_batch(plan, outcome, timer, *_batch(outcome, number))


def _go_on(run: Run, done: int) -> bool:
    """Whether another repeat is wanted: an interval is wider than asked, and max_repeats is not reached."""
    c = run.plan.config
    going = [outcome for outcome in run.outcomes if outcome.status == "ok"]
    return c.precision is not None and bool(going) and done < c.max_repeats and not precise(going, c.precision)


def _find_kernels(run: Run) -> None:
    """Profile each method's cheapest batch, once all is timed: a profiler may leave something that costs time."""
    plan = run.plan
    for outcome in run.timed:
        if not outcome.passes or outcome.method.external or outcome.engine is None:
            continue
        cheapest = int(np.prod(outcome.shapes, axis=1).argmin())
        batch, bins = _batch(outcome, cheapest)
        if outcome.served is not None:  # all that arrived is one batch to an engine that forms its own
            batch = batch[: plan.config.batch_size]
        prefill = functools.partial(outcome.engine.prefill, plan.token_ids(batch), NoTimer(), bins)
        outcome.kernel, outcome.attention_share = kernels.kernels_of(prefill, plan.device)


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
            timed_batch(plan, outcome, timer, *_batch(outcome, number))
            now = time.perf_counter()
            # The first window still averages over what ran before the loop.
            usage = sampler.usage(start + counters.window_s, now)
            if usage.valid or now - start >= limit_s:
                break
    except FAILURES as error:  # its times stand; utilization stays as it is
        warn(f"{outcome.method.name}: the loop for utilization ended early ({status_of(error)[1]})")
    return None if usage is None else UsageLoop(usage, now - start)


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
            numbers, phases, done = timed_batch(plan, outcome, timer, *_batch(outcome, number))
            # The authors' loop gives a batch's results back only once it has those of the next.
            kept, done = (done if "keeps-last-batch" in plan.faults else None), None
            if share_s:  # of packing the whole dataset, which every batch must have waited for
                phases["plan"] = phases.get("plan", 0.0) + share_s
            samples.append(store.sample_row(*place, number, numbers, phases, timer.host_seconds + share_s, PHASES))
        bar.update()
    del kept
    return samples


def _batch(outcome: Outcome, number: int) -> tuple[Batch, Bins | None]:
    """A batch of the method's, and its bins where the whole dataset was packed."""
    return outcome.batches[number], outcome.bins[number] if outcome.bins else None
