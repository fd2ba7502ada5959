from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest

from src.cli import UserError
from src.config import DatasetConfig
from src.prefilling.packing import first_fit_decreasing
from src.workload.batches import fingerprint, length_ordered_batches, shuffled_batches
from src.workload.profiles import FOLDER, read_profile
from src.workload.prompts import Prompts, load_prompts
from src.workload.sample import draw
from src.workload.sources import read_files
from src.workload.tokenizer import mistral_tokenizer

TEXTS = ["What is the capital of France?", "one", "Name three primes.", "", "Explain entropy, briefly.", "  two  "]
USABLE = sorted(text for text in TEXTS if text)


def load(dataset: DatasetConfig, num_prompts: int = 100, seed: int = 0, vocab_size: int = 32_000) -> Prompts:
    return load_prompts(dataset, num_prompts, seed, vocab_size, mistral_tokenizer)


def write(path: Path) -> Path:
    frame = pandas.DataFrame({"prompt": TEXTS, "number": range(len(TEXTS))})
    match path.suffix:
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case ".json":
            frame.to_json(path, orient="records")
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
        case ".txt":
            path.write_text("\n".join(TEXTS), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "txt"])
def test_prompts_of_every_file_format(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"prompts.{ending}")
    prompts = load(DatasetConfig("file", source="file", path=str(path), text_field="prompt"))
    assert prompts.texts is not None
    assert sorted(prompts.texts) == USABLE
    assert prompts.source == "file"
    assert prompts.detail.startswith(f"prompts.{ending} sha256:")
    encode = mistral_tokenizer().encode
    assert [ids.tolist() for ids in prompts.token_ids] == encode(prompts.texts)
    assert {int(ids[0]) for ids in prompts.token_ids} == {1}


def of_file(path: Path, field: str = "question", name: str = "mine") -> Prompts:
    return load(DatasetConfig(name, source="file", path=str(path), text_field=field))


def texts_of(path: Path, field: str = "question") -> list[str]:
    return sorted(of_file(path, field).texts or [])


@pytest.mark.parametrize(
    ("content", "line", "counted"),
    [
        ("question,answer\nWhat is two?,A number,\nWhat is three?,Another,\n", 2, "3 fields separated by commas"),
        ('question,answer\n"What, then?",so\nWhat, indeed?,so\n', 3, "3 fields separated by commas"),
        ('question,answer\n"She said \\"yes, now\\"",so\n', 2, "line 2"),
        ("question,answer\n'What, then?',so\n", 2, "3 fields separated by commas"),
        ("question,answer\nalone\n", 2, "1 fields separated by commas"),
        ('question,answer\n"two\nlines",so\nWhat, indeed?,so\n', 4, "3 fields"),
        ("question;answer\nWhat; then?;so\n", 2, "3 fields separated by semicolons"),
        ('question,answer\n"never closed,so\n', 2, "line 2"),
    ],
)
def test_a_row_that_does_not_fit_the_header_is_refused_by_its_line(
    content: str, line: int, counted: str, tmp_path: Path
) -> None:
    """Where a reader shifts columns, the answers are measured in place of the questions."""
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"dataset\.path: 'table\.csv' holds no prompts .*line {line}.*") as refused:
        of_file(path)
    assert counted in str(refused.value)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_the_separator_of_a_table_is_recognized(mark: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"table.{ending}"
    path.write_text(f'id{mark}question\n1{mark}"a{mark} b"\n2{mark}c d\n', encoding="utf-8")
    assert texts_of(path) == [f"a{mark} b", "c d"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("question,question\na b,c d\n", encoding="utf-8")
    with pytest.raises(UserError, match="two columns are named 'question'"):
        of_file(path)


@pytest.mark.parametrize(
    "name", ["p[12].jsonl", "q*.jsonl", "s?.jsonl", "dir [a]/p.jsonl", "a::b.jsonl", "{x,y}.jsonl"]
)
def test_a_path_is_a_path_and_no_pattern(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for other in ("p1.jsonl", "p2.jsonl", "qq.jsonl", "ss.jsonl", "x.jsonl"):
        (tmp_path / other).write_text('{"question": "of another file"}\n', encoding="utf-8")
    path.write_text('{"question": "of this file"}\n', encoding="utf-8")
    prompts = of_file(path)
    assert prompts.texts == ["of this file"]
    assert prompts.detail.endswith(hashlib.sha256(path.read_bytes()).hexdigest()[:12])


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_other_fields_may_change_their_type_and_come_late(ending: str, tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"id": number, "question": f"number {number}"} for number in range(12_000)]
    records.append({"id": "A11999", "question": "the last one", "source": {"late": True}})
    path = tmp_path / f"table.{ending}"
    match ending:
        case "csv":
            pandas.DataFrame(records).drop(columns="source").to_csv(path, index=False)
        case "json":
            path.write_text(json.dumps(records), encoding="utf-8")
        case "jsonl":
            path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    assert len(read_files(DatasetConfig("mine", path=str(path), text_field="question")).items) == 12_001
    assert len(of_file(path).token_ids) == 100


CHINESE = ["法国的首都是哪里。", "请解释熵的概念。", "写一首关于春天的诗。"]


def test_prompts_of_scripts_without_spaces_are_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in [*CHINESE, "", "  "]), encoding="utf-8")
    prompts = of_file(path)
    assert sorted(prompts.texts or []) == sorted(CHINESE)
    assert prompts.left_out == 2
    assert "2 of 5 records of prompts.jsonl are empty: they are left out" in capsys.readouterr().err


