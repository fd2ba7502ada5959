"""What makes a model the same model: its configuration and its weights, never what its folder is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WHOLE = 64 * 2**20  # bytes; a larger weight file is sampled, because reading gigabytes would take longer than a run
SAMPLE, SAMPLES = 2**16, 128
DIGITS = 12


def of_text(text: str) -> str:
    """Hex digits over what names a model for good, such as a hub id with its commit."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def of_shape(architecture: Mapping[str, Any]) -> str:
    """Hex digits over the fields of a configuration, in whatever order they stand."""
    return of_text(json.dumps(architecture, sort_keys=True, default=str))


def of_folder(folder: Path, weights: bool = True) -> str:
    """Hex digits over a folder's config.json and, where asked for, its safetensors files, which its index may list.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    return _of_files(digest, sorted(folder.glob("*.safetensors*")) if weights else [])


def of_file(file: Path) -> str:
    """Hex digits over one file that holds a model whole.

    Raises:
        OSError: it cannot be read.
    """
    return _of_files(hashlib.sha256(), [file])


def _of_files(digest: Any, files: Sequence[Path]) -> str:
    """Hex digits over what was digested already and files of weights.

    Of a file larger than ``WHOLE`` its size, beginning, end and samples at equal distances count. The beginning has the
    names, types and places of all tensors; another training of the same shape differs in nearly every sample.
    """
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\0".encode())
        with file.open("rb") as opened:
            if size <= WHOLE:
                digest.update(opened.read())
                continue
            for place in range(SAMPLES + 1):
                opened.seek((size - SAMPLE) * place // SAMPLES)
                digest.update(opened.read(SAMPLE))
    return str(digest.hexdigest()[:DIGITS])
