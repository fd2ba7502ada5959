"""Runs each comparison as a SLURM job: submits what has no record, waits, and says what became of it.

The results folder tells what is recorded, and SLURM's queue what is on its way, because a job is named after what it
measures. So nothing else has to be kept, and the same command goes on wherever it was cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ..cli import UserError, guarded, warn
from ..compose import compose, register_schemas
from ..config import CONFIG_DIR, Config, config_hash, dtype_name
from ..provenance import code_hash
from ..records import store as records
from ..records.row import Row
from .apart import run_apart

TOOLS = ("sbatch", "srun", "squeue", "sinfo", "scancel")
FOLDER = ".slurm"  # below the results: logs of jobs, what is to run in them, and outcomes of searches
POLL_SECONDS = 2.0
LATE_SECONDS = 10.0  # until other machines see what a node wrote to a shared disk
Search = Callable[[list[str], Path], dict[str, int]]


def check() -> None:
    """Say so where jobs cannot be submitted from here.

    Raises:
        UserError: SLURM, or the package that submits to it, is missing.
    """
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise UserError("launcher", f"slurm, but there is no {missing[0]} here", "use it where SLURM takes jobs")
    try:
        importlib.metadata.distribution("hydra-submitit-launcher")
    except importlib.metadata.PackageNotFoundError:
        remedy = f"install it: {shlex.quote(sys.executable)} -m pip install -e '.[slurm]'"
        raise UserError("launcher", "slurm needs the package hydra-submitit-launcher", remedy) from None


def settings(scale: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """configs/hydra/launcher/slurm.yaml at a scale, with what was ``chosen`` instead of what stands there.

    Raises:
        UserError: a setting that it does not have.
    """
    register_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed = hydra_compose("config", [f"scale={scale}", "hydra/launcher=slurm"], return_hydra_config=True)
    launcher = composed.hydra.launcher
    if unknown := set(chosen) - set(launcher):
        remedy = f"choose of {', '.join(name for name in launcher if name != '_target_')}"
        raise UserError(f"slurm.{sorted(unknown)[0]}", "there is no such setting", remedy)
    OmegaConf.set_struct(launcher, False)  # any option of sbatch may stand below additional_parameters
    merged = OmegaConf.to_container(OmegaConf.merge(launcher, dict(chosen)), resolve=True)
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def partition(chosen: Mapping[str, Any]) -> tuple[str, bool]:
    """The partition that jobs go to, and whether its nodes have GPUs, as SLURM says.

    Raises:
        UserError: SLURM does not answer, or has no such partition.
    """
    asked = os.environ.get("SBATCH_PARTITION") or settings("cpu", chosen)["partition"]
    gpus: dict[str, bool] = {}
    default = ""
    for line in _slurm("sinfo", "-h", "-o", "%P|%G").splitlines():
        name, gres = line.split("|", 1)
        default = name.rstrip("*") if name.endswith("*") else default
        gpus[name.rstrip("*")] = gpus.get(name.rstrip("*"), False) or "gpu" in gres
    names = str(asked or default).split(",")
    if set(names) - set(gpus):
        problem = f"there is no '{asked}'" if asked else "the cluster has no default one"
        raise UserError("slurm.partition", problem, f"choose one of {', '.join(sorted(gpus))}")
    return ",".join(names), any(gpus[name] for name in names)


@dataclass
class Job:
    """What one job does: a comparison or, with ``outcome``, a search; that file is written when the search ends."""

    overrides: list[str]
    config: Config  # as the node that measures resolves it
    results_dir: Path
    outcome: Path | None = None
    number: str | None = None  # SLURM's
    log: Path | None = None

    @property
    def name(self) -> str:
        """What SLURM calls it: the same for the same settings, code and results folder."""
        what = f"{config_hash(self.config)} {code_hash()} {self.results_dir} {bool(self.outcome)}"
        return f"prepack-bench-{hashlib.sha256(what.encode()).hexdigest()[:12]}"

    @property
    def title(self) -> str:
        """Names it for people."""
        c = self.config
        kind = "a search" if self.outcome else f"{c.metric}, {c.protocol}, batches of {c.batch_size}"
        return f"{c.model.name}, {c.dataset.name}, {kind} ({', '.join(c.compared_methods)})"

    def found(self, comparisons: Mapping[str, list[list[Row]]]) -> list[Row] | None:
        """Its rows, if all methods have one and none ended in an error; of a search that ended, none."""
        if self.outcome:
            return [] if self.outcome.exists() else None
        for rows in comparisons.get(config_hash(self.config), []):
            if {row.method for row in rows} >= set(self.config.compared_methods):
                return rows
        return None


def jobs_of(runs: Mapping[str, Sequence[list[str]]], searched: Collection[str], results_dir: Path) -> list[Job]:
    """One job for each different comparison of the experiments; those of the ``searched`` are a search each."""
    found: dict[str, Job] = {}
    for experiment, each in runs.items():
        for overrides in each:
            job = Job(overrides, _resolved(compose(overrides)), results_dir)
            if experiment in searched:
                job.outcome = results_dir / FOLDER / f"search-{config_hash(job.config)}-{code_hash()}.json"
            found.setdefault(job.name, job)
    return list(found.values())


def measure(todo: Sequence[Job], results_dir: Path, launcher: dict[str, Any], search: Search) -> int:
    """Submit each job that has no record and is not on its way; wait for all. 1 where one failed or left no record.

    Raises:
        UserError: nothing can be written, or SLURM takes no jobs.
        KeyboardInterrupt: the user stopped it; jobs go on, and are found again.
    """
    records.check_writable(results_dir)
    comparisons = _comparisons(results_dir)
    new = [job for job in todo if job.found(comparisons) is None]
    print(f"{len(todo)} comparisons and searches, {len(todo) - len(new)} of them recorded already", flush=True)
    if not new:
        return 0
    executor = _executor(results_dir / FOLDER, launcher)
    queue = _queue()
    there = [job for job in new if job.name in queue]
    for job in there:
        job.number = queue[job.name][0]
        job.log = executor.folder / f"{job.number}_0_log.out"
    try:
        for job in new:
            if not job.number:
                _submit(executor, job, search)
        print(
            f"submitted: {len(new) - len(there)}, on their way already: {len(there)}; logs: {executor.folder}",
            flush=True,
        )
        _wait(new, results_dir)
    except KeyboardInterrupt:
        ids = " ".join(job.number for job in new if job.number)
        print(f"\njobs go on in SLURM, and the same command finds them; to end them: scancel {ids}", flush=True)
        raise
    return _outcome(new, results_dir)


def _wait(new: Sequence[Job], results_dir: Path) -> None:
    """Sleep until none of the jobs is queued or running, and say how many are, whenever it changes."""
    said = ""
    while True:
        try:
            queue = _queue()
        except UserError as error:  # SLURM is restarted now and then; jobs outlive it
            warn(str(error))
            time.sleep(POLL_SECONDS)
            continue
        states = Counter("queued" if queue[t.name][1] == "PENDING" else "running" for t in new if t.name in queue)
        if not states:
            return
        text = f"{states['queued']} queued, {states['running']} running, {len(new) - states.total()} ended"
        if text != said:
            comparisons = _comparisons(results_dir)
            done = sum(job.found(comparisons) is not None for job in new)
            print(f"{text}, {done} of {len(new)} recorded", flush=True)
            said = text
        time.sleep(POLL_SECONDS)


def _outcome(new: Sequence[Job], results_dir: Path) -> int:
    """Print how the jobs ended. 1 where one failed or left no record."""
    end = time.monotonic() + LATE_SECONDS
    while True:
        records.check_writable(results_dir)  # writing there makes a network disk refresh what it shows
        comparisons = _comparisons(results_dir)
        lost = [job for job in new if job.found(comparisons) is None]
        if not lost or time.monotonic() > end:
            break
        time.sleep(1)
    rows = [row for job in new for row in job.found(comparisons) or []]
    failed = [row for row in rows if row.status not in {"ok", "skipped"}]
    print(f"{len(new) - len(lost)} recorded, {len(lost)} ended without a result", flush=True)
    for row in failed:
        print(f"  {row.run_id}: {row.status}, {row.status_reason}")
    for job in lost:
        print(f"  no result: {job.title}\n    job {job.number}, its log: {job.log}{_last_words(job.log)}", flush=True)
    return int(bool(lost or failed))


def _last_words(log: Path | None) -> str:
    """What a job's log says last of itself, after submitit's own words."""
    with contextlib.suppress(OSError):
        lines = Path(log or "").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((f"\n    {line}" for line in reversed(lines) if line.startswith(("error:", "note:"))), "")
    return ""


def _executor(folder: Path, launcher: dict[str, Any]) -> Any:
    """Submits to SLURM with the launcher's settings, as Hydra's plugin hands them on."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    common = {field.name for field in fields(BaseQueueConf)}
    wanted = {name: value for name, value in launcher.items() if name not in {"_target_", "submitit_folder"}}
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=wanted.pop("max_num_timeout"))
    executor.update_parameters(**{name if name in common else f"slurm_{name}": v for name, v in wanted.items()})
    return executor


