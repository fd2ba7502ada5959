"""Recognizes what records hold: texts, conversations, token ids, or lengths alone; with their times and outputs."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..cli import UserError
from .parse import OnBad, Parsed
from .tokenizer import Message

TEXT, CHAT, TOKENS, LENGTHS = "texts", "conversations", "token ids", "lengths alone"
CHATS = ("conversations", "messages")
TEXTS = ("prompt", "text", "question", "instruction", "content", "text_input", "input")
IDS = ("input_ids", "prompt_token_ids", "token_ids")
# Names of a prompt's length in tokens: of profiles, of traces of Azure, Mooncake (and AIPerf), BurstGPT (and vLLM).
COUNTS = (
    "token_length",
    "num_tokens",
    "contexttokens",
    "input_length",
    "request tokens",
    "prompt_tokens",
    "input_tokens",
    "prompt_len",
)
OUTPUTS = ("generatedtokens", "output_length", "response tokens", "output_tokens", "output_len")
TIMES = ("timestamp", "arrival_s", "arrival_time")
SYSTEMS = ("system", "system_prompt", "instructions")
REPEATED = "count"  # beside token_length: how many prompts are of that length
KNOWN = frozenset((*CHATS, *TEXTS, *IDS, *COUNTS, *OUTPUTS, *TIMES, REPEATED, *SYSTEMS, "body", "chat_id"))
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
         "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "developer": "system",
         "tool": "tool", "function": "tool", "observation": "tool", "function_call": "assistant"}  # fmt: skip
LONGEST_PROMPT = 10_000_000  # tokens
MOST_OF_A_FILE = 20_000_000  # prompts that lengths may count
TURNS = {"all": "each user turn with what came before it", "first": "the first user turn of each",
         "last": "the last user turn of each with what came before it"}  # fmt: skip

Content = str | list[Message] | list[int] | int


@dataclass(frozen=True)
class Item:
    """A prompt as a file has it.

    Attributes:
        content: text, conversation, token ids or number of tokens, by the form; None where a record has none.
        arrival_s: seconds since some moment of the file.
        output_tokens: how many tokens answered it.
    """

    content: Content | None
    arrival_s: float | None = None
    output_tokens: int | None = None


@dataclass(frozen=True)
class PromptsOfFile:
    """The prompts of one file: their form, what it is in words, and of how many conversations they are."""

    form: str
    words: str
    items: list[Item]
    conversations: int = 0


def items_of(parsed: Parsed, where: str, field: str | None, turns: str, on_bad: OnBad) -> PromptsOfFile:
    """The prompts in a file's records.

    Args:
        where: the file's name, for errors.
        field: the one that holds them; None to find it by its name.
        turns: of a conversation ``all`` user turns, each a prompt; the ``first``; or the ``last``.
        on_bad: told of each record that does not hold what the others do.

    Raises:
        UserError: no field of prompts, or one of something else.
    """
    if parsed.values and all(map(_is_message, parsed.values)):  # the file is one conversation
        parsed = Parsed([parsed.values], parsed.places[:1], [])
    records = [_body(value) for value in parsed.values]
    names = {name.lower(): name for name in (*parsed.names, *_names_of_bodies(parsed.values, records))}
    form, name = _form(records, names, where, field)
    read = READERS[form]
    items: list[Item] = []
    conversations = 0
    beside = _Beside(names)
    for record, place in zip(records, parsed.places, strict=True):
        value = record.get(name) if isinstance(record, dict) else record
        if name and not isinstance(record, dict | None):
            on_bad(place, "it has no fields, as the others have")
            continue
        if isinstance(record, dict) and name and name not in record and not _other_field(record, name):
            on_bad(place, f"it has no field '{name}', as the others have")
            continue
        if name and value is None and (other := _other_field(record, name)):
            on_bad(place, f"it holds '{other}' in place of '{name}'")
            continue
        if name.lower() == "instruction" and isinstance(value, str):
            more = record.get(names.get("input", ""))
            value = f"{value}\n\n{more}" if isinstance(more, str) and more.strip() else value
        try:
            contents = [None] if value is None else read(_with_system(record, value, form), turns)
            arrival, outputs = beside.of(record, form)
            times = _count(record.get(names[REPEATED])) if form == LENGTHS and REPEATED in names else 1
            if len(items) + times > MOST_OF_A_FILE:
                raise UserError(
                    "dataset.path", f"{where} counts more than {MOST_OF_A_FILE:,} prompts", "give fewer of each length"
                )
        except ValueError as error:
            on_bad(place, str(error))
            continue
        conversations += form == CHAT and value is not None
        items += [Item(content, arrival, outputs) for content in contents] * times
    return PromptsOfFile(form, _words(form, name, names), items, conversations)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def _other_field(record: Any, name: str) -> str:
    """Another field in which a record has a prompt; empty where it has none."""
    fields = record if isinstance(record, dict) else {}
    return next((each for each, value in fields.items()
                 if each != name and value and each.lower() in (*CHATS, *IDS, *TEXTS)
                 and each.lower() != "input"), "")  # fmt: skip


def _with_system(record: Any, value: Any, form: str) -> Any:
    """A conversation with the system's words, or a text with instructions, that stand in a field of their own."""
    fields = record if isinstance(record, dict) else {}
    said = next((fields[each] for each in SYSTEMS if isinstance(fields.get(each), str) and fields[each].strip()), "")
    if said and form == CHAT and isinstance(value, list):
        return [{"role": "system", "content": said}, *value]
    of_a_request = "instructions" in fields and value is fields.get("input")
    return f"{said}\n\n{value}" if said and of_a_request and isinstance(value, str) else value


