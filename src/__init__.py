"""Prepack Bench: how to prefill a batch of prompts of uneven lengths, measured."""

__version__ = "0.1.0"
