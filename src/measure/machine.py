"""What this computer is, and what ran on it: the provenance of each record."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

# Large pages for torch's large CPU tensors, as serving on CPUs is tuned: full-batching, whose logits take gigabytes,
# then prefills 1.4 times as fast, prepacking 1.15 times. Read by torch at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler else prints lines of its own

import torch

from .. import provenance
from ..cli import UserError
from ..config import Config, dtype_name
from ..places import slug
from ..prefilling import cpp
from . import gpus
from .nvml import NoCounters
from .process import allowed_cores, available_mb
from .sampler import counters_for

# Variables that choose kernels, instruction sets, numbers of threads that meet, or where memory comes from.
CHOOSING = re.compile(
    r"PREPACK_BENCH_NO_CPP|ATEN_CPU_CAPABILITY|MKL_(ENABLE_INSTRUCTIONS|CBWR)"
    r"|(DNNL|ONEDNN)_(MAX_CPU_ISA|CPU_ISA_HINTS|DEFAULT_FPMATH_MODE)"
    r"|NVIDIA_TF32_OVERRIDE|CUBLAS_WORKSPACE_CONFIG|CUDA_LAUNCH_BLOCKING|CUDA_MODULE_LOADING"
    r"|PYTORCH_(NO_)?(CUDA_)?(ALLOC_CONF|MEMORY_CACHING)|TORCH_(ALLOW_TF32_CUBLAS_OVERRIDE|BLAS_PREFER_\w+|CUDNN_\w+)"
    r"|(KMP|GOMP)_\w*AFFINITY|KMP_BLOCKTIME|OMP_(PROC_BIND|PLACES|WAIT_POLICY)|LD_PRELOAD|MALLOC_\w+"
    r"|THP_MEM_ALLOC_ENABLE|BNB_\w+"
)
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
CPU_FACTS = {"cpu family": "family", "model": "model", "cpu implementer": "implementer", "cpu part": "part"}
VECTORS = {
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "avx": "AVX",
    "sve2": "SVE2",
    "sve": "SVE",
    "asimd": "NEON",
}  # widest first
MATRICES = {"amx_tile": "AMX", "avx512_bf16": "bf16", "amx_bf16": "bf16", "avx_vnni_bf16": "bf16", "bf16": "bf16"}


def pick_device(asked: str) -> torch.device:
    """The device a run uses.

    Raises:
        UserError: a device that this machine or this build of torch does not have.
    """
    count = torch.cuda.device_count()  # asks the driver's library: to be told a number opens no GPU
    if asked == "auto":
        return torch.device("cuda:0" if count else "cpu")
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", asked)
    if not found:
        raise UserError("device", f"unknown '{asked}'", "choose one of auto, cpu, cuda, cuda:1")
    if asked == "cpu":
        return torch.device("cpu")
    if not count:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA GPU"
        raise UserError("device", f"'{asked}' asked, but {why}", "use device=cpu or device=auto")
    index = int(found[1] or 0)
    if index >= count:
        raise UserError("device", f"'{asked}' asked, but there are {count} GPUs", f"use cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def pick_devices(asked: str, device_map: str | None) -> tuple[torch.device, ...]:
    """The devices a run uses: one, or all GPUs where ``device_map`` splits the model over them.

    Raises:
        UserError: as ``pick_device``; a split where there is no GPU, or that starts at another than the first.
    """
    device = pick_device(asked)
    if device_map is None:
        return (device,)
    if device.type != "cuda":
        raise UserError("device_map", f"{device_map} splits a model over GPUs, and this runs on a CPU", "use null")
    if device.index:
        raise UserError("device", f"'{asked}' with a device_map", "use device=auto; CUDA_VISIBLE_DEVICES chooses GPUs")
    return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))


def pick_dtype(asked: str, device: torch.device, numerics: str = "own") -> torch.dtype:
    """As ``config.dtype_name``."""
    found = getattr(torch, dtype_name(asked, device.type == "cuda", numerics))
    assert isinstance(found, torch.dtype)
    return found


def resolved(config: Config, device: torch.device) -> Config:
    """The configuration with the device and the type that it means on this machine."""
    dtype = pick_dtype(config.dtype, device, config.numerics)
    return replace(config, device=str(device), dtype=str(dtype).removeprefix("torch."))


def device_name(*devices: torch.device) -> str:
    """The GPU's name, with their number before it where a model is split; or the CPU's, with the cores it may use."""
    if devices[0].type == "cuda":
        name = gpus.gpus()[devices[0].index or 0].name
        return name if len(devices) == 1 else f"{len(devices)} x {name}"
    return f"{_cpu_model()}, {cores()} cores"


def machine_slug(*devices: torch.device) -> str:
    """The name of this machine's folder below results/: lower case, no spaces, nothing private."""
    return slug(f"{devices[0].type if devices[0].type == 'cpu' else ''} {device_name(*devices)}")


