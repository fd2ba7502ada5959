"""The kernels of ``kernels.cpp``: compiled for this processor at first use, kept in the user's cache.

A function takes pointers and is loaded as a plain library, so that no header of torch's is needed: compiling takes a
second or two, once for each compiler, processor and version of the source.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

SOURCE = Path(__file__).with_name("kernels.cpp")
# Vectors are read as numbers and the other way round, which strict aliasing would forbid.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-strict-aliasing", "-fopenmp", "-shared", "-fPIC")
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
COMPILE_S = 120.0  # more than any compiler needs
NO_KERNELS = "PREPACK_BENCH_NO_CPP"  # set in the environment, they are not used


class _Missing(Exception):
    """Why there are no such kernels."""


@functools.cache
def missing() -> str | None:
    """Why there are no such kernels here; None where there are. The first call may compile them."""
    try:
        _library()
    except _Missing as error:
        return str(error)
    return None


def attend(
    qkv: torch.Tensor,
    out: torch.Tensor,
    blocks: NDArray[np.int32],
    heads: int,
    kv_heads: int,
    scale: float,
    window: int | None,
) -> None:
    """Causal attention within segments, into ``out``. What is given is not checked.

    Args:
        qkv: [tokens, heads + 2 * kv_heads, head_dim], contiguous, of a type in ``TYPES``, as ``out`` is.
        out: [tokens, heads * head_dim], contiguous.
        blocks: [blocks, 3], contiguous: the first token of a segment, where in it queries begin, and how many there
            are, at most ``queries_of_a_block``; they are taken up in this order by the threads that are free.
        window: a query sees this many keys at most, itself included.
    """
    _of("attend", qkv)(
        _at(qkv), _at(out), blocks.ctypes.data, len(blocks), heads, kv_heads, qkv.shape[2], scale, window or 0
    )  # fmt: skip


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float, y: torch.Tensor | None = None) -> torch.Tensor:
    """RMS norm over the columns of ``x`` [rows, columns], contiguous; with ``y``, that is added to ``x`` before."""
    out = torch.empty_like(x)
    rows, columns = x.shape
    _of("rms", x)(_at(x), None if y is None else _at(y), _at(weight), _at(out), rows, columns, x.stride(0), eps)
    return out


def rotate(qk: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotary positions in place: qk [n, heads, head_dim], heads side by side; cos, sin [n, 1, head_dim / 2]."""
    rows, heads, dim = qk.shape
    _of("rotate", qk)(_at(qk), _at(cos), _at(sin), rows, qk.stride(0), heads, dim // 2, cos.stride(0))


def alike(x: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether all are contiguous and of one type, as functions that take pointers have to assume."""
    return x.is_contiguous() and all(each.dtype == x.dtype and each.is_contiguous() for each in others)


@functools.cache
def queries_of_a_block() -> int:
    """How many queries of a segment are attended at once: what the processor's registers hold."""
    return int(_library().queries_of_a_block())


def _at(tensor: torch.Tensor) -> int:
    return tensor.data_ptr()


def _of(name: str, tensor: torch.Tensor) -> ctypes._NamedFuncPointer:
    return _functions()[name, tensor.dtype]


@functools.cache
def _functions() -> dict[tuple[str, torch.dtype], ctypes._NamedFuncPointer]:
    pointer, whole, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    arguments = {
        "attend": [pointer, pointer, pointer, whole, number, number, number, real, number],
        "rms": [pointer, pointer, pointer, pointer, whole, whole, whole, real],
        "rotate": [pointer, pointer, pointer, whole, whole, number, number, whole],
    }
    found = {}
    for name, types in arguments.items():
        for dtype, suffix in TYPES.items():
            function = getattr(_library(), f"{name}_{suffix}")
            function.argtypes, function.restype = types, None
            found[name, dtype] = function
    return found


@functools.cache
def _library() -> ctypes.CDLL:
    """Compile what is not in the cache, and load it.

    Raises:
        _Missing: it cannot be compiled or loaded.
    """
    if os.environ.get(NO_KERNELS, "0") not in {"", "0"}:
        raise _Missing(f"kernels in C++ are turned off by {NO_KERNELS}; unset it")
    why = "the kernel is compiled, and there is no C++ compiler; install g++"
    for command in filter(None, map(shlex.split, [os.environ.get("CXX", ""), "g++", "clang++"])):
        if (found := shutil.which(command[0])) is None:
            continue
        try:
            return _library_of([found, *command[1:]])
        except (_Missing, OSError) as error:  # the latter also of a compiler that makes nothing
            said = " ".join(str(error).split())
            why = f"{Path(command[0]).name} could not compile it ({said}); use attention=segments"
    raise _Missing(why)


def _library_of(compiler: list[str]) -> ctypes.CDLL:
    version = _run(*compiler, "--version").stdout
    known = "\n".join([SOURCE.read_text(), *FLAGS, *compiler, version, platform.machine(), _processor()])
    name = f"kernels-{hashlib.sha256(known.encode()).hexdigest()[:16]}.so"
    with _folder() as folder:
        if (folder / name).exists():
            with contextlib.suppress(OSError):  # damaged: compiled anew
                return _loaded(folder / name)
        _compile(compiler, folder / name)
        return _loaded(folder / name)


def _loaded(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    if not hasattr(library, "queries_of_a_block"):
        raise OSError("the library has no kernels")
    return library


def _compile(compiler: list[str], to: Path) -> None:
    """Compile to a name of its own and rename it, for several processes and threads may do so at once."""
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=to.parent) as folder:
        own = Path(folder) / to.name
        done = _run(*compiler, *FLAGS, str(SOURCE), "-o", str(own))
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise _Missing(said.strip() or f"exit code {done.returncode}")
        own.replace(to)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise _Missing(f"it cannot be run: {error}") from error


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Where compiled kernels are kept; where that cannot be written, a folder that goes with this call."""
    try:
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prepack-bench"
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=kept):
            pass
    except (OSError, RuntimeError):  # the latter where there is no home at all
        with tempfile.TemporaryDirectory(prefix="prepack-bench-") as own:
            yield Path(own)
    else:
        yield kept


def _processor() -> str:
    """What the processor can do, for a folder in a home may be shared by several kinds of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.partition(":")[0].strip() in wanted}))