def _body(value: Any) -> Any:
    """A line of a file for OpenAI's batches has its request in a field of its own."""
    return value["body"] if isinstance(value, dict) and isinstance(value.get("body"), dict) else value


def _names_of_bodies(values: Sequence[Any], records: Sequence[Any]) -> list[str]:
    inner = (record for value, record in zip(values, records, strict=True) if record is not value)
    return list(dict.fromkeys(name for record in inner for name in record))


def _form(records: Sequence[Any], names: dict[str, str], where: str, field: str | None) -> tuple[str, str]:
    """Which form, and in which field; of records without names the field is an empty string."""
    listed = ", ".join(names.values()) or "none"

    def first(name: str, *types: type) -> Any:
        values = (record.get(name) for record in records if isinstance(record, dict))
        return next((value for value in values if value not in (None, []) and isinstance(value, types or object)), None)

    def numbers(name: str) -> bool:
        given = [value for record in records if isinstance(record, dict) and (value := record.get(name)) is not None]
        return _are_numbers(given)

    if field and names:
        if field not in names.values():
            raise UserError("dataset.text_field", f"{where} has no field '{field}'", f"choose one of {listed}")
        return _no_prompts("", field, where) if numbers(field) else _kind(first(field), field, where), field
    if not names:
        return _kind(next((record for record in records if record not in (None, [])), ""), "", where), ""
    for wanted in (CHATS, IDS, TEXTS):
        for name in wanted:
            types = (str, list) if wanted is TEXTS else (list,)
            if name in names and (value := first(names[name], *types)) is not None and not numbers(names[name]):
                return _kind(value, names[name], where), names[name]
    for name in COUNTS:
        if name in names:
            return LENGTHS, names[name]
    if empty := [names[name] for name in TEXTS if name in names and first(names[name]) is None]:
        return TEXT, empty[0]  # all of them are empty, which is said later
    raise UserError(
        "dataset.text_field", f"{where} has no field that is known to hold prompts", f"name one of {listed}"
    )


def _kind(value: Any, name: str, where: str) -> str:
    if value is None or isinstance(value, str):
        return TEXT
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return CHAT
    if isinstance(value, list) and all(type(each) is int for each in value):
        return TOKENS
    return _no_prompts(value, name, where)


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether texts are numbers all of them, as those of a table's column of numbers are."""
    try:
        return bool(values) and all(isinstance(value, str) and float(value) is not None for value in values)
    except ValueError:
        return False


def _no_prompts(value: Any, name: str, where: str) -> str:
    what = "numbers" if isinstance(value, (int, float, str)) else f"values of type {type(value).__name__}"
    held = f"'{name}' of {where} holds {what}" if name else f"{where} holds {what}"
    raise UserError("dataset.text_field", held, "choose a field of texts, messages or token ids")


def _text(value: Any, _: str) -> list[Content | None]:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} in place of a text")
    return [_whole_characters(value) if value.strip() else None]


def _whole_characters(text: str) -> str:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("a text with half of a character (a lone surrogate)")
    return text


def _tokens(value: Any, _: str) -> list[Content | None]:
    if not (isinstance(value, list) and all(type(each) is int and 0 <= each < 2**31 for each in value)):
        raise ValueError("token ids are whole numbers from 0, below 2**31")
    return [value or None]


def _length(value: Any, _: str) -> list[Content | None]:
    if (length := _count(value)) > LONGEST_PROMPT:
        raise ValueError(f"a prompt of {length:,} tokens; {LONGEST_PROMPT:,} are the most")
    return [length]


def _count(value: Any) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"'{value}' is no whole number") from None
    if not (number >= 1 and number.is_integer()):
        raise ValueError(f"'{value}' is no whole number of at least 1")
    return int(number)


