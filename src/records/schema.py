"""The schema of a record: its version, upgrades of older ones, what is checked on load, and all that as JSON Schema."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .row import COLUMNS, VALUES, RecordColumn, Row, odd

# Raise it, and add a function to UPGRADES, when a column or key is removed, changes its meaning or type, or becomes
# mandatory. A new column that may be null needs neither.
SCHEMA_VERSION = 3
DIALECT = "https://json-schema.org/draft/2020-12/schema"

ROW = {column.name: column.type for column in COLUMNS.values()}
REQUIRED = tuple(name for name, kind in ROW.items() if not kind.endswith(" | None"))

# The keys of the manifest: type and meaning. All of them may be absent, depending on the machine.
MANIFEST = {
    "python": ("str", "version"),
    "system": ("str", "operating system and its release"),
    "packages": ("dict", "version of each package that matters; null: not installed"),
    "git_commit": ("str | None", "of the source tree; null: none is known"),
    "git_commit_given": ("bool", "the commit was given by the person who carried the tree there"),
    "git_dirty": ("bool | None", "whether sources or settings differed from that commit"),
    "code_hash": ("str", "over every source file that takes part in a measurement"),
    "cpu": ("str", "model of the processor"),
    "cpu_cores": ("int", "cores that the process could use"),
    "torch_threads": ("int", "threads of torch's CPU operations"),
    "float32_matmul_precision": ("str", "torch's setting"),
    "large_pages": ("bool", "whether torch asked for large pages (THP_MEM_ALLOC_ENABLE)"),
    "available_memory_mb": ("float | None", "memory that a process could still take at the start, MB of 2**20 bytes"),
    "cpu_governor": ("str | None", "what sets the CPU's clock"),
    "container_memory_max": ("str | None", "memory limit of the control group, as the kernel writes it"),
    "container_cpu_max": ("str | None", "CPU limit of the control group, as the kernel writes it"),
    "cuda": ("str | None", "version that torch was built with; a GPU's records only, as are the next"),
    "gpu": ("str", "its name"),
    "gpu_uuid": ("str", "by which the driver tells GPUs of one name apart"),
    "gpu_memory_mb": ("float", "its memory"),
    "gpu_compute_capability": ("str", "such as 9.0"),
    "nvidia_driver": ("str | None", "version"),
    "gpu_power_limit_w": ("float | None", "limit that was set"),
    "nvml_unavailable": ("str", "why the driver's counters could not be read"),
    "sampler_overhead_pct": ("float | None", "by how much reading the counters lengthens work; null: not measured"),
    "sampler_overhead_low_pct": ("float | None", "95 % interval of it, lower end"),
    "sampler_overhead_high_pct": ("float | None", "the same, upper end"),
    "sampler_overhead_pairs": ("int", "pairs of spans behind it"),
    "sampler_overhead_readings": ("int", "readings in them"),
    "sampler_reading_ms": ("float | None", "median time of a reading"),
    "sampler_overhead_missing": ("str", "why it was not measured"),
}
TOP = {
    "schema_version": ("int", "of the file; the same program reads older ones, and refuses newer ones"),
    "row": ("dict", "the measurement in one flat row; the columns of summary.csv"),
    "prompt_lengths": ("list", "tokens of each prompt, ascending; empty where prompts were never loaded"),
    "manifest": ("dict", "the machine and the software; keys that are not named here may stand beside these"),
}
WORDS = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "dict": "an object",
    "list": "a list",
}  # fmt: skip
JSON_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "dict": "object",
    "list": "array",
}


def _to_own_tokens(content: dict[str, Any]) -> None:
    """1 to 2: ``must_hold_mb`` counted a padded KV cache before ``resident_rest_mb`` was added."""
    row = content["row"]
    if "resident_rest_mb" not in row:
        row.pop("must_hold_mb", None)
        row.pop("memory_overhead_pct", None)


def _to_faults(content: dict[str, Any]) -> None:
    """2 to 3: ``quirks`` is called ``faults``."""
    row = content["row"]
    if "quirks" in row:
        row["faults"] = row.pop("quirks")


# From each older version to the next; each changes the content in place.
UPGRADES: dict[int, Callable[[dict[str, Any]], None]] = {1: _to_own_tokens, 2: _to_faults}


def upgraded(content: Any) -> dict[str, Any]:
    """What a record.json holds, of whatever version, as one of this version.

    Raises:
        ValueError: it is no record, or one of a newer version.
    """
    if not isinstance(content, dict):
        raise ValueError(f"record.json is {_shown(content)}, not {WORDS['dict']}")
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise ValueError(f"schema_version is {_shown(version)}, not a whole number from 1 on")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version is {_shown(version)}, this program reads up to {SCHEMA_VERSION}: update the program"
        )
    _check(content, {name: kind for name, (kind, _) in TOP.items()}, "record.json", tuple(TOP))
    for older in range(version, SCHEMA_VERSION):
        UPGRADES[older](content)
    return content | {"schema_version": SCHEMA_VERSION}


def check(content: Mapping[str, Any]) -> Row:
    """The row of what ``upgraded`` returned, its columns' types checked, as are the manifest's and the lengths'.

    Raises:
        ValueError: names the column, what it was and what it should be.
    """
    _check(content["row"], ROW, "row", REQUIRED)
    _check(content["manifest"], {name: kind for name, (kind, _) in MANIFEST.items()}, "manifest")
    for length in content["prompt_lengths"]:
        if not _is(length, "int") or length < 1:
            raise ValueError(f"prompt_lengths holds {_shown(length)}, not whole numbers from 1 on")
    row = Row(**{name: _as(ROW[name], value) for name, value in content["row"].items() if name in ROW})
    if problem := odd(row):
        raise ValueError(f"row.{problem}")
    if not row.run_id:
        raise ValueError("row.run_id is empty")
    return row


def _check(values: Mapping[str, Any], kinds: Mapping[str, str], where: str, required: Collection[str] = ()) -> None:
    for name, kind in kinds.items():
        if name not in values:
            if name in required:
                raise ValueError(f"{where} has no {name}")
            continue
        plain = kind.removesuffix(" | None")
        value = values[name]
        if not (_is(value, plain) or (value is None and plain != kind)):
            wanted = WORDS[plain] + ("" if plain == kind else " or null")
            raise ValueError(f"{where}.{name} is {_shown(value)}, not {wanted}")


def _is(value: Any, kind: str) -> bool:
    """Whether a value from a JSON file is of a type, as JSON Schema sees it: 3.0 is a whole number, true is none."""
    if kind == "int":
        return type(value) is int or (type(value) is float and value.is_integer())
    if kind == "float":
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return isinstance(value, {"str": str, "bool": bool, "dict": dict, "list": list}[kind])


def _as(kind: str, value: Any) -> Any:
    return int(value) if kind.startswith("int") and type(value) is float else value


def _shown(value: Any) -> str:
    """A value as an error shows it: short, whatever a file holds."""
    if isinstance(value, (dict, list)):
        return WORDS[type(value).__name__]
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def json_schema() -> dict[str, Any]:
    """The schema of record.json in this version, JSON Schema draft 2020-12."""
    row = _object(ROW, {name: _described(column) for name, column in COLUMNS.items()})
    row["required"] = list(REQUIRED)
    row["properties"]["run_id"]["minLength"] = 1
    for name, values in VALUES.items():
        row["properties"][name]["enum"] = list(values)
    row["if"] = {"properties": {"arrivals": {"type": "string", "minLength": 1}}, "required": ["arrivals"]}
    row["then"] = {"properties": {"rate": {"type": "number"}}, "required": ["rate"]}
    manifest = _object(*({name: pair[place] for name, pair in MANIFEST.items()} for place in (0, 1)))
    manifest["properties"]["packages"]["additionalProperties"] = {"type": ["string", "null"]}
    schema = _object(*({name: pair[place] for name, pair in TOP.items()} for place in (0, 1)))
    for name, content in (("row", row), ("manifest", manifest)):
        schema["properties"][name] |= {key: value for key, value in content.items() if key != "type"}
    schema["properties"]["schema_version"] = {
        "const": SCHEMA_VERSION,
        "description": TOP["schema_version"][1],
    }
    schema["properties"]["prompt_lengths"]["items"] = {"type": "integer", "minimum": 1}
    return {
        "$schema": DIALECT,
        "title": f"A record of Prepack Bench, version {SCHEMA_VERSION}",
        "description": "record.json, one per method and measurement; docs/records.md explains it.",
        **schema,
        "required": list(TOP),
    }


def _described(column: RecordColumn) -> str:
    return f"{column.doc} ({column.unit})" if column.unit and column.unit not in column.doc else column.doc


def _object(kinds: Mapping[str, str], docs: Mapping[str, str]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, kind in kinds.items():
        plain = kind.removesuffix(" | None")
        json_type = JSON_TYPES[plain]
        properties[name] = {"type": json_type if plain == kind else [json_type, "null"], "description": docs[name]}
    return {"type": "object", "properties": properties}
