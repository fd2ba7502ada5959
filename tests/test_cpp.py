"""Kernels in C++: equal to torch's over random shapes, compiled once, and where they cannot be, torch's serve."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_prompts, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from src.measure.verify import verify
from src.prefilling import cpp, layout, passes
from src.prefilling.attention import native, segments
from src.prefilling.attention.kernels import AUTO, kernel_of
from src.prefilling.attention.spans import Spans
from src.prefilling.cache import CacheWriter
from src.prefilling.engines import make_engine
from src.prefilling.library import prefill
from src.prefilling.method import PrefillOptions
from src.prefilling.methods import METHODS
from src.records.store import Record

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}  # of the norm
needs_compiler = pytest.mark.skipif(cpp.missing() is not None, reason=str(cpp.missing()))
Lengths = st.lists(st.integers(1, 200), min_size=1, max_size=8)
Types = st.sampled_from([torch.float32, torch.bfloat16])


def apart(have: torch.Tensor, want: torch.Tensor) -> float:
    return float((have.double() - want.double()).norm() / want.double().norm())


@needs_compiler
@given(
    lengths=Lengths, gap=st.integers(0, 40), heads=st.sampled_from([(1, 1), (4, 2), (6, 6), (8, 1)]),
    dim=st.integers(1, 40).map(lambda half: 2 * half), window=st.none() | st.integers(1, 150), dtype=Types,
    seed=st.integers(0, 2**31),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_attention_is_torchs(
    lengths: list[int], gap: int, heads: tuple[int, int], dim: int, window: int | None, dtype: torch.dtype, seed: int
) -> None:
    size = np.array(lengths)
    spans = Spans(np.cumsum(size) - size + gap, size, 1, int(size.sum()) + gap)
    torch.manual_seed(seed)
    qkv = torch.randn(spans.tokens + 1, heads[0] + 2 * heads[1], dim)
    if dtype == torch.bfloat16:
        qkv = qkv.bfloat16()
    wanted = torch.full((spans.tokens + 1, heads[0] * dim), 7.0)
    segments.plan(spans).attend(qkv.float(), *heads, dim**-0.5, wanted, window)
    found = native.plan(spans).attend(qkv, *heads, dim**-0.5, torch.full_like(wanted, 7.0).to(dtype), window)
    assert apart(found[gap:-1], wanted[gap:-1]) < TOLERANCE[dtype]
    assert (found[:gap] == 7).all()  # what no segment covers is left as it is
    assert (found[-1] == 7).all()


@needs_compiler
@pytest.mark.parametrize("size", [50.0, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_with_large_scores_is_finite_and_nan_stays_in_its_segment(dtype: torch.dtype, size: float) -> None:
    torch.manual_seed(0)
    spans = Spans(np.array([0, 60]), np.array([60, 70]), 1, 130)
    qkv = (size * torch.randn(130, 6, 16)).to(dtype)
    line = torch.cat([qkv, qkv[:1]]).double()
    want = segments.plan(spans).attend(line, 2, 2, 1.0, torch.zeros(131, 32).double())  # scores of thousands and more
    have = native.plan(spans).attend(qkv, 2, 2, 1.0, torch.zeros(130, 32, dtype=dtype))
    assert have.isfinite().all()
    if size < 100:  # larger scores have no digits behind the point in float32
        assert apart(have, want[:130]) < 100 * TOLERANCE[dtype]
    qkv[70] = float("nan")
    have = native.plan(spans).attend(qkv, 2, 2, 1.0, torch.zeros(130, 32, dtype=dtype))
    assert have[:60].isfinite().all()
    assert have[70:].isnan().all()


@needs_compiler
def test_threads_share_the_work_and_nothing_else() -> None:
    size = np.array([700, 30, 400, 650])
    spans = Spans(np.cumsum(size) - size, size, 1, int(size.sum()))
    torch.manual_seed(0)
    qkv = torch.randn(spans.tokens, 6, 32)
    alone = native.plan(spans).attend(qkv, 4, 1, 0.2, torch.zeros(spans.tokens, 128))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for _ in range(10):
            shared = native.plan(spans).attend(qkv, 4, 1, 0.2, torch.zeros(spans.tokens, 128))
            assert torch.equal(shared, alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(shutil.which("g++") is None or cpp.NO_KERNELS in os.environ, reason="needs g++")
def test_where_there_is_gcc_there_are_kernels() -> None:
    """Else all tests of them would be skipped without a word."""
    assert cpp.missing() is None


class Other(torch.nn.Linear):
    """Computes in float32 whatever its model does, as an adapter may."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.weight.dtype)).float()


