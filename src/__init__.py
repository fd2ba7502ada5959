"""Prepack Bench: how to prefill a batch of prompts of uneven lengths, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .prefilling.library import PrefillOutput, generate, prefill

__version__ = "0.1.0"
__all__ = ["PrefillOutput", "generate", "prefill"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from .prefilling import library  # torch and transformers take seconds, and no command's --help needs them

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
