"""The record of a run: its row, samples and provenance, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import random
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ..cli import UserError, warn
from ..prefilling.identity import of_shape, of_text
from . import schema
from .row import Row

if TYPE_CHECKING:
    import pandas

    from ..stats import Seconds

RECORD_FILE = "record.json"
REQUESTS_FILE = "requests.csv"  # of a run under load
DRAFT = ".tmp-"  # prefix of names that are not finished
REPLACE_ATTEMPTS = 20
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
HOME = re.compile(r"/(home|Users)/[^/\s\"']+")


@dataclass
class Record:
    """A row, the samples it sums up, and its provenance; under load, when each prompt came and was served."""

    row: Row
    manifest: dict[str, Any]
    config: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    folder: Path | None = None  # where it was read from

    def seconds(self) -> Seconds:
        """Seconds of each sample, [repeats, batches]; of a record that was read they are read when asked for.

        Raises:
            OSError, ValueError, KeyError: the samples cannot be read.
        """
        table = self.sample_table()
        return table.pivot(index="repeat", columns="batch", values="seconds").to_numpy(dtype=np.float64)

    def whole_seconds(self) -> Seconds | None:
        """The same; None where the samples cannot be read, or not every batch of every repeat has its seconds."""
        try:
            seconds = self.seconds()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return seconds if seconds.size and np.isfinite(seconds).all() and (seconds > 0).all() else None

    def sample_table(self) -> pandas.DataFrame:
        """The samples, a line for each batch of each repeat."""
        import pandas  # here and below: it would add half a second to the start of every command

        return pandas.read_csv(self.folder / "samples.csv") if self.folder else pandas.DataFrame(self.samples)


def _draft_name() -> str:
    """A name for a draft that no other process uses, not even on another machine that shares the disk."""
    return f"{DRAFT}{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _abandoned(draft: Path) -> bool:
    """Whether the process that wrote a draft was on this machine and is gone."""
    host, _, rest = draft.name.removeprefix(DRAFT).rpartition("-")[0].rpartition("-")
    if host != platform.node() or not rest.isdigit():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def check_writable(results_dir: Path) -> None:
    """Create ``results_dir`` and try it, before anything is measured; clear away what killed processes left half done.

    Raises:
        UserError: nothing can be written there.
    """
    probe = results_dir / _draft_name()
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        probe.write_text("", encoding="ascii")
        probe.unlink()
        for draft in filter(_abandoned, results_dir.glob(f"{DRAFT}*")):
            _rescue(draft, results_dir)
    except OSError as error:
        raise UserError(
            "results_dir", f"cannot write to '{results_dir}' ({error.strerror})", "name a writable folder"
        ) from None


def _rescue(draft: Path, results_dir: Path) -> None:
    """Put a finished record in its place if its writer was killed before it could; else remove the draft.

    Of a draft and the record that is in its place, which the draft was to replace or was put aside for, the newer
    stands.
    """
    if draft.is_file():
        draft.unlink(missing_ok=True)
        return
    with contextlib.suppress(ValueError, OSError):
        row = read(draft).row
        place = results_dir / row.run_id
        if place.exists() and _written_at(place) < row.created_at:
            shutil.rmtree(place)
        if not place.exists():
            draft.rename(place)
    shutil.rmtree(draft, ignore_errors=True)


def _written_at(folder: Path) -> str:
    """When a record was made; empty where it cannot be read."""
    try:
        return read(folder).row.created_at
    except ValueError:
        return ""


def write(record: Record, results_dir: Path) -> Path:
    """Write ``results_dir/<run_id>/`` with record.json, samples.csv, config.yaml; it appears whole or not at all.

    An earlier record of the same run is replaced only once the new one is complete on disk. Others may write the same
    run at the same time: the last one stands.

    Raises:
        UserError: the folder cannot be written (full disk, no permission). The record is then saved in a temporary
            folder that the message names.
    """
    try:
        return _write(record, results_dir)
    except OSError as error:
        reason = error.strerror or str(error)
    try:
        saved = _write(record, Path(tempfile.mkdtemp(prefix="prepack-bench-saved-")))
        remedy = f"the finished record is saved: make room, then move {saved} there"
    except OSError:
        remedy = "free space or name another folder"
    raise UserError("results_dir", f"cannot write '{results_dir / record.row.run_id}' ({reason})", remedy)


def write_each(records: Iterable[Record], results_dir: Path) -> None:
    """Write several records; what keeps one from being written does not lose the others.

    Raises:
        UserError: of the first that cannot be written, once all were tried; the others' are told as notes.
    """
    failed = []
    for record in records:
        try:
            write(record, results_dir)
        except UserError as error:
            failed.append(error)
    for also in failed[1:]:
        warn(str(also))
    if failed:
        raise failed[0]


def _write(record: Record, results_dir: Path) -> Path:
    import pandas

    final, draft, old = (results_dir / name for name in (record.row.run_id, _draft_name(), _draft_name()))
    content = {
        "schema_version": schema.SCHEMA_VERSION,
        "row": _plain(asdict(record.row)),
        "prompt_lengths": record.prompt_lengths,
        "manifest": _plain(record.manifest),
    }
    files = {
        "samples.csv": pandas.DataFrame(record.samples).to_csv(index=False),
        "config.yaml": yaml.safe_dump(record.config, sort_keys=False),
        RECORD_FILE: json.dumps(content, indent=1),
    }
    if record.requests:
        files[REQUESTS_FILE] = pandas.DataFrame(record.requests).to_csv(index=False)
    try:
        draft.mkdir(parents=True)
        for name, text in files.items():
            with (draft / name).open("w", encoding="utf-8") as file:
                file.write(_without_secrets(text))
                file.flush()
                os.fsync(file.fileno())
        for attempt in range(REPLACE_ATTEMPTS):
            try:
                with contextlib.suppress(FileNotFoundError):
                    final.rename(old)
                draft.rename(final)
                return final
            except OSError as error:
                # Another process put its record of the same run there between the two renames: replace that one.
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY} or attempt == REPLACE_ATTEMPTS - 1:
                    raise
                shutil.rmtree(old, ignore_errors=True)
                time.sleep(random.uniform(0, 0.01 * attempt))
        raise AssertionError("unreachable")
    finally:
        if old.exists() and not final.exists():
            with contextlib.suppress(OSError):  # another process put its own there meanwhile, or the disk is gone
                old.rename(final)
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write a file beside the records; it appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(_draft_name())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def read(folder: Path) -> Record:
    """Read one record, of this or an older schema; the samples stay on disk until asked for.

    Raises:
        ValueError: the folder's record is cut short, not JSON, not as the schema says, or of a newer one.
    """
    content = read_content(folder)
    row = schema.check(content)
    return Record(row, content["manifest"], {}, prompt_lengths=content["prompt_lengths"], folder=folder)


def read_content(folder: Path) -> dict[str, Any]:
    """What a folder's record.json holds, in this version of the schema, its columns not yet checked.

    Raises:
        ValueError: it cannot be read, or is of a newer version.
    """
    try:
        text = (folder / RECORD_FILE).read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=lambda _: None)  # NaN, which older programs wrote and JSON lacks
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    content = schema.upgraded(content)
    if "model_hash" not in content["row"]:
        _complete(content["row"], content["manifest"], read_config(folder))
    return content


def _complete(row: dict[str, Any], made: dict[str, Any], config: dict[str, Any]) -> None:
    """Fill in columns that identify a measurement; older programs kept them in the manifest or the settings only."""
    packages, model, dataset = made.get("packages"), config.get("model"), config.get("dataset")
    packages, model, dataset = (part if isinstance(part, dict) else {} for part in (packages, model, dataset))
    row["torch_version"], row["transformers_version"] = packages.get("torch"), packages.get("transformers")
    row["torch_threads"] = made.get("torch_threads")
    row["dataset_max_tokens"] = dataset.get("max_tokens")
    if row.get("forward") and row.get("protocol") == "modern":
        row["max_tokens_per_forward"] = config.get("max_tokens_per_forward")
    detail, shape = str(row.get("model_detail") or ""), model.get("architecture")
    if row.get("weights_source") == "random" and isinstance(shape, dict):
        row["model_hash"] = of_shape(shape)
    else:
        row["model_hash"] = of_text(detail) if detail else None


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved settings of a record; empty where they cannot be read."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, ten times as fast where it is there
    try:
        return dict(yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), loader))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}


def read_all(results_dir: Path) -> Iterator[Record]:
    """Every readable record below a folder, in the order of their paths; an unreadable one is named and left out."""
    for path in sorted(results_dir.rglob(RECORD_FILE)):
        if any(part.startswith(DRAFT) for part in path.relative_to(results_dir).parts):
            continue
        try:
            yield read(path.parent)
        except ValueError as error:
            warn(f"{path.parent}: record left out ({error})")


def sample_row(repeat: int, place: int, batch: int, numbers: Mapping[str, int | None], phases: Mapping[str, float],
               host_seconds: float, phase_names: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """One line of samples.csv: a batch, in a repeat, with its total and its phases in seconds."""
    return {
        "repeat": repeat,
        "place_in_repeat": place,
        "batch": batch,
        **numbers,
        "seconds": sum(phases.values()),
        "host_seconds": host_seconds,
        **{f"{name}_s": phases.get(name) for name in phase_names},
    }


def _without_secrets(text: str) -> str:
    """Remove home folders, and so names of users, and tokens of a hub, because records are made to be shared."""
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(home + os.sep, "~" + os.sep).replace(home, "~")
    return TOKEN.sub("hf_(removed)", HOME.sub("~", text))


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