@pytest.mark.parametrize("name", ["q_proj", "o_proj", "norm"])
def test_layers_that_compute_in_another_type_or_lie_otherwise_are_right(name: str) -> None:
    model, prompts = tiny_model().bfloat16(), draw_prompts([60, 3, 17])
    layer = model.get_decoder().layers[0]
    if name == "norm":
        weight = layer.input_layernorm.weight.data
        layer.input_layernorm.weight = torch.nn.Parameter(torch.stack([weight, 9 * weight], dim=1)[:, 0])
    else:
        old = getattr(layer.self_attn, name)
        new = Other(old.in_features, old.out_features, bias=False, dtype=torch.bfloat16)
        new.weight = old.weight
        setattr(layer.self_attn, name, new)
    want = prefill(tiny_model().bfloat16(), prompts).logits.float()
    assert apart(prefill(model, prompts, forward="fused").logits.float(), want) < 0.05


def test_a_model_whose_layers_are_compiled_in_place_is_prefilled() -> None:
    model, prompts = tiny_model(), draw_prompts([60, 3, 17])
    want = prefill(model, prompts).logits
    for layer in model.get_decoder().layers:
        layer.compile(backend="eager")
    assert torch.allclose(prefill(model, prompts).logits, want, atol=1e-5)
    assert torch.allclose(prefill(model, prompts[::-1]).logits, want.flip(0), atol=1e-5)


@pytest.mark.parametrize("forward", ["compiled", "graphs"])
def test_a_forward_of_gpus_is_skipped_beside_the_ideal_too(forward: str, measure: Callable[..., list[Record]]) -> None:
    found = measure("methods=[padding-free,full-batching]", f"forward={forward}", "ideal=true", "num_prompts=4")
    assert {record.row.status for record in found} == {"skipped"}
    with pytest.raises(ValueError, match=r"^forward: "):
        prefill(tiny_model(), draw_prompts([4]), forward=forward)


@needs_compiler
@given(lengths=st.lists(st.integers(1, 700), min_size=1, max_size=20))
@settings(deadline=None)
def test_blocks_cover_every_query_once_the_costliest_first(lengths: list[int]) -> None:
    size = np.array(lengths)
    planned = native.plan(Spans(np.cumsum(size) - size, size, 1, int(size.sum())))
    covered = np.concatenate([start + first + np.arange(count) for start, first, count in planned.blocks])
    assert sorted(covered.tolist()) == list(range(int(size.sum())))
    assert planned.blocks[:, 2].max() <= cpp.queries_of_a_block()
    assert (np.diff(planned.blocks[:, 1:].sum(1)) <= 0).all()


@needs_compiler
@given(rows=st.integers(1, 40), columns=st.integers(1, 90), adds=st.booleans(), dtype=Types)
@settings(deadline=None)
def test_norms_are_torchs(rows: int, columns: int, adds: bool, dtype: torch.dtype) -> None:
    x, y, weight = (torch.randn(*shape).to(dtype) for shape in ((rows, columns), (rows, columns), (columns,)))
    have_x, want_x = x.clone(), x.float()
    if adds:
        have = passes.NATIVE.add_rms(have_x, y, weight, 1e-5)
        want = passes.PLAIN.add_rms(want_x, y.float(), weight.float(), 1e-5)
    else:
        have, want = passes.NATIVE.rms(have_x, weight, 1e-5), passes.PLAIN.rms(want_x, weight.float(), 1e-5)
    assert apart(have, want) < 2 * TOLERANCE[dtype]
    assert apart(have_x, want_x) < TOLERANCE[dtype]


@needs_compiler
@given(rows=st.integers(1, 30), heads=st.integers(1, 5), half=st.integers(1, 40), dtype=Types)
@settings(deadline=None)
def test_rotary_positions_are_torchs(rows: int, heads: int, half: int, dtype: torch.dtype) -> None:
    line = torch.randn(rows, heads + 2, 2 * half).to(dtype)
    angles = torch.randn(rows, 1, 2 * half).to(dtype)
    cos, sin = angles.cos()[..., :half], angles.sin()[..., :half]
    have, want = line.clone(), line.float()
    passes.NATIVE.rotate(have[:, :heads], cos, sin)
    passes.PLAIN.rotate(want[:, :heads], cos.float(), sin.float())
    assert apart(have, want) < TOLERANCE[dtype]
    assert torch.equal(have[:, heads:], line[:, heads:])