def test_of_the_papers_datasets_one_word_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": "one"}\n{"text": "two words"}\n{"text": ""}\n', encoding="utf-8")
    prompts = load(DatasetConfig("mmlu", source="hub", hub_id=str(tmp_path)))
    assert (prompts.texts, prompts.left_out) == (["two words"], 2)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl", "json"])
def test_a_byte_order_mark_is_no_part_of_a_prompt(ending: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts.{ending}"
    content = {
        "txt": "Grüße an alle\r\nund noch eine\r\n",
        "csv": "question,n\r\nGrüße an alle,1\r\nund noch eine,2\r\n",
        "jsonl": '{"question": "Grüße an alle"}\r\n{"question": "und noch eine"}\r\n',
        "json": '[{"question": "Grüße an alle"}, {"question": "und noch eine"}]',
    }[ending]
    path.write_bytes(content.encode(encoding))
    assert texts_of(path) == ["Grüße an alle", "und noch eine"]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_profile_as_a_spreadsheet_writes_it(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_bytes(f"token_length{mark}count\r\n5{mark}3\r\n9{mark}1\r\n".encode("utf-8-sig"))
    lengths, _ = read_profile(str(path))
    assert lengths.tolist() == [5, 5, 5, 9]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("5,1000000000000", "it counts 1,000,000,000,000 prompts"),
        ("1000000000000,1", "a prompt of 1,000,000,000,000 tokens"),
        ("5", "line 2: it has 1 fields"),
        ("5,3,", "line 2: it has 3 fields"),
    ],
)
def test_a_profile_that_no_memory_holds_is_refused_in_a_line(row: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text(f"token_length,count\n{row}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"dataset\.profile: lengths\.csv is not a length profile .*{reason}"):
        read_profile(str(path))


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    dataset = DatasetConfig("file", source="file", path=str(write(tmp_path / "prompts.jsonl")), text_field="prompt")
    before = load(dataset)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Something else entirely"}) + "\n", encoding="utf-8")
    after = load(dataset)
    assert after.texts == ["Something else entirely"]
    assert after.detail != before.detail


def test_a_dataset_folder_is_loaded_as_the_hub_loads_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "validation-00000.parquet")
    write(tmp_path / "data" / "test-00000.parquet")
    dataset = DatasetConfig("mine", source="hub", hub_id=str(tmp_path), split="validation+test", text_field="prompt")
    prompts = load(dataset)
    assert prompts.texts is not None
    assert Counter(prompts.texts) == Counter(USABLE * 2)
    assert prompts.source == "hub"


def test_without_a_hub_auto_takes_the_profile_and_hub_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = DatasetConfig("mmlu", hub_id="nobody/nothing", profile="mmlu")
    assert load(dataset).source == "profile"
    assert "using the length profile 'mmlu'" in capsys.readouterr().err
    dataset.source = "hub"
    with pytest.raises(UserError, match=r"dataset\.source: nobody/nothing: HF_HUB_OFFLINE is set and the cache"):
        load(dataset)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.csv")))
def test_a_profile_gives_prompts_of_its_lengths(name: str) -> None:
    lengths, detail = read_profile(name)
    prompts = load(DatasetConfig(name, source="profile", profile=name), num_prompts=500, vocab_size=211)
    assert len(prompts.token_ids) == 500
    assert not Counter(prompts.lengths.tolist()) - Counter(lengths.tolist())
    assert prompts.detail == detail
    assert min(ids[1:].min(initial=3) for ids in prompts.token_ids) >= 3
    assert max(ids.max() for ids in prompts.token_ids) < 211


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("token_length,count\n5,3\n9,1\n", encoding="utf-8")
    prompts = load(DatasetConfig("mine", source="profile", profile=str(tmp_path / "mine.csv")), num_prompts=4)
    assert sorted(prompts.lengths.tolist()) == [5, 5, 5, 9]


def test_shipped_profiles_have_the_padding_ratios_of_the_real_datasets() -> None:
    known = {"mmlu": 6.75, "wikitext512": 3.74, "alpaca": 2.93, "wikitext256": 2.41}
    rng = np.random.default_rng(0)
    for name, ratio in known.items():
        lengths, _ = read_profile(name)
        batches = rng.choice(lengths, (4000, 64))
        assert batches.max(1).sum() * 64 / batches.sum() == pytest.approx(ratio, rel=0.04), name


def test_the_authors_sample_is_pythons_and_so_is_its_first_shuffle() -> None:
    numbers = list(range(14_033))
    random.seed(42)
    sampled = random.sample(numbers, 1000)
    shuffled = list(sampled)
    random.shuffle(shuffled)
    drawn = draw(14_033, 1000, np.random.default_rng(7), "authors")
    assert drawn.order is not None
    assert drawn.chosen.tolist() == sampled
    assert drawn.chosen[drawn.order].tolist() == shuffled
    assert sampled[:3] == [10476, 1824, 409]
    assert len(draw(5, 9, np.random.default_rng(0), "authors").chosen) == 5


def test_the_authors_prompts_do_not_depend_on_the_seed_and_what_is_cut_is_tokenized_again(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text(
        "\n".join(f"Sentence {n} of internationalization, \u4f60\u597d!" for n in range(40)), encoding="utf-8"
    )
    dataset = DatasetConfig("wikitext512", "file", path=str(path), max_tokens=6)

    def loaded(seed: int, sample: str) -> Prompts:
        return load_prompts(dataset, 10, seed, 32_000, mistral_tokenizer, sample)

    first, second = loaded(0, "authors"), loaded(1, "authors")
    assert first.texts == second.texts != loaded(0, "own").texts
    assert first.texts is not None
    tokenizer = mistral_tokenizer()
    assert [ids.tolist() for ids in first.token_ids] == tokenizer.encode(first.texts)
    whole = path.read_text(encoding="utf-8").splitlines()
    assert all(any(full.startswith(text) and full != text for full in whole) for text in first.texts)


def predictors_of(profile: str) -> np.ndarray:
    """Percentiles 0, 5, 50, 95, 100 of m - L/k and of r/k, over 5,000 prompts in batches of 16, [2, 5]."""
    lengths, _ = read_profile(profile)
    sample = np.random.default_rng(0).permutation(lengths)[:5000]
    found = []
    for batch in shuffled_batches(5000, 16, seed=0):
        mine = sample[batch]
        bins = first_fit_decreasing(mine.tolist(), int(mine.max()))
        found.append((mine.max() - mine.mean(), len(bins) / len(mine)))
    return np.percentile(found, (0, 5, 50, 95, 100), axis=0).T


def test_batches_of_uniform_lengths_are_those_of_the_papers_figure_of_predictors_and_mmlus_are_not() -> None:
    published = np.array([[209, 257, 359, 461, 528], [0.375, 0.44, 0.625, 0.75, 0.875]])
    ours, mmlu = predictors_of("uniform-800"), predictors_of("mmlu")
    assert ours[0, 1:] == pytest.approx(published[0, 1:], rel=0.08)
    assert ours[1] == pytest.approx(published[1], abs=0.0635)  # a bin of a batch of 16
    assert mmlu[0, 0] < 50 < 800 < mmlu[0, 4]
    assert mmlu[1, 2] < 0.4


def test_samples_follow_the_seed() -> None:
    dataset = DatasetConfig("mmlu", source="profile", profile="mmlu")
    first, same, other = (load(dataset, 50, seed) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first.token_ids, same.token_ids, strict=True))
    assert first.lengths.tolist() != other.lengths.tolist()


def test_a_small_dataset_is_used_whole_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "prompts.csv")
    assert len(load(DatasetConfig("f", source="file", path=str(path), text_field="prompt"), 9).token_ids) == 5
    assert "only 5 prompts are usable" in capsys.readouterr().err


