"""What people meet first: one clear line for bad input, exit codes, ``key=value`` arguments."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import terminal
from .authors import meant
from .places import command_line

EXIT_BAD_INPUT = 2
KINDS = {"Integer": "; give a whole number", "Float": "; give a number", "Boolean": "; give true or false"}
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")  # in the texts of RuntimeErrors
EXIT_INTERRUPTED = 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
SHOW_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"  # Hydra's own switch

T = TypeVar("T")


class UserError(Exception):
    """Bad input or an environment that cannot do what was asked.

    ``setting`` names the configuration key at fault, ``problem`` what was wrong, ``remedy`` what would be right.
    """

    def __init__(self, setting: str, problem: str, remedy: str = "") -> None:
        self.setting, self.problem, self.remedy = setting, problem, remedy
        super().__init__(" ".join(f"{setting}: {problem}{'; ' + remedy if remedy else ''}".split()))


class JobFailed(Exception):
    """A job on another machine ended with an exit code other than 0."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"a job ended with exit code {code}; its log says why")

    def __reduce__(self) -> tuple[type[JobFailed], tuple[int]]:
        return JobFailed, (self.code,)


@functools.cache
def warn(message: str) -> None:
    """Tell the user of something that does not stop the run: one line on standard error, once."""
    terminal.make_room()
    print(f"note: {message}", file=sys.stderr, flush=True)


BAD_INPUT = (UserError, HydraException, OmegaConfBaseException)


def _one_line(error: Exception) -> str:
    """Reduce Hydra's and OmegaConf's multi-line messages to the one line that a person needs."""
    text = f"{error.__cause__ or ''}\n{error}" if error.__cause__ else str(error)
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, name = found.groups()
        options = re.search(r"Available options in '\w+':\n((?:\t[^\n]+\n?)+)", text)
        choices = [choice for choice in options.group(1).split() if not choice.endswith("_schema")] if options else []
        names = ", ".join(choices) or f"the files of configs/{group}"
        return f"{group}: unknown '{name}'; {meant(group, name)}choose one of {names}"
    if found := re.search(r"Error parsing override '([^'=]+)'\s+missing EQUAL", text):
        return f"{found[1]}: arguments have the form setting=value; `{command_line('run')} --help` lists the settings"
    if found := re.search(r"Key '([^']+)' (?:is not in struct|not in '\w+')(?:\s*full_key: (\S+))?", text):
        name = found[2] or found[1]
        return f"{name}: there is no such setting; {meant(name)}`{command_line('run')} --help` lists them all"
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"{found[1]}: there is no such setting; {meant(found[1])}`{command_line('run')} --help` lists them all"
    if found := re.search(r"Ambiguous value for argument '([^'=]+)=([^']*)'", text):
        name, values = found.groups()
        if name.endswith("path"):
            return f"{name}: a comma in a name; quote it twice: \"{name}='{values}'\""
        several = (
            f"write {name}=[{values}] where the setting is a list, and add --multirun to measure one after the other"
        )
        return f"{name}: several values; {several}"
    if any(words in text for words in ("mismatched input", "LexerNoViableAlt", "Ambiguous value", "token recognition")):
        some = " ".join(text.split())[:90]
        return f"settings: a value could not be read ({some}); quote it twice: \"dataset.path='a,b=c.jsonl'\""
    if found := re.search(r"is not Optional\s+full_key: (\S+)", text):
        return f"{found[1]}: it cannot be null; leave it out for its default"
    if found := re.search(r"(Value .+)\s*full_key: (\S+)", text):
        wanted = next((said for kind, said in KINDS.items() if f"converted to {kind}" in found[1]), "")
        return f"{found[2]}: {found[1].strip()}{wanted}"
    return " ".join(text.split())


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the system's or a GPU's.

    Torch's allocator for CPUs and CUDA's libraries raise a RuntimeError, which only its text tells; torch's allocator
    for GPUs a class of torch's, which is known by its name here, for this file does not load torch.
    """
    named = any(each.__name__ == "OutOfMemoryError" for each in type(error).__mro__)
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    return named or told or isinstance(error, MemoryError)


def report(error: Exception) -> int:
    """Print the one line that says what was wrong with the input, and return the exit code for it."""
    if SHOW_TRACEBACK:
        raise error
    terminal.make_room()
    print(f"error: {error if isinstance(error, UserError) else _one_line(error)}", file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT


def print_whatever_there_is() -> None:
    """Replace characters that the terminal cannot show, so that printing a result never fails."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@dataclass
