"""A batch of prompts in, its KV cache and first tokens out.

For programs: ``from src.prefill import prefill, generate`` (``library.py``), loaded when first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.prefill.library import PrefillOutput, generate, prefill

__all__ = ["PrefillOutput", "generate", "prefill"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("src.prefill.library"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