def test_max_tokens_cuts(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.csv")
    for dataset in (
        DatasetConfig("f", source="file", path=str(path), text_field="prompt", max_tokens=4),
        DatasetConfig("mmlu", source="profile", profile="mmlu", max_tokens=4),
    ):
        assert load(dataset).lengths.max() == 4


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path: Path) -> None:
    dataset = DatasetConfig("f", source="file", path=str(write(tmp_path / "prompts.csv")), text_field="prompt")
    with pytest.raises(UserError, match=r"vocabulary of 300 is smaller than the tokenizer's"):
        load(dataset, vocab_size=300)


def test_batches_hold_each_prompt_once_and_length_ordered_ones_are_sorted() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 23)
    for batches in (shuffled_batches(23, 5, seed=3), length_ordered_batches(lengths, 5)):
        assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
        assert sorted(np.concatenate(batches)) == list(range(23))
    assert (np.diff(lengths[np.concatenate(length_ordered_batches(lengths, 5))]) >= 0).all()
    assert shuffled_batches(23, 5, 3)[0].tolist() != shuffled_batches(23, 5, 4)[0].tolist()


def test_the_fingerprint_sees_every_token_and_boundary() -> None:
    ids = [np.array([1, 2]), np.array([3]), np.array([4, 5, 6])]
    batches = [np.array([0, 1]), np.array([2])]
    changed = [np.array([1, 2]), np.array([3]), np.array([4, 5, 7])]
    joined = [np.array([1, 2, 3]), np.array([], dtype=np.int64), np.array([4, 5, 6])]
    prints = {
        fingerprint(ids, batches),
        fingerprint(changed, batches),
        fingerprint(joined, batches),
        fingerprint(ids, [np.array([0]), np.array([1, 2])]),
        fingerprint(ids, [np.array([1, 0]), np.array([2])]),
    }
    assert len(prints) == 5
    assert fingerprint(ids, batches) == fingerprint([a.astype(np.int32) for a in ids], batches)