class _Told:
    """What the message after Ctrl-C says."""

    recorded: bool = False


_TOLD = _Told()


def note_recorded() -> None:
    """Remember that something was recorded."""
    _TOLD.recorded = True


def guarded(main: Callable[[], Any]) -> int:
    """Run ``main`` and return the exit code: its own (or 0), 2 with one line on bad input, 130 on Ctrl-C."""
    print_whatever_there_is()
    _TOLD.recorded = False
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through instead of printing its own report
    try:
        _check_current_folder()
        return int(main() or 0)
    except BAD_INPUT as error:
        return report(error)
    except ValueError as error:
        if "Config group override" not in str(error):  # what Hydra raises for scale=null
            raise
        return report(
            UserError("settings", "a group cannot be set to null", "leave it out, or take it out with ~group")
        )
    except yaml.YAMLError as error:
        return report(_not_yaml(error))
    except BrokenPipeError:  # whoever read the output has left: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes it once more
        return 1
    except OSError as error:  # where records are written, a full disk has its own words
        if error.errno not in NO_ROOM:
            raise
        return report(UserError(str(error.filename or "disk"), str(error.strerror), "make room, or set TMPDIR"))
    except KeyboardInterrupt:
        kept = "what was recorded is kept, and the same command goes on from there"
        print(f"\nstopped; {kept if _TOLD.recorded else 'nothing was recorded'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if not SHOW_TRACEBACK:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _check_current_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("current folder", "it was removed", "change to one that exists") from None


def _not_yaml(error: yaml.YAMLError) -> UserError:
    """What to say of a configuration file, of ``--config-dir`` say, that cannot be read."""
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark else "a configuration file"
    return UserError(where, f"this is not YAML: {getattr(error, 'problem', None) or error}", "mend it")


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what ``guarded`` turns into one line and exit code 2."""
        option = re.match(r"argument (\S+?)(?:/\S+)?: (.*)", message)
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        name = option[1] if option else unknown[1] if unknown else "arguments"
        problem = option[2] if option else "there is no such option" if unknown else message
        raise UserError(name, problem, f"`{self.prog} --help` lists them all")


def parse_arguments(schema: type[T], program: str, argv: list[str]) -> T:
    """Read ``key=value`` arguments into the dataclass ``schema``; ``--help`` prints its fields and leaves.

    Raises:
        OmegaConfBaseException: unknown key or wrong type (``guarded`` turns it into one line).
    """
    if {"-h", "--help"} & set(argv):
        lines = [f"usage: {command_line(program)} [setting=value …]", "", (schema.__doc__ or "").strip(), ""]
        for field in dataclasses.fields(schema):  # type: ignore[arg-type]
            lines.append(f"  {field.name}={field.default!s:<12} {field.metadata.get('help', '')}")
        print("\n".join(lines))
        raise SystemExit(0)
    known = {field.name: str(field.type) for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
    for argument in argv:
        name, given, _ = argument.partition("=")
        if not given:
            raise UserError(
                argument,
                "arguments have the form setting=value",
                f"`{command_line(program)} --help` lists the settings",
            )
        first, dot, _ = name.partition(".")
        if first not in known or (dot and "dict" not in known[first]):
            raise UserError(name, "there is no such setting", f"`{command_line(program)} --help` lists them all")
    merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_cli(argv))
    return OmegaConf.to_object(merged)  # type: ignore[return-value]
