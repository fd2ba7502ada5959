"""What GPUs there are, without opening one: a process that opens a GPU keeps memory on it for as long as it lives.

The driver lists such a process beside the one that measures, whose rows are then INVALID. So a parent, which plans and
waits, asks a child that is gone before anything is measured. The process that measures
calls ``open_here`` first and answers for itself from then on.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import places
from ..cli import UserError
from .rates import usual_rate

USUAL = ("cuda:0", "bfloat16")  # the usual device and type, so that one child answers everything
ANSWER_S = 180  # a first import of torch from a slow disk takes a minute


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch numbers it: its name, and its memory in MB of 2**20 bytes."""

    name: str
    memory_mb: float


def open_here(device: torch.device) -> None:
    """Open the GPU in this process, which is the one that measures; nothing on a CPU.

    Raises:
        UserError: it cannot be opened.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.init()
        torch.cuda.set_device(device)  # graphs are captured, and events recorded, on the current one
    except RuntimeError as error:
        raise _unusable(error) from None


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that torch sees, in its order.

    Raises:
        UserError: they cannot be opened.
    """
    if torch.cuda.is_initialized():
        found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        return tuple(Gpu(each.name, each.total_memory / 2**20) for each in found)
    return tuple(Gpu(**each) for each in _asked(*USUAL)["gpus"])


def rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of matrix products, as ``usual_rate`` measures them, in a child where there is a GPU.

    Raises:
        UserError: the GPU cannot be opened.
    """
    if device.type != "cuda" or torch.cuda.is_initialized():
        return usual_rate(device, dtype)
    return float(_asked(str(device), str(dtype).removeprefix("torch."))["rate"])


@functools.cache
def _asked(device: str, dtype: str) -> dict[str, Any]:
    # -P: do not import a folder src that happens to lie in the current folder.
    command = [sys.executable, "-P", "-m", f"{places.NAME}.measure.gpus", device, dtype]
    try:
        done = subprocess.run(command, env=places.environment(), capture_output=True, text=True, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        raise _unusable(f"no answer within {ANSWER_S} s") from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        return dict(answer)
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _unusable(lines[-1]) from None


def _unusable(reason: object) -> UserError:
    return UserError("device", f"the GPU cannot be opened ({reason})", "see what nvidia-smi says, or use device=cpu")


def main() -> None:
    """What the child prints: the GPUs, and the rate of the device and type that are its arguments."""
    torch.cuda.init()
    answer: dict[str, Any] = {"gpus": [asdict(each) for each in gpus()]}
    answer["rate"] = usual_rate(torch.device(sys.argv[1]), getattr(torch, sys.argv[2]))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
