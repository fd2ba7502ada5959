"""Models in GGUF files: a local one, one inside a package, and the demonstration that uses it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from src import demo, run
from src.cli import UserError
from src.compose import compose
from src.prefilling.models import find_model
from src.records.store import read_all
from src.workload.tokenizer import model_tokenizer

gguf = pytest.importorskip("gguf", reason="needs the development packages")
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 127)), "\u0120", "\u010a", "ab"]
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")  # fmt: skip


def write_gguf(path: Path, architecture: str = "llama") -> Path:
    """A model of two layers with a tokenizer of single characters."""
    hidden, heads, inner, layers = 32, 4, 64, 2
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(WORDS), hidden), "output_norm": (hidden,)}
    for layer in range(layers):
        block = {"attn_q": (hidden, hidden), "attn_k": (hidden, hidden), "attn_v": (hidden, hidden),
                 "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
                 "ffn_down": (hidden, inner), "attn_norm": (hidden,), "ffn_norm": (hidden,)}  # fmt: skip
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        drawn = rng.normal(0, 0.3, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", drawn.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that holds a model."""
    (tmp_path / "tiny_gguf_package").mkdir()
    (tmp_path / "tiny_gguf_package" / "__init__.py").write_text("import a_module_that_there_is_not\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.0")
    return tmp_path / "tiny_gguf_package"


def test_a_local_file_is_measured_with_its_own_weights_and_tokenizer(tmp_path: Path, call: Any) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    prompts = tmp_path / "chats.jsonl"
    asked = ("why?", "a longer question, is it not?")
    chats = [{"messages": [{"role": "user", "content": text}]} for text in asked]
    prompts.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    arguments = [f"model.path={file}", "dataset=file", f"dataset.path={prompts}", "num_prompts=2", "batch_size=2",
                 "repeats=1", "methods=[prepacking,full-batching]", "generate_tokens=4", "sampler_overhead_s=0",
                 "isolate=false", "ideal=false", f"results_dir={tmp_path / 'results'}"]  # fmt: skip
    code, out, err = call(run.main, *arguments)
    assert code == 0, err
    assert "through the model's chat template" in err
    for record in read_all(tmp_path / "results"):
        row = record.row
        assert (row.weights_source, row.model, row.tokenizer, row.status) == ("local", "tiny.gguf", "tiny.gguf", "ok")
        assert str(row.model_detail).startswith("file tiny.gguf sha256:")
        assert row.generated_equal_pct == 100
    assert "tiny.gguf (local weights, float32)" in out


def test_a_package_is_found_without_importing_it_and_its_files_hash_is_recorded(package: Path) -> None:
    file = write_gguf(package / "tiny.gguf")
    config = compose(["model=smollm2-135m", "model.package=tiny_gguf_package"])
    assert config.model.name == "tiny_gguf_package"
    source = find_model(config.model)
    assert (source.weights, source.gguf, source.config.hidden_size) == ("package", "tiny.gguf", 32)
    assert source.detail == f"tiny.gguf of tiny-gguf-package 1.0 sha256:{source.identity}"
    tokenizer = model_tokenizer(str(source.path), None, source.gguf)
    assert tokenizer.template is not None
    assert tokenizer.template([[{"role": "user", "content": "so"}]]) == [
        "<|im_start|>user\nso<|im_end|>\n<|im_start|>assistant\n"
    ]
    before = source.identity
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    assert find_model(config.model).identity != before


def test_what_is_missing_is_said_in_a_line(package: Path, tmp_path: Path, call: Any) -> None:
    def error(*settings: str) -> str:
        with pytest.raises(UserError) as refused:
            find_model(compose(list(settings)).model)
        return str(refused.value)

    absent = error("model=smollm2-135m", "model.package=no_such_package")
    assert "comes in the package no-such-package, which is not installed; `make demo` installs" in absent
    assert "tiny-gguf-package holds 0 GGUF files" in error("model=smollm2-135m", "model.package=tiny_gguf_package")
    assert "package, but llama-15m has none" in error("model.weights=package")
    (tmp_path / "cut.gguf").write_bytes(write_gguf(tmp_path / "whole.gguf").read_bytes()[:300])
    assert "cut.gguf could not be loaded" in error(f"model.path={tmp_path / 'cut.gguf'}")
    code, _, err = call(
        run.main, f"model.path={tmp_path / 'whole.gguf'}", "loadbit=8", "isolate=false", f"results_dir={tmp_path / 'r'}"
    )
    assert (code, err.splitlines()[-1][:34]) == (2, "error: loadbit: whole.gguf is turn")


def test_the_demonstration_answers_alike_and_says_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", f"model={write_gguf(tmp_path / 'tiny.gguf')}", "new_tokens=3"])
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert "8 of 8 answers are equal, token for token.\n" in out
    assert "What is the national animal of Australia?" in out
    assert out.count(" | ") >= 8


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("new_tokens=0", "new_tokens: 0; give"), ("model=llama-15m", "llama-15m has random weights here"),
     ("model=none.gguf", "model.path")],
)  # fmt: skip
def test_a_demonstration_that_cannot_be_is_one_line(
    setting: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", setting])
    monkeypatch.chdir(ROOT)
    assert demo.command() == 2
    assert expected in capsys.readouterr().err
