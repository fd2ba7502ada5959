"""Policies, one file each: ``make(rules)`` gives the function that chooses the next batch (docs/under-load.md)."""
