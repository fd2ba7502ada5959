"""Prompts in every form that people have them; files of each are in tests/prompts."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
from conftest import TINY_OVERRIDES

from src import run
from src.cli import UserError, warn
from src.compose import compose
from src.config import DatasetConfig
from src.workload import files
from src.workload.prompts import Prompts, load_prompts
from src.workload.tokenizer import Tokenizer, mistral_tokenizer

FILES = Path(__file__).parent / "prompts"


def load(path: Any, tokenizer: Any = mistral_tokenizer, num_prompts: int = 100, **settings: Any) -> Prompts:
    warn.cache_clear()
    dataset = DatasetConfig("mine", path=path if isinstance(path, list) else str(path), **settings)
    return load_prompts(dataset, num_prompts, 0, 32_000, tokenizer)


def with_template() -> Tokenizer:
    """A tokenizer whose model has a chat template, and takes no conversation that begins with an answer."""
    plain = mistral_tokenizer()

    def template(conversations: Any) -> list[str]:
        return ["".join(f"<{each['role']}>{each['content']}" for each in messages) + "<assistant>"
                for messages in conversations]  # fmt: skip

    return Tokenizer("with a template", plain.vocab_size, plain.encode, plain.decode, template)


TRACE = "lengths alone ('{}', with times, with lengths of outputs), with random token ids"
FORMS: list[tuple[str, list[str] | None, str]] = [
    ("prompt.jsonl", ["Name three primes.", "Explain entropy, briefly. 🧊"], "texts of 'prompt'"),
    ("instruction.json", ["Translate into French.\n\nThe bread is warm.", "Name a river."],
     "texts of 'instruction' with 'input'"),
    ("semicolons.csv", ["What, then; or why?", "Two\nlines?"], "texts of 'question'"),
    ("lines.txt", ["What is the capital of Norway?", "Write a haiku about rain, please.",
                   "{name} is a placeholder, is it not?"], "lines of text"),
    ("sharegpt.json", ["<system>Be brief.<user>Hello!<assistant>",
                       "<system>Be brief.<user>Hello!<assistant>Hello. How can I help?<user>Name a prime.<assistant>",
                       "<user>What is rain?<assistant>"],
     "chat messages of 3 conversations (each user turn with what came before it), through the model's chat template"),
    ("messages.jsonl", ["<system>Be brief.<user>Name a prime.<assistant>", "<user>What is rain?<assistant>",
                        "<user>What is rain?<assistant><tool>wet<user>And snow?<assistant>"],
     "chat messages of 2 conversations (each user turn with what came before it), through the model's chat template"),
    ("openai-batch.jsonl", ["<user>Name a prime.<assistant>", "<user>Name a river.<assistant>"],
     "chat messages of 2 conversations (each user turn with what came before it), through the model's chat template"),
    ("openai-completions.jsonl", ["Once upon a time", "There was a king"], "texts of 'prompt'"),
    ("token-ids.jsonl", None, "token ids of 'prompt_token_ids'"),
    ("id-lists.jsonl", None, "token ids"),
    ("lengths.csv", None, "lengths alone ('token_length'), with random token ids"),
    ("azure.csv", None, TRACE.format("ContextTokens")),
    ("arrivals.csv", None, TRACE.format("prompt_tokens")),
    ("mooncake.jsonl", None, TRACE.format("input_length")),
    ("bailian.jsonl", None, TRACE.format("input_length")),
    ("burstgpt.csv", None, TRACE.format("Request tokens")),
    ("aiperf.jsonl", ["What is rain?", "Name a prime."], "texts of 'text_input'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "texts", "words"), FORMS, ids=[name for name, *_ in FORMS])
def test_a_form_is_found_by_what_the_file_holds_and_said(
    name: str, texts: list[str] | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = load(FILES / name, with_template)
    assert (sorted(prompts.texts) if prompts.texts else None) == (sorted(texts) if texts else None)
    assert (prompts.form, prompts.source) == (words, "file")
    assert f"note: {name}: {words}\n" in capsys.readouterr().err
    if texts:
        assert sorted(ids.tolist() for ids in prompts.token_ids) == sorted(mistral_tokenizer().encode(texts))


def test_every_file_of_a_form_is_told_by_a_test() -> None:
    assert {path.name for path in FILES.iterdir()} == {name for name, *_ in FORMS}


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("token-ids.jsonl", [4, 2]), ("id-lists.jsonl", [4, 2]), ("lengths.csv", [5, 5, 5, 9]), ("azure.csv", [37, 9, 39]),
     ("mooncake.jsonl", [32, 8]), ("burstgpt.csv", [47, 10])],
)  # fmt: skip
def test_token_ids_are_taken_as_they_are_and_lengths_have_random_ones(name: str, lengths: list[int]) -> None:
    prompts = load(FILES / name)
    assert sorted(prompts.lengths.tolist()) == sorted(lengths)
    assert prompts.tokenizer is None
    if "id" in name:
        assert sorted(ids.tolist() for ids in prompts.token_ids) == [[1, 12], [1, 45, 66, 7]]


@pytest.mark.parametrize(
    ("name", "arrivals", "outputs"),
    [("azure.csv", [0, 0.052, 4.3145], [4, 10, 27]), ("arrivals.csv", [0, 4.315], [44, 109]),
     ("mooncake.jsonl", [0, 3], [5, 548]),
     ("bailian.jsonl", [0.5, 61.25], [5, 9]), ("burstgpt.csv", [5, 45], [18, 276]),
     ("aiperf.jsonl", [1, 1.5], [12, 3])],
)  # fmt: skip
def test_times_and_output_lengths_stay_with_their_prompts(name: str, arrivals: list[float], outputs: list[int]) -> None:
    prompts = load(FILES / name)
    assert prompts.arrivals_s is not None
    assert prompts.output_tokens is not None
    order = np.argsort(prompts.arrivals_s)
    assert prompts.arrivals_s[order] == pytest.approx(arrivals)
    assert prompts.output_tokens[order].tolist() == outputs
    assert load(FILES / "prompt.jsonl").arrivals_s is None


def test_turns_of_a_conversation_and_a_model_without_a_template() -> None:
    first, last = (load(FILES / "sharegpt.json", turns=turns) for turns in ("first", "last"))
    assert sorted(first.texts or []) == [
        "System: Be brief.\nUser: Hello!\nAssistant:",
        "User: What is rain?\nAssistant:",
    ]
    assert "Assistant: Hello. How can I help?\nUser: Name a prime.\nAssistant:" in "".join(last.texts or [])
    assert first.form.startswith("chat messages of 3 conversations (the first user turn of each), role by role, as the")
    assert (first.left_out, len(last.token_ids)) == (1, 2)


def test_a_template_that_refuses_a_conversation_is_one_line() -> None:
    def refusing() -> Tokenizer:
        def template(_: Any) -> list[str]:
            raise ValueError("roles must alternate")

        plain = mistral_tokenizer()
        return Tokenizer("strict", plain.vocab_size, plain.encode, plain.decode, template)

    with pytest.raises(UserError, match=r"dataset\.path: the chat template of strict refuses .*roles must alternate"):
        load(FILES / "messages.jsonl", refusing)


COMPRESSORS = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}


@pytest.mark.parametrize("ending", [*COMPRESSORS, "zst"])
@pytest.mark.parametrize("name", ["prompt.jsonl", "semicolons.csv", "lines.txt", "prompts.parquet"])
def test_compressed_files_are_read_whatever_they_are_called(name: str, ending: str, tmp_path: Path) -> None:
    file = FILES / name
    if name.endswith("parquet"):
        file = tmp_path / name
        pandas.DataFrame({"prompt": ["a b", "c d"], "heavy": [[1.0]] * 2}).to_parquet(file)
    if ending == "zst":
        with pyarrow.CompressedOutputStream(str(tmp_path / f"{name}.zst"), "zstd") as out:
            out.write(file.read_bytes())
    else:
        (tmp_path / f"{name}.{ending}").write_bytes(COMPRESSORS[ending](file.read_bytes()))
    packed = load(tmp_path / f"{name}.{ending}")
    assert packed.texts == load(file).texts
    assert packed.form == load(file).form


def test_several_files_and_patterns_are_read_in_their_order(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"part-{number}.jsonl").write_text(f'{{"prompt": "of part {number}"}}\n', encoding="utf-8")
    by_pattern = load(tmp_path / "part-*.jsonl")
    by_list = load([str(tmp_path / "part-0.jsonl"), str(tmp_path / "part-[12].jsonl"), str(tmp_path / "part-2.jsonl")])
    assert sorted(by_pattern.texts or []) == ["of part 0", "of part 1", "of part 2"] == sorted(by_list.texts or [])
    assert by_pattern.detail == by_list.detail
    assert by_pattern.detail.startswith("3 files (part-0.jsonl, part-1.jsonl, part-2.jsonl) sha256:")
    with pytest.raises(
        UserError, match=r"'prompt\.jsonl' holds texts and 'lengths\.csv' lengths alone; give files of one"
    ):
        load([str(FILES / "prompt.jsonl"), str(FILES / "lengths.csv")])


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((FILES / "messages.jsonl").read_bytes())))
    config = compose(["dataset=file", "dataset.path=-"])
    assert config.dataset.name == "standard-input"
    config = compose(["dataset=file", "dataset.path=-"])  # a second configuration of the same command has it, too
    assert len(load(config.dataset.path).token_ids) == 3


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("prompt\r\nGrüße an alle\r\n".encode("utf-8-sig"), ["Grüße an alle"]),
        ("prompt\nGrüße an alle\n".encode("latin-1"), ["Grüße an alle"]),
        (b'prompt,n\n"one\nand two",1\n', ["one\nand two"]),
        (b"prompt;n\neins, zwei;1\n", ["eins, zwei"]),
        (b"prompt,n\n42,1\nforty two,2\n,3\n", ["42", "forty two"]),
        (f"prompt\n{'word ' * 210_000}\n".encode(), ["word " * 210_000]),  # a megabyte
    ],
)  # fmt: skip
def test_files_as_people_have_them(content: bytes, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    assert sorted(load(tmp_path / "p.csv", max_tokens=50).texts or []) == texts


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("columns.json", b'{"prompt": ["a b", "c d"], "n": [1, 2]}', ["a b", "c d"]),
        ("within.json", b'{"version": 1, "data": [{"prompt": "a b"}]}', ["a b"]),
        ("strings.json", b'["a b", "c d"]', ["a b", "c d"]),
        ("old.txt", b"one two\rthree four\r", ["one two", "three four"]),
        ("commas.txt", b"text, content, and more\nanother line\n", ["another line", "text, content, and more"]),
        ("references.txt", b"[1] the first\n[2] the second\n", ["[1] the first", "[2] the second"]),
        ("table.txt", b"question\tanswer\nwhat is it?\tthat\n", ["what is it?"]),
        ("caps.csv", b"Prompt,Answer\nhello there,yes\n", ["hello there"]),
        ("index.csv", b",prompt\na,hi there\nb,x y\n", ["hi there", "x y"]),
        ("prose.txt", b"Text, please\nSummarize this, briefly\n", ["Summarize this, briefly", "Text, please"]),
        ("numbers.csv", b"content,text\n5,nice thing\n4,bad thing\n", ["bad thing", "nice thing"]),
        ("alpaca.csv", b"Instruction,Input\nDo,x y\n", ["Do\n\nx y"]),
        (
            "chat.json",
            b'[{"role": "user", "content": ["a", "b"]}, {"role": "assistant", "content": "x"}]',
            ["User: a\nb\nAssistant:"],
        ),
        (
            "system.jsonl",
            b'{"system": "Be brief.", "conversations": [{"from": "human", "value": "hi"}]}',
            ["System: Be brief.\nUser: hi\nAssistant:"],
        ),
        ("response.jsonl", b'{"body": {"instructions": "Be brief.", "input": "hi"}}', ["Be brief.\n\nhi"]),
        ("when.jsonl", b'{"timestamp": "May 3, 2024", "prompt": "a b"}', ["a b"]),
        ("some.jsonl", b'null\n{"prompt": null}\n{"prompt": "a b"}\n', ["a b"]),
    ],
)
def test_what_a_file_holds_decides(name: str, content: bytes, found: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert sorted(load(tmp_path / name).texts or []) == found


def test_messages_in_parquet_and_an_empty_list_of_ids(tmp_path: Path) -> None:
    asked = [[{"role": "user", "content": text}] for text in ("who?", "why?")]
    pandas.DataFrame({"messages": asked, "score": [1, 2]}).to_parquet(tmp_path / "m.parquet")
    for settings in ({}, {"text_field": "messages"}):
        prompts = load(tmp_path / "m.parquet", **settings)
        assert sorted(prompts.texts or []) == ["User: who?\nAssistant:", "User: why?\nAssistant:"]
    (tmp_path / "ids.jsonl").write_text('{"input_ids": []}\n{"input_ids": [5, 6]}\n', encoding="utf-8")
    prompts = load(tmp_path / "ids.jsonl")
    assert ([ids.tolist() for ids in prompts.token_ids], prompts.left_out) == ([[5, 6]], 1)
    (tmp_path / "ids.jsonl").write_text("[]\n[5, 6]\n", encoding="utf-8")  # lists alone, of which the first is empty
    prompts = load(tmp_path / "ids.jsonl")
    assert ([ids.tolist() for ids in prompts.token_ids], prompts.left_out) == ([[5, 6]], 1)


def test_another_character_set_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_bytes("first\nGrüße\n".encode("latin-1"))
    load(tmp_path / "p.txt")
    assert "note: p.txt is not UTF-8 (line 2): it is read as Windows-1252" in capsys.readouterr().err


def test_bad_records_are_named_or_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"prompt": "a b"}\n{"prompt": 7}\n{"prompt": "c d"}\n{"prompt": "e', encoding="utf-8")
    with pytest.raises(UserError, match=r"dataset\.path: 'log\.jsonl' holds no prompts as it is \(line 4: no JSON .*"
                       r"; mend it, or pass over such records with dataset\.skip_bad=true"):  # fmt: skip
        load(file)
    prompts = load(file, skip_bad=True)
    assert sorted(prompts.texts or []) == ["a b", "c d"]
    assert (
        "2 records are left out, as they hold no prompt; the first: log.jsonl, line 4: no JSON"
        in capsys.readouterr().err
    )


BAD = {
    "nothing.jsonl": (b"", "dataset.path: 'nothing.jsonl' is empty"),
    "blank.jsonl": (b"\n\n", "dataset.path: all records of blank.jsonl are empty"),
    "sheet.xlsx": (b"PK\x03\x04rest", "dataset.path: 'sheet.xlsx' is a zip archive, as docx and xlsx are"),
    "paper.txt": (b"%PDF-1.7", "dataset.path: 'paper.txt' is a PDF"),
    "cut.gz": (gzip.compress(b"a prompt" * 99)[:-9], "dataset.path: 'cut.gz' cannot be read"),
    "cut.xz": (lzma.compress(b"a prompt" * 99)[:-9], "dataset.path: 'cut.xz' cannot be read"),
    "binary.bin": (b"\x00\x01\x02", "'binary.bin' holds no prompts as it is (it holds NUL characters"),
    "half.parquet": (b"PAR1 and no more", "'half.parquet' holds no prompts as it is"),
    "no.parquet": (b"text", "'no.parquet' holds no prompts as it is (it does not begin as parquet does)"),
    "broken.json": (b'[{"prompt": "a"}, {"prompt"', "'broken.json' holds no prompts as it is (line 1"),
    "scalar.json": (b"7", "'scalar.json' holds no prompts as it is (it holds no records)"),
    "deep.json": (b"[" * 99_999, "'deep.json' holds no prompts as it is"),
    "unknown.jsonl": (b'{"a": 1, "b": "x"}\n', "has no field that is known to hold prompts; name one of a, b"),
    "numbers.jsonl": (b'{"prompt": "a"}\n{"prompt": 5}\n', "(line 2: int in place"),
    "role.jsonl": (b'{"messages": [{"role": "king", "content": "x"}]}\n', "(record 1: a message of 'king'; roles"),
    "norole.jsonl": (b'{"messages": [{"content": "x"}]}\n', "(record 1: a message without a role"),
    "image.jsonl": (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}\n', "of type image_url"),
    "negative.jsonl": (b'{"input_ids": [1, -2]}\n', "(record 1: token ids are whole numbers from 0"),
    "large.jsonl": (b'{"input_ids": [1, 99999]}\n', "model: its vocabulary of 211 is smaller than the prompts'"),
    "zero.csv": (b"token_length,count\n0,3\n", "(line 2: '0' is no whole number of at least 1"),
    "many.csv": (b"token_length,count\n5,1000000000000\n", "many.csv counts more than 20,000,000 prompts"),
    "time.csv": (b"TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,5,1\n", "(line 2: 'soon' is no time"),
    "twice.csv": (b"prompt,prompt\na,b\n", "two columns are named 'prompt'"),
    "column.csv": (b"prompt,n\n1,2\n3,4\n", "no field that is known to hold prompts; name one of prompt, n"),
    "mixed.jsonl": (b'{"prompt": "a"}\n"b"\n', "(line 2: it has no fields, as the others have"),
    "other.jsonl": (b'{"prompt": "a"}\n{"text": "b"}\n', "(line 2: it holds 'text' in place of 'prompt'"),
    "absent.jsonl": (b'{"prompt": "a"}\n{"id": 7}\n', "(line 2: it has no field 'prompt', as the others have"),
    "silent.jsonl": (b'{"messages": [{"role": "user"}]}\n', "(record 1: a message of the user without content"),
    "lists.json": (b'{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}', "several lists, train and test"),
    "spaced.csv": (b" prompt , id\nnobody,1\n\"\",x,\n", "(line 3: it has 3 fields separated by commas, the header 2"),
    "zones.csv": (b"TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,5\n2023-11-16 18:15:46+00:00,0\n", "line 3: '0'"),
    "half.jsonl": (b'{"prompt": "\\ud83d hello"}\n', "(record 1: a text with half of a character"),
    "quotes.csv": (b'prompt,n\n"never closed,1\n', "'quotes.csv' holds no prompts as it is (line 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_that_says_why(name: str, tmp_path: Path, call: Any) -> None:
    content, expected = BAD[name]
    (tmp_path / name).write_bytes(content)
    settings = [
        "dataset=file",
        "dataset.source=file",
        f"dataset.path={tmp_path / name}",
        f"results_dir={tmp_path / 'r'}",
    ]
    code, _, err = call(run.main, *TINY_OVERRIDES, *settings)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, len(lines)) == (2, 1), err
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert not (tmp_path / "r").exists()


def test_a_path_of_another_kind_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/null", "/dev/stdin", "/dev/fd/63", str(tmp_path / "pipe")):
        with pytest.raises(UserError, match=f"'{name}' is no regular file; pipe it in, with dataset.path=-"):
            files.find(name)
    with pytest.raises(UserError, match=r"dataset\.path: 7; give a path, a pattern, a list of either"):
        compose(["dataset=file", "dataset.path=7"])
    with pytest.raises(UserError, match=r"dataset\.turns: unknown 'none'; choose one of all, first, last"):
        compose(["dataset.turns=none"])
    with pytest.raises(UserError, match=r"is a folder; name its files: '.*/\*'"):
        load(FILES)
