"""What compilers did: seconds and torch's graphs, so that neither is taken for the work of a method."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from ..prefilling import cpp


@dataclass(frozen=True)
class Compiled:
    """What this process has compiled so far.

    Attributes:
        seconds: of compiling, kernels in C++ among it.
        graphs: that torch compiled; each new kind of shape that a compiled function cannot serve makes one more.
    """

    seconds: float = 0.0
    graphs: int = 0

    @classmethod
    def now(cls) -> Compiled:
        """So far; of torch's compiler nothing where it was never loaded."""
        utils: Any = sys.modules.get("torch._dynamo.utils")
        if utils is None:
            return cls(cpp.seconds)
        seconds = utils.calculate_time_spent().get("entire_frame_compile", 0.0)
        return cls(cpp.seconds + float(seconds), int(utils.counters["stats"]["unique_graphs"]))

    def __sub__(self, other: Compiled) -> Compiled:
        return Compiled(self.seconds - other.seconds, self.graphs - other.graphs)

    def __add__(self, other: Compiled) -> Compiled:
        return Compiled(self.seconds + other.seconds, self.graphs + other.graphs)
