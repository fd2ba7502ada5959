"""What a comparison will do, decided before any weights are loaded: device, model, prompts, batches, identity."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src import hub
from src.cli import UserError, warn
from src.config import Config, config_hash
from src.measure import machine, quirks, records
from src.measure.limit import Rates
from src.measure.memory import Peak
from src.measure.process import CpuUse
from src.measure.records import Record
from src.measure.sampler import Usage
from src.measure.verify import Verification
from src.prefill.methods import METHODS, Engine, How, Method, Pack, TokenIds, dataset_bins
from src.prefill.models import ModelSource, check_quantizable, check_served, find_model
from src.prefill.packing import PACKINGS, Bins
from src.workload.batches import Batch, fingerprint, shuffled_batches
from src.workload.prompts import Prompts, load_prompts
from src.workload.tokenizer import Tokenizer, mistral_tokenizer, model_tokenizer

IDEAL = Method("ideal", rows="batch")


@dataclass
class Pass:
    """One timed pass of a method over all its batches."""

    samples: list[dict[str, Any]]
    wall_seconds: float
    usage: Usage
    peak: Peak
    cpu: CpuUse = field(default_factory=CpuUse)


@dataclass
class UsageLoop:
    """What was seen while a method's batches ran again and again, untimed, because its passes are too short."""

    usage: Usage
    seconds: float


@dataclass
class Outcome:
    """What became of one method: its passes, or why there are none."""

    method: Method
    batches: list[Batch]
    shapes: list[tuple[int, int]]  # rows and width of each batch's forward, padding-free: as of equal prompts
    bins: list[Bins] | None = None  # each batch's, where the whole dataset was packed
    engine: Engine | None = None  # while a comparison runs
    attention: str | None = None
    kernel: str | None = None  # of attention, as one profiled pass showed it
    verification: Verification = field(default_factory=Verification)
    verified_batches: set[int] = field(default_factory=set)
    passes: list[Pass] = field(default_factory=list)
    loop: UsageLoop | None = None
    status: str = "ok"
    reason: str | None = None

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Seconds of each sample, [repeats, batches]."""
        return np.array([[sample["seconds"] for sample in done.samples] for done in self.passes])

    def fail(self, status: str, reason: str) -> None:
        """Take the method out of the comparison; it keeps a row that says why."""
        self.status, self.reason, self.passes = status, reason, []
        warn(f"{self.method.name}: {status}, {reason}")


@dataclass
class Plan:
    """A comparison that is ready to run: everything decided, no weights loaded."""

    config: Config
    devices: tuple[torch.device, ...]  # the one; all that the model is split over, where device_map asks for it
    dtype: torch.dtype
    source: ModelSource
    prompts: Prompts
    outcomes: list[Outcome]
    workload_fingerprint: str
    results_dir: Path
    shuffled: list[Batch]  # batches as they arrive
    rates: Rates | None = None  # of this machine, once they are measured
    ideal: Outcome | None = None  # a dense forward of as many useful tokens, timed beside the methods
    split: str | None = None  # which layers are on which GPU, once they are loaded
    pack: Pack = field(init=False)

    def __post_init__(self) -> None:
        self.pack = PACKINGS[self.config.packing]

    @property
    def device(self) -> torch.device:
        """Where a batch goes in."""
        return self.devices[0]

    @property
    def device_name(self) -> str:
        """What all of it runs on."""
        return machine.device_name(*self.devices)

    @property
    def how(self) -> How:
        """How batches are carried."""
        c = self.config
        return How(c.metric, c.protocol, self.pack, c.forward, c.max_tokens_per_forward)

    @property
    def timed(self) -> list[Outcome]:
        """The outcomes whose batches are timed, in turns."""
        return [*self.outcomes, *([self.ideal] if self.ideal else [])]

    @property
    def quirks(self) -> tuple[str, ...]:
        """The measuring faults that are on."""
        return quirks.resolve(self.config.quirks)

    @property
    def identity(self) -> str:
        """8 hex digits over settings, workload, model, machine, software and code: what makes a run the same run."""
        parts = (config_hash(self.config), self.workload_fingerprint, self.source.identity, self.device_name,
                 *map(str, machine.software().values()), machine.code_hash())  # fmt: skip
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
        for outcome in self.outcomes:
            try:
                found.append(records.read(self.results_dir / self.run_id(outcome.method)))
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
    dtype = machine.pick_dtype(config.dtype, device)
    config = replace(config, device=str(device), dtype=str(dtype).removeprefix("torch."))
    results_dir = results_dir_of(config)
    source = find_model(config.model)
    if any(not METHODS[name].serves for name in config.compared_methods):
        check_served(source, "transformers" if config.protocol == "paper" else config.forward)
    check_quantizable(source, config.loadbit, device)

    def make_tokenizer() -> Tokenizer:
        if source.path is None:
            return mistral_tokenizer()
        try:
            return model_tokenizer(source.path, source.revision)
        except Exception as error:  # the hub's library has many
            if source.weights == "hub" and hub.broke(error):
                remedy = "use model.weights=random or a local folder"
                raise hub.explain(error, "model.path", source.path, remedy, source.revision) from None
            if not isinstance(error, (OSError, ValueError, ImportError)):
                raise
            warn(f"{source.path} has no tokenizer that loads ({type(error).__name__}); using the Mistral-7B one")
            return mistral_tokenizer()

    prompts = load_prompts(config.dataset, config.num_prompts, config.seed, source.config.vocab_size, make_tokenizer)
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
    active = quirks.resolve(config.quirks)
    order_by = quirks.ordering_lengths(active, prompts, explicit="sort-by-characters" in config.quirks)
    shuffled = shuffled_batches(len(lengths), config.batch_size, config.seed)
    pack = PACKINGS[config.packing]
    outcomes = []
    for place, name in enumerate(config.compared_methods):
        method, arriving = METHODS[name], shuffled
        if "own-shuffle" in active:
            arriving = shuffled_batches(len(lengths), config.batch_size, config.seed + 1 + place)
        if method.packs_dataset:
            batches, bins = dataset_bins(lengths, config.batch_size, pack)
            shapes = [(len(each), int(lengths.max())) for each in bins]
            outcomes.append(Outcome(method, batches, shapes, bins))
            continue
        batches = method.batches(arriving, order_by, config.batch_size)
        outcomes.append(Outcome(method, batches, [_shape(method, lengths[batch], pack) for batch in batches]))
    ideal = None
    if config.ideal and config.protocol == "modern":
        ideal = Outcome(IDEAL, shuffled, [_shape(IDEAL, lengths[batch], pack) for batch in shuffled])
    records.check_writable(results_dir)
    named = fingerprint(prompts.token_ids, shuffled)
    return Plan(config, devices, dtype, source, prompts, outcomes, named, results_dir, shuffled, ideal=ideal)


def _shape(method: Method, lengths: NDArray[np.int64], pack: Pack) -> tuple[int, int]:
    longest = int(lengths.max())
    if method.rows == "batch":
        return len(lengths), -(-int(lengths.sum()) // len(lengths))
    return (len(pack(lengths.tolist(), longest)) if method.packs else len(lengths)), longest
