"""The names that the authors' scripts give to settings and values, so that who types them is told ours.

Their scripts are profiling_time_and_memory.py and profiling_dataset_level_prepacking.py; docs/authors-code.md sets
their commands beside ours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

SETTINGS = {"model_name": "model", "num_runs": "repeats", "binpack_algo": "packing"}
_METHODS = {"prepack": "prepacking", "prepack_dataset": "dataset-prepacking"}
VALUES = {
    "metric": {"TTFT": "ttft"},
    "loadbit": {"16": "none"},
    "packing": {"greedy": "binpacking", "ip": "optimal"},
    "model": {"llama1b": "llama2-1.3b", "llama2": "llama2-7b", "llama13b": "llama2-13b", "mistral": "mistral-7b"},
    "method": _METHODS,
    "methods": _METHODS,
}
# What their commands do without being asked: the methods are those of both scripts.
ALWAYS = (
    "methods=[prepacking,dataset-prepacking,full-batching,length-ordered]", "protocol=paper", "numerics=authors",
    "sample=authors", "packing=binpacking", "loadbit=4", "repeats=5",
)  # fmt: skip


def meant(setting: str, value: str = "") -> str:
    """``did you mean …? `` for a name or a value of theirs; empty for any other."""
    found = VALUES.get(setting, {}).get(value) if value else SETTINGS.get(setting)
    return f"did you mean {found}{'' if value else '='}? " if found else ""


def in_our_words(typed: Sequence[str], known: Collection[str]) -> tuple[str, list[str]] | None:
    """The settings that someone meant who wrote them with dashes, as the authors' scripts take them.

    Args:
        typed: the arguments of a command.
        known: names of our settings.

    Returns:
        The first argument that has dashes, and all arguments in our form. Where a name or value of the authors' is
        among them, what their scripts do by default comes first. None if no argument is a setting with dashes.
    """
    first, settings, theirs = "", list[str](), False
    arguments = iter(typed)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        plain = name.lstrip("-").replace("-", "_")
        if not name.startswith("--") or plain not in {*known, *SETTINGS}:
            settings.append(argument)
            continue
        first, value = first or name, value if equals else next(arguments, "")
        setting = SETTINGS.get(plain, plain)
        names = [each.strip(" \"'") for each in value.strip("[]").split(",")]
        ours = [VALUES.get(setting, {}).get(each, each) for each in names]
        theirs |= plain in SETTINGS or ours != names
        joined = ",".join(ours)
        settings.append(f"{setting}=[{joined}]" if setting == "methods" else f"{setting}={joined}")
    if not first:
        return None
    given = {each.partition("=")[0] for each in settings}
    return first, [*(each for each in ALWAYS if theirs and each.partition("=")[0] not in given), *settings]