def test_half_precision_of_another_kind_is_torchs() -> None:
    assert kernel_of(AUTO, CPU, torch.float16) is segments
    assert passes.fastest(CPU, torch.float16) is passes.fastest(torch.device("cuda"), torch.bfloat16) is passes.PLAIN


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As in a new process, with an empty cache; its folder."""
    functions: tuple[Any, ...] = (cpp.missing, cpp._library, cpp._functions, cpp.queries_of_a_block)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in functions:
        function.cache_clear()
    yield tmp_path / "prepack-bench"
    for function in functions:
        function.cache_clear()


def compiler(folder: Path, script: str) -> str:
    """A compiler of one's own."""
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_it_is_compiled_once(anew: Path) -> None:
    assert cpp.missing() is None
    (library,) = anew.iterdir()
    made = library.stat().st_mtime_ns
    cpp._library.cache_clear()
    cpp.missing.cache_clear()
    assert cpp.missing() is None
    assert [path.stat().st_mtime_ns for path in anew.iterdir()] == [made]


@needs_compiler
def test_a_damaged_library_is_compiled_anew(anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpp.missing() is None
    (whole,) = anew.iterdir()
    library = tmp_path / "another" / "prepack-bench" / whole.name  # what is loaded is known by its path
    library.parent.mkdir(parents=True)
    library.write_bytes(b"half of it")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    cpp._library.cache_clear()
    cpp.missing.cache_clear()
    assert cpp.missing() is None
    assert library.stat().st_size > 1000


@needs_compiler
def test_another_compiler_or_processor_has_a_library_of_its_own(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpp.missing() is None
    monkeypatch.setattr(cpp, "_processor", lambda: "another one")
    cpp._library.cache_clear()
    cpp._library()
    assert len(list(anew.iterdir())) == 2


@needs_compiler
@pytest.mark.parametrize("why", ["taken", "no home"])
def test_a_cache_that_cannot_be_written_is_no_hindrance(why: str, anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "taken":
        anew.write_text("a file where the folder would be")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", staticmethod(no_home))
    assert cpp.missing() is None
    assert not anew.is_dir()


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(("script", "said"), [
    (None, r"there is no C\+\+ compiler; install g\+\+"),
    ("[ $1 = --version ] && exit; echo 'x.cpp:1: error: no flag' >&2; exit 1", "could not compile it .*no flag"),
    ("[ $1 = --version ] && exit; for a; do out=$a; done; echo x > $out", "could not compile it .*file too short"),
    ("exit 0", "could not compile it .*No such file"),
    ("off", "turned off by PREPACK_BENCH_NO_CPP"),
])  # fmt: skip
def test_where_it_cannot_be_compiled_torch_serves(
    script: str | None, said: str, anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script == "off":
        monkeypatch.setenv(cpp.NO_KERNELS, "1")
    else:
        mine = None if script is None else compiler(tmp_path, script)
        monkeypatch.setattr("shutil.which", lambda name: mine)
    with pytest.raises(Exception, match=f"^attention: .*{said}"):
        kernel_of("native", CPU, torch.float32)
    assert kernel_of(AUTO, CPU, torch.float32) is segments
    assert passes.fastest(CPU, torch.float32) is passes.PLAIN
    assert not anew.exists() or not [path for path in anew.iterdir() if ".tmp" in path.name]
    model, prompts = tiny_model("qwen3"), draw_prompts([60, 3, 17])
    engine = make_engine(model, METHODS["padding-free"], PrefillOptions())
    assert engine.attention == segments.WORDS
    assert verify(model, [(prompts, None)], engine, "none").problem is None


def test_a_record_says_what_computed(measure: Callable[..., list[Record]]) -> None:
    rows = {
        record.row.method: record.row
        for record in measure("methods=[padding-free,padding-free+segments,continuous-batching]", "num_prompts=4")
    }
    there = cpp.missing() is None
    assert rows["padding-free"].attention_kernel == ("C++ (CPU)" if there else "flash (CPU)")
    assert rows["padding-free+segments"].attention_kernel == "flash (CPU)"
    assert {rows[name].passes for name in ("padding-free", "padding-free+segments")} == {"C++" if there else "torch"}
    assert rows["continuous-batching"].passes is None
    assert all(0 < (rows[name].attention_share or 0) < 1 for name in ("padding-free", "padding-free+segments"))
    (other,) = measure("method=padding-free", "forward=transformers", "num_prompts=4")
    assert other.row.passes is None


@pytest.mark.parametrize("method", ["full-batching", "prepacking", "padding-free"])
@pytest.mark.parametrize("limit", [None, 32_768, 50])
def test_a_batch_is_computed_by_parts_that_stay_in_the_caches(
    method: str, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CPU_TOKENS", 64)
    model, prompts = tiny_model(), draw_prompts([40, 3, 17, 60, 1, 9])
    engine = make_engine(model, METHODS[method], PrefillOptions(max_tokens=limit))
    sizes: list[int] = []
    real = engine._forward.__class__.__call__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        engine._forward.__class__,  # type: ignore[attr-defined]
        "__call__",
        lambda self, ids, *rest: (sizes.append(ids.numel()), real(self, ids, *rest))[1],
    )
    assert verify(model, [(prompts, None)], engine, "none").problem is None
    most = {None: 10**6, 32_768: 64, 50: 60}[limit]  # a prompt of 60 tokens goes alone
    assert max(sizes) <= most
    assert (len(sizes) > 1) == (limit is not None)


@pytest.mark.parametrize("lengths", [[5, 5, 5], [9, 1, 1, 1], [6, 3, 4]])
def test_pads_of_a_cache_are_zero_however_full_it_is(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was used before holds anything, and a mask does not stop NaN."""
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: self.new_full(shape, float("nan")))
    size = np.array(lengths)
    longest = int(size.max())
    writer = CacheWriter(size, 1, 1, 2, lambda _: None)
    kept = np.arange(longest) >= longest - size[:, None]
    writer.places = torch.from_numpy(np.flatnonzero(kept))
    kv = torch.randn(int(size.sum()), 4)
    writer.keep(0, kv)
    layer = writer.cache().layers[0]
    keys, values = layer.keys.squeeze(1), layer.values.squeeze(1)  # type: ignore[union-attr]
    assert torch.equal(torch.cat([keys[kept], values[kept]], dim=1), kv)
    assert (keys[~kept] == 0).all()
    assert (values[~kept] == 0).all()


def test_processors_are_told_apart_by_what_they_can() -> None:
    said = cpp._processor()
    if os.path.exists("/proc/cpuinfo"):
        assert "flags" in said or "Features" in said


def test_batches_with_and_without_parts_make_one_row(
    monkeypatch: pytest.MonkeyPatch, measure: Callable[..., list[Record]]
) -> None:
    """Only what is computed by parts is scattered."""
    monkeypatch.setattr(layout, "CPU_TOKENS", 100)
    (record,) = measure("method=full-batching", "batch_size=3", "num_prompts=24", "repeats=1")
    scattered = [sample["unpack_s"] for sample in record.samples]
    assert None in scattered
    assert len(set(scattered)) > 1
    assert record.row.unpack_s_mean == pytest.approx(sum(each or 0.0 for each in scattered) / len(scattered))


@needs_compiler
@given(lengths=Lengths, dtype=Types, window=st.none() | st.integers(1, 100), seed=st.integers(0, 2**31))
@settings(deadline=None)
def test_a_segment_comes_out_the_same_in_every_bit_whatever_it_is_batched_with(
    lengths: list[int], dtype: torch.dtype, window: int | None, seed: int
) -> None:
    size = np.array(lengths)
    starts = np.cumsum(size) - size
    torch.manual_seed(seed)
    qkv, weight = torch.randn(int(size.sum()), 4, 24).to(dtype), torch.randn(96).to(dtype)
    together = torch.zeros(len(qkv), 48, dtype=dtype)
    native.plan(Spans(starts, size, 1, len(qkv))).attend(qkv, 2, 1, 0.2, together, window)
    normed = passes.NATIVE.rms(qkv.flatten(1), weight, 1e-5)
    for start, length in zip(starts.tolist(), lengths, strict=True):
        own = qkv[start : start + length].clone()
        spans = Spans(np.array([0]), np.array([length]), 1, length)
        alone = native.plan(spans).attend(own, 2, 1, 0.2, torch.zeros(length, 48, dtype=dtype), window)
        assert torch.equal(alone, together[start : start + length])
        assert torch.equal(passes.NATIVE.rms(own.flatten(1), weight, 1e-5), normed[start : start + length])


@needs_compiler
def test_another_compiler_is_tried_where_the_first_does_not_serve(
    anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    monkeypatch.setenv("CXX", f"{compiler(tmp_path, 'exit 1')} -m64")
    assert cpp.missing() is None
    monkeypatch.setenv(cpp.NO_KERNELS, "0")
    cpp._library.cache_clear()
    cpp.missing.cache_clear()
    assert cpp.missing() is None


@needs_compiler
def test_threads_may_compile_at_once(anew: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert {pool.submit(cpp.missing).result() for _ in range(8)} == {None}


def test_a_run_says_where_there_is_no_compiler(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpp, "missing", lambda: "there is none; install g++")
    (record,) = measure("method=padding-free", "num_prompts=4")
    said = "note: attention and norms run on torch's operators, which take longer on a CPU: there is none; install g++"
    assert said in capsys.readouterr().err.splitlines()
    assert (record.row.attention_kernel, record.row.passes) == ("flash (CPU)", "torch")
    assert record.row.environment == "PREPACK_BENCH_NO_CPP=1"  # and it is another run than one with them
