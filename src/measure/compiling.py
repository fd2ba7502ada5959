"""What was compiled or captured: seconds and graphs, so that neither is taken for the work of a method."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from ..prefilling.graphs import capture_count


@dataclass(frozen=True)
class Compiled:
    """What this process has compiled and captured so far.

    Attributes:
        seconds: of compiling, and of capturing CUDA graphs.
        graphs: compiled, and CUDA graphs captured; each new kind of shape that they cannot serve makes one more.
    """

    seconds: float = 0.0
    graphs: int = 0

    @classmethod
    def now(cls) -> Compiled:
        """So far; of the compiler nothing where it was never loaded."""
        captured = cls(capture_count.seconds, capture_count.graphs)
        utils: Any = sys.modules.get("torch._dynamo.utils")
        if utils is None:
            return captured
        seconds = utils.calculate_time_spent().get("entire_frame_compile", 0.0)
        return captured + cls(float(seconds), int(utils.counters["stats"]["unique_graphs"]))

    def __sub__(self, other: Compiled) -> Compiled:
        return Compiled(self.seconds - other.seconds, self.graphs - other.graphs)

    def __add__(self, other: Compiled) -> Compiled:
        return Compiled(self.seconds + other.seconds, self.graphs + other.graphs)
