"""What torch's compiler did: seconds and graphs, so that neither is taken for the work of a method."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Compiled:
    """What this process has compiled so far.

    Attributes:
        seconds: of compiling.
        graphs: compiled; each new kind of shape that a compiled function cannot serve makes one more.
    """

    seconds: float = 0.0
    graphs: int = 0

    @classmethod
    def now(cls) -> Compiled:
        """So far; nothing where the compiler was never loaded."""
        utils: Any = sys.modules.get("torch._dynamo.utils")
        if utils is None:
            return cls()
        seconds = utils.calculate_time_spent().get("entire_frame_compile", 0.0)
        return cls(float(seconds), int(utils.counters["stats"]["unique_graphs"]))

    def __sub__(self, other: Compiled) -> Compiled:
        return Compiled(self.seconds - other.seconds, self.graphs - other.graphs)

    def __add__(self, other: Compiled) -> Compiled:
        return Compiled(self.seconds + other.seconds, self.graphs + other.graphs)