@functools.cache
def _version(package: str) -> str:
    """Looked up once: it takes milliseconds, and every name of a run asks for it."""
    return importlib.metadata.version(package)


def software() -> dict[str, Any]:
    """What computes beside the device, as columns of a row: versions, threads, and variables that change either."""
    chosen = {name: value for name, value in os.environ.items() if CHOOSING.fullmatch(name)}
    if chosen.get(LARGE_PAGES) == "1":  # as set above where nobody said otherwise
        del chosen[LARGE_PAGES]
    if not torch.cuda.is_available() and cpp.missing():  # no compiler, for example: as if they were turned off
        chosen[cpp.NO_KERNELS] = "1"
    if "LD_PRELOAD" in chosen:  # where it lies is nobody's business
        chosen["LD_PRELOAD"] = Path(chosen["LD_PRELOAD"]).name
    return {
        "torch_version": torch.__version__,
        "transformers_version": _version("transformers"),
        "torch_threads": torch.get_num_threads(),
        "environment": " ".join(f"{name}={value}" for name, value in sorted(chosen.items())) or None,
    }


def cores() -> int:
    """CPU cores that this process may use."""
    return len(allowed_cores())


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _cpu_model() -> str:
    """The processor's name with its family, model and vector units: makers give one name to quite different ones."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip().lower(), value.strip())
            if not line.strip():
                break  # the first processor's are those of all
    except OSError:
        pass
    return cpu_name(facts, platform.processor() or platform.machine())


def cpu_name(facts: Mapping[str, str], otherwise: str) -> str:
    """``AMD EPYC (family 25, model 17, AVX-512, bf16)`` from the lines of /proc/cpuinfo.

    Args:
        otherwise: what it is called where those do not name it, as on ARM.
    """
    flags = set((facts.get("flags") or facts.get("features") or "").split())
    told = [f"{called} {facts[name]}" for name, called in CPU_FACTS.items() if name in facts]
    widest = next((called for flag, called in VECTORS.items() if flag in flags), None)
    units = [called for flag, called in MATRICES.items() if flag in flags]
    within = ", ".join(dict.fromkeys([*told, *([widest] if widest else []), *units]))
    return f"{facts.get('model name') or otherwise}" + (f" ({within})" if within else "")


def manifest(device: torch.device) -> dict[str, Any]:
    """Everything about machine and software that a reader needs to judge or repeat a run. No names, no home folders."""
    versions = provenance.packages() | {"torch": torch.__version__}  # with the build, which a version may leave out
    commit, given = provenance.commit()
    content: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": versions,
        "git_commit": commit,
        "git_dirty": provenance.is_changed(),
        "code_hash": provenance.code_hash(),
        "cpu": _cpu_model(),
        "cpu_cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "large_pages": os.environ["THP_MEM_ALLOC_ENABLE"] == "1",
        "available_memory_mb": available_mb(),
        "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "container_memory_max": _read("/sys/fs/cgroup/memory.max"),  # control groups, version 2
        "container_cpu_max": _read("/sys/fs/cgroup/cpu.max"),
    }
    if given:
        content["git_commit_given"] = True
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        counters = counters_for(device)
        content |= {
            "cuda": torch.version.cuda,
            "gpu": properties.name,
            "gpu_uuid": getattr(counters, "uuid", f"GPU-{properties.uuid}"),
            "gpu_memory_mb": properties.total_memory / 2**20,
            "gpu_compute_capability": f"{properties.major}.{properties.minor}",
            "nvidia_driver": getattr(counters, "driver", None),
            "gpu_power_limit_w": getattr(counters, "power_limit_w", None),
        }
        if isinstance(counters, NoCounters):
            content["nvml_unavailable"] = counters.reason
    return content
