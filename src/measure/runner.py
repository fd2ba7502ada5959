"""Carries out a plan: loads the model, verifies the methods, warms up, measures, and writes one record per method."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from ..cli import UserError, warn
from ..prefilling import cpp, split
from ..prefilling.engines import make_engine, start_serving
from ..prefilling.loading import load_model
from ..prefilling.method import Engine
from ..prefilling.vllm.driver import Missing
from ..records import store
from ..records.store import Record
from . import kernels, load, machine
from .compiling import Compiled
from .invariance import invariance
from .memory import give_back, keep_freed_memory, tensors_mb
from .memory_checks import leave_out_what_cannot_fit, skip_dominated
from .outcome import FAILURES, Outcome, Run, status_of
from .overhead import sampler_overhead
from .plan import Plan
from .rates import measure_rates
from .rows import to_records
from .sampler import Counters, counters_for
from .timer import NoTimer
from .turns import time_in_turns
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
            time_in_turns(run, counters)
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
        chosen = [(plan.token_ids(batch), bins) for batch, bins in map(outcome.batch, hardest)]
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


def _find_kernels(run: Run) -> None:
    """Profile each method's cheapest batch, once all is timed: a profiler may leave something that costs time."""
    plan = run.plan
    for outcome in run.timed:
        if not outcome.passes or outcome.method.external or outcome.engine is None:
            continue
        cheapest = int(np.prod(outcome.shapes, axis=1).argmin())
        batch, bins = outcome.batch(cheapest)
        if outcome.served is not None:  # all that arrived is one batch to an engine that forms its own
            batch = batch[: plan.config.batch_size]
        prefill = functools.partial(outcome.engine.prefill, plan.token_ids(batch), NoTimer(), bins)
        outcome.kernel, outcome.attention_share = kernels.kernels_of(prefill, plan.device)
