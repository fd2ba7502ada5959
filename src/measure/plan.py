"""What a comparison will do, decided before any weights are loaded: device, model, prompts, batches, identity.

A plan never changes. What happens while it is carried out is in ``outcome.py``.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .. import hub
from ..cli import UserError, warn
from ..config import Config, config_hash
from ..prefilling.method import Method, Pack, PrefillOptions, TokenIds, dataset_bins
from ..prefilling.methods import method_of
from ..prefilling.models import ModelSource, check_quantizable, check_served, find_model
from ..prefilling.packing import PACKINGS, Bins
from ..provenance import code_hash
from ..records import store as records
from ..records.store import Record
from ..workload import arrivals
from ..workload.batches import Batch, cut, fingerprint, shuffled_batches
from ..workload.prompts import Prompts, load_prompts
from ..workload.tokenizer import Tokenizer, mistral_tokenizer, model_tokenizer
from . import faults, machine

ARRIVALS = 17  # so that arrivals are drawn apart from what else the seed draws
# rows="batch", so that ``shape_of`` gives k prompts of the mean length, which is what the ideal computes.
IDEAL = Method("ideal", rows="batch")


@dataclass(frozen=True)
class Assignment:
    """A method and the batches that it will prefill.

    Attributes:
        shapes: rows and width of each batch's forward; of padding-free as if its prompts were equally long.
        bins: each batch's bins, where the whole dataset was packed.
    """

    method: Method
    batches: list[Batch]
    shapes: list[tuple[int, int]]
    bins: list[Bins] | None = None


@dataclass(frozen=True)
class Plan:
    """A comparison that is ready to run: everything decided, no weights loaded. It can be sent to another process.

    Attributes:
        devices: the one; or all that the model is split over, where device_map asks for it.
        methods: what each method of the comparison will do.
        ideal: a dense forward of as many useful tokens, timed beside the methods; None where it was not asked for.
        shuffled: the batches as they arrive.
        arrivals_s: float64 [n], when each prompt arrives, ascending seconds, in the order of ``shuffled``; None where
            all are there from the start.
    """

    config: Config
    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    source: ModelSource
    prompts: Prompts
    methods: tuple[Assignment, ...]
    ideal: Assignment | None
    workload_fingerprint: str
    results_dir: Path
    shuffled: list[Batch]
    arrivals_s: NDArray[np.float64] | None = None

    @property
    def pack(self) -> Pack:
        """How prompts are packed into bins."""
        return PACKINGS[self.config.packing]

    @property
    def device(self) -> torch.device:
        """Where a batch goes in."""
        return self.devices[0]

    @property
    def device_name(self) -> str:
        """What all of it runs on."""
        return machine.device_name(*self.devices)

    @property
    def options(self) -> PrefillOptions:
        """How batches are prefilled."""
        c = self.config
        keeps = "keeps-last-batch" in self.faults
        return PrefillOptions(
            c.metric, c.protocol, self.pack, c.forward, c.max_tokens_per_forward, keeps, c.numerics, c.attention
        )

    @property
    def faults(self) -> tuple[str, ...]:
        """The measuring faults that are on."""
        return faults.resolve(self.config.faults, self.config.protocol, self.config.metric)

    @property
    def identity(self) -> str:
        """8 hex digits over settings, workload, model, machine, software and code: what makes a run the same run."""
        parts = (config_hash(self.config), self.workload_fingerprint, self.source.identity, self.device_name,
                 *map(str, machine.software().values()), code_hash())  # fmt: skip
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]

    @property
    def comparison_id(self) -> str:
        """Names this comparison: ``mmlu-llama-15m-prefill-modern-b64-1f2e3d4c``."""
        c = self.config
        quantized = "" if c.loadbit == "none" else f"-{c.loadbit}bit"
        return f"{c.dataset.name}-{c.model.name}{quantized}-{c.metric}-{c.protocol}-b{c.batch_size}-{self.identity}"

    def run_id(self, method: Method) -> str:
        """Names the record of one method."""
        return f"{method.name}-{self.comparison_id}"

    def token_ids(self, batch: Batch) -> list[TokenIds]:
        """The prompts of a batch."""
        return [self.prompts.token_ids[index] for index in batch]

    def logit_positions(self, rows: int, width: int, batch: Batch) -> int:
        """Positions at which this protocol computes logits."""
        return rows * width if self.config.protocol == "paper" else len(batch)

    def recorded(self) -> list[Record] | None:
        """The records of this very comparison, if all of them exist and none ended in an error."""
        found = []
        for each in self.methods:
            try:
                found.append(records.read(self.results_dir / self.run_id(each.method)))
            except ValueError:
                return None
        return None if any(record.row.status == "error" for record in found) else found


def results_dir_of(config: Config) -> Path:
    """The folder that a configuration's records go to: the one it names, else the one of this machine."""
    slug = machine.machine_slug(*machine.pick_devices(config.device, config.device_map))
    return Path(config.results_dir or Path("results") / slug).expanduser()