def _submit(executor: Any, job: Job, search: Search) -> None:
    """Hand a job to SLURM.

    Raises:
        UserError: sbatch refuses it.
    """
    executor.update_parameters(name=job.name)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the error has it too
            submitted = executor.submit(
                in_job, job.overrides, job.results_dir, search if job.outcome else None, job.outcome
            )
    except Exception as error:  # submitit wraps whatever sbatch says
        said = [line for line in str(error).splitlines() if "error:" in line] or [str(error)]
        raise UserError("launcher", f"sbatch takes no job ({said[-1]})", "slurm.<setting>= sets its options") from None
    job.number, job.log = submitted.job_id, submitted.paths.stdout


def in_job(overrides: list[str], results_dir: Path, search: Search | None, outcome: Path | None) -> None:
    """What a job does on the node that measures; its exit code is that of the comparison."""

    def main() -> int:
        if search is None or outcome is None:
            return run_apart(compose(overrides))
        found = search(overrides, results_dir)
        draft = outcome.with_name(f"{records.DRAFT}{outcome.name}")
        draft.write_text(json.dumps(found), encoding="utf-8")
        draft.replace(outcome)
        return 0

    if code := guarded(main):
        sys.exit(code)


def _resolved(config: Config) -> Config:
    """A configuration whose device is known as the node that measures resolves it, and hashes it for its records."""
    return replace(config, dtype=dtype_name(config.dtype, config.device.startswith("cuda"), config.numerics))


def _comparisons(results_dir: Path) -> dict[str, list[list[Row]]]:
    """Rows of comparisons that were measured with this very code, on whatever node, by the hash of their settings."""
    found: dict[str, dict[str, list[Row]]] = {}
    for record in records.read_all(results_dir):
        if record.manifest.get("code_hash") == code_hash() and record.row.status != "error":
            found.setdefault(record.row.config_hash, {}).setdefault(record.row.comparison_id, []).append(record.row)
    return {settings: list(by_id.values()) for settings, by_id in found.items()}


def _queue() -> dict[str, tuple[str, str]]:
    """This user's jobs that are queued or running: number and state, by name."""
    lines = _slurm("squeue", "-h", "-u", str(os.getuid()), "-o", "%j|%i|%T").splitlines()
    return {name: (job, state) for name, job, state in (line.rsplit("|", 2) for line in lines)}


def _slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError("launcher", f"SLURM does not answer ({said})", "see whether `sinfo` works here")
    return done.stdout
