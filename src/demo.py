"""python -m src.demo: eight real questions, answered from the packed cache and from a padded batch, side by side."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass, field

from .cli import UserError, guarded, parse_arguments
from .compose import compose
from .workload.sources import shipped_lines

# Of the shipped MMLU questions: seven short ones and a long one, for which padding makes all others as long.
QUESTIONS = (648, 437, 874, 689, 830, 552, 635, 105)


@dataclass
class DemoSettings:
    """Eight questions through a model's chat template: prepacking beside an ordinary padded batch."""

    model: str = field(default="smollm2-135m", metadata={"help": "a name of configs/model/, or a GGUF file's path"})
    new_tokens: int = field(default=40, metadata={"help": "tokens of each answer, at most"})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: torch's"})


def main() -> int:
    """Answer the questions twice and print both; 1 where an answer is not equal."""
    settings = parse_arguments(DemoSettings, "demo", sys.argv[1:])
    for name, number in (("new_tokens", settings.new_tokens), ("threads", settings.threads)):
        if number is not None and number < 1:
            raise UserError(name, f"{number}", "give a whole number of 1 or more")
    path = settings.model.endswith(".gguf")
    config = compose([f"model.path='{settings.model}'" if path else f"model={settings.model}"])
    lines = shipped_lines("mmlu")
    questions = [" ".join(json.loads(lines[number])["question"].split()) for number in QUESTIONS]

    from .prefilling.demonstration import answer  # torch takes seconds to import, and what is wrong above needs none

    return answer(config.model, questions, settings.new_tokens, settings.threads)


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