def prepare(config: Config) -> Plan:
    """Decide everything that can be decided without loading weights.

    Raises:
        UserError: any setting that this machine, model or dataset cannot serve.
    """
    devices = machine.pick_devices(config.device, config.device_map)
    device = devices[0]
    config = machine.resolved(config, device)
    dtype: torch.dtype = getattr(torch, config.dtype)
    results_dir = results_dir_of(config)
    _check_arriving(config)
    source = find_model(config.model)
    if any(not method_of(name).serves for name in config.compared_methods):
        check_served(source, "transformers" if config.protocol == "paper" else config.forward)
    check_quantizable(source, config.loadbit, device)
    in_order = config.arrivals == "trace" and config.trace is None
    prompts = load_prompts(
        config.dataset, config.num_prompts, config.seed, source.config.vocab_size,
        functools.partial(_tokenizer, source), config.sample, in_order,
    )  # fmt: skip
    _check_sizes(config, source, prompts)
    shuffled = shuffled_batches(len(prompts.lengths), config.batch_size, config.seed)
    if prompts.order is not None:
        shuffled = cut(prompts.order, config.batch_size)
    active = faults.resolve(config.faults, config.protocol, config.metric)
    order_by = faults.ordering_lengths(active, prompts, explicit="sort-by-characters" in config.faults)
    methods = tuple(
        _assignment(method_of(name), config, prompts, shuffled, order_by) for name in config.compared_methods
    )
    ideal = None
    if config.ideal and config.protocol == "modern" and not config.under_load:
        ideal = _assignment(IDEAL, config, prompts, shuffled, order_by)
    arrivals_s = _arrivals(config, prompts) if config.under_load else None
    records.check_writable(results_dir)
    named = fingerprint(prompts.token_ids, shuffled, arrivals_s)
    return Plan(config, devices, dtype, source, prompts, methods, ideal, named, results_dir, shuffled, arrivals_s)


def _tokenizer(source: ModelSource) -> Tokenizer:
    """The model's own tokenizer; Mistral-7B's, with a note, where it has none that loads."""
    if source.path is None:
        return mistral_tokenizer()
    try:
        return model_tokenizer(source.path, source.revision, source.gguf)
    except Exception as error:  # the hub's library has many
        if source.weights == "hub" and hub.broke(error):
            remedy = "use model.weights=random or a local folder"
            raise hub.explain(error, "model.path", source.path, remedy, source.revision) from None
        if not isinstance(error, (OSError, ValueError, ImportError)):
            raise
        warn(f"{source.path} has no tokenizer that loads ({type(error).__name__}); using the Mistral-7B one")
        return mistral_tokenizer()


def _check_sizes(config: Config, source: ModelSource, prompts: Prompts) -> None:
    """See that there are prompts for a batch, and that the model takes the longest."""
    lengths = prompts.lengths
    if config.batch_size > len(lengths):
        raise UserError(
            "batch_size",
            f"{config.batch_size} is larger than the data ({len(lengths)} usable prompts)",
            f"give at most {len(lengths)}",
        )
    if lengths.max() > source.max_positions:
        raise UserError(
            "dataset.max_tokens",
            f"a prompt of {lengths.max():,} tokens is longer than the {source.max_positions:,} positions of "
            f"{config.model.name}",
            f"cut prompts with dataset.max_tokens={source.max_positions}, or choose another model",
        )


def _assignment(
    method: Method, config: Config, prompts: Prompts, shuffled: list[Batch], order_by: NDArray[np.int64]
) -> Assignment:
    """The batches that a method computes.

    Args:
        shuffled: those of methods that take prompts as they come.
        order_by: int64 [prompts], what methods that sort sort by.
    """
    lengths, pack = prompts.lengths, PACKINGS[config.packing]
    if method.packs_dataset:
        batches, bins = dataset_bins(lengths, config.batch_size, pack)
        return Assignment(method, batches, [(len(each), int(lengths.max())) for each in bins], bins)
    batches = method.batches(shuffled, order_by, config.batch_size)
    return Assignment(method, batches, [shape_of(method, lengths[batch], pack) for batch in batches])


def _check_arriving(config: Config) -> None:
    """See that no method has to know prompts that have not arrived yet."""
    for name in config.compared_methods:
        if config.under_load and method_of(name).needs_dataset:
            problem = f"{name} needs all prompts before its first batch, and they have not arrived"
            raise UserError("method", problem, "use policy=lookahead with full-batching or prepacking")


def _arrivals(config: Config, prompts: Prompts) -> NDArray[np.float64]:
    """When each prompt arrives. The same draw at every rate, stretched, so that rates differ in nothing else.

    Raises:
        UserError: there is no such trace, or the prompts have no times.
    """
    number, rate = len(prompts.token_ids), config.rate or 1.0  # a search sets the rate of each of its runs
    rng = np.random.default_rng((config.seed, ARRIVALS))
    if config.arrivals == "poisson":
        return arrivals.stretched(arrivals.poisson(number, rate, rng), rate)  # the rate asked for, and not about it
    if config.arrivals == "gamma":
        return arrivals.stretched(arrivals.gamma(number, rate, config.burstiness, rng), rate)
    if config.trace is not None:
        return arrivals.stretched(arrivals.trace_times(config.trace, number, rng), rate)
    if prompts.arrivals_s is None:
        problem = f"the prompts of '{config.dataset.name}' do not say when they came"
        raise UserError("trace", problem, f"choose one of {', '.join(arrivals.names())}, or name a file with times")
    return arrivals.stretched(prompts.arrivals_s, rate)


def shape_of(method: Method, lengths: NDArray[np.int64], pack: Pack) -> tuple[int, int]:
    """Rows and width of a batch's forward; of a method without rows as if its prompts were equally long."""
    longest = int(lengths.max())
    if method.rows == "batch":
        return len(lengths), -(-int(lengths.sum()) // len(lengths))
    return (len(pack(lengths.tolist(), longest)) if method.packs else len(lengths)), longest
