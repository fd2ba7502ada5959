"""Completion of ``python -m src.run`` and ``prepack-run`` in bash: settings, and the choices that each has.

Hydra's own completes scripts and installed programs, not ``python -m``, and offers a setting's present value alone.
Other shells get Hydra's, which completes ``prepack-run``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Sequence

from src.config import CHOICES, Config

INSTALL = r"""_prepack_run() {
    local typed='^ *([^ ]*python[0-9.]* +-m +src\.run|[^ ]*prepack-run) (.*)$'
    COMPREPLY=()
    [[ ${COMP_LINE:0:COMP_POINT} =~ $typed ]] || return 0
    local offered=$(COMP_LINE="prepack-run ${BASH_REMATCH[2]}" ${BASH_REMATCH[1]} -sc query=bash 2>/dev/null)
    COMPREPLY=($(compgen -W "$offered" -- "${COMP_WORDS[COMP_CWORD]}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o bashdefault -o default -F _prepack_run python python3 prepack-run"""
LISTS = {f"{field.name}." for field in dataclasses.fields(Config) if str(field.type).startswith("list")}
UNINSTALL = "complete -r python python3 prepack-run; unset -f _prepack_run"


def complete(arguments: Sequence[str], hydra: Callable[[], None]) -> bool:
    """Print what bash asks for after ``-sc``; False where it is not asked, or by another shell.

    Args:
        hydra: Hydra's own answer to these arguments, printed.
    """
    asked = [argument for argument in arguments if argument not in {"-sc", "--shell-completion"}]
    if len(asked) == len(arguments) or asked not in (["install=bash"], ["uninstall=bash"], ["query=bash"]):
        return False
    if asked != ["query=bash"]:
        print(INSTALL if asked == ["install=bash"] else UNINSTALL)
        return True
    words = os.environ.get("COMP_LINE", "").split(" ")
    setting = words[-1].partition("=")[0]
    if setting in CHOICES and "=" in words[-1]:
        print(" ".join(f"{setting}={choice}" for choice in CHOICES[setting]))
        return True
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        hydra()
    offered = [offer for offer in printed.getvalue().split() if not offer.endswith("_schema")]
    print(" ".join(f"{offer[:-1]}=" if offer in LISTS else offer for offer in offered))
    return True