def _chat(value: Any, turns: str) -> list[Content | None]:
    """The prompts of a conversation: what was said up to and with a user's turn."""
    if not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
        raise ValueError("messages are a list of objects with a role and content")
    messages = [_message(each) for each in value]
    asked = [number for number, each in enumerate(messages, 1) if each["role"] == "user" and each["content"].strip()]
    if not asked:
        return [None]
    chosen = {"first": asked[:1], "last": asked[-1:]}.get(turns, asked)
    return [messages[:number] for number in chosen]


def _message(message: dict[str, Any]) -> Message:
    role = str(message.get("role", message.get("from", ""))).lower()
    content = message.get("content", message.get("value"))
    if role not in ROLES:
        raise ValueError(f"a message of '{role}'; roles are {', '.join(ROLES)}" if role else "a message without a role")
    if isinstance(content, list):  # parts, of which only texts are for a language model
        parts = [{"text": part} if isinstance(part, str) else part for part in content]
        if other := [part for part in parts if not (isinstance(part, dict) and isinstance(part.get("text"), str))]:
            kind = other[0].get("type") if isinstance(other[0], dict) else type(other[0]).__name__
            raise ValueError(f"a message with a part of type {kind}, which is no text")
        content = "\n".join(part["text"] for part in parts)
    if content is None and ROLES[role] == "user":
        raise ValueError("a message of the user without content")
    if not isinstance(content, str | None):
        raise ValueError(f"a message whose content is {type(content).__name__}")
    return {"role": ROLES[role], "content": _whole_characters(content or "")}


READERS: dict[str, Callable[[Any, str], list[Content | None]]] = {
    TEXT: _text, CHAT: _chat, TOKENS: _tokens, LENGTHS: _length,
}  # fmt: skip


class _Beside:
    """When a record arrived, and how many tokens answered it, where fields say so."""

    def __init__(self, names: dict[str, str]) -> None:
        self.time = next((names[name] for name in TIMES if name in names), None)
        self.outputs = next((names[name] for name in OUTPUTS if name in names), None)
        # Mooncake and AIPerf count milliseconds; traces of the same shape with an id of the conversation count seconds.
        self.unit = 1e-3 if {"input_length", "text_input"} & set(names) and "chat_id" not in names else 1.0
        self.origin: datetime.datetime | None = None
        self.kind: str | None = None

    def of(self, record: Any, form: str) -> tuple[float | None, int | None]:
        """Both of a record, None where they are not known; of texts, which need neither, also where they are none."""
        try:
            return self._of(record)
        except ValueError:
            if form == LENGTHS:
                raise
            return None, None

    def _of(self, record: Any) -> tuple[float | None, int | None]:
        if not isinstance(record, dict):
            return None, None
        moment = record.get(self.time) if self.time else None
        outputs = record.get(self.outputs) if self.outputs else None
        return self._seconds(moment), None if outputs is None else _whole(outputs)

    def _seconds(self, moment: Any) -> float | None:
        if moment is None:
            return None
        try:
            counted = float(moment) * self.unit
        except (TypeError, ValueError):
            pass
        else:
            self._see_one_kind("counted")
            return counted
        try:
            found = datetime.datetime.fromisoformat(str(moment))
        except ValueError:
            raise ValueError(f"'{moment}' is no time") from None
        self._see_one_kind("a date")
        if found.tzinfo:
            found = found.astimezone(datetime.UTC).replace(tzinfo=None)
        self.origin = self.origin or found
        return (found - self.origin).total_seconds()

    def _see_one_kind(self, kind: str) -> None:
        """Times from zero and dates have no common beginning."""
        self.kind = self.kind or kind
        if kind != self.kind:
            raise UserError(
                "dataset.path", f"of '{self.time}' some are dates and some are numbers", "give all in one way"
            )


def _whole(value: Any) -> int:
    try:
        found = int(float(value))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"'{value}' is no whole number") from None
    if abs(found) >= 2**63:
        raise ValueError(f"'{value}' is too large a number")
    return found


def _words(form: str, name: str, names: dict[str, str]) -> str:
    if form == CHAT:
        return "chat messages"
    if form == TEXT:
        with_input = " with 'input'" if name == "instruction" and "input" in names else ""
        return f"texts of '{name}'{with_input}" if name else "lines of text"
    if form == TOKENS:
        return f"token ids of '{name}'" if name else "token ids"
    timed = ", with times" if any(each in names for each in TIMES) else ""
    answered = ", with lengths of outputs" if any(each in names for each in OUTPUTS) else ""
    return f"lengths alone ('{name}'{timed}{answered}), with random token ids"
