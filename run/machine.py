"""What a figure depends on: processor, threads, versions, the project's commit."""

import functools
import os
import platform
import subprocess
from pathlib import Path

import torch
import transformers

from run.processes import world


def this_machine():
    """What a figure depends on: CPU, cores, threads, GPU, versions, the project's commit."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": world()[1],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": git_commit(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def same_bits(wanted):
    """If wanted, let PyTorch choose nothing by timing and no algorithm whose sums change order between runs.

    Call it before anything is computed. An operation that has no such algorithm raises RuntimeError.
    """
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # which cuBLAS asks for to be deterministic
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        torch.use_deterministic_algorithms(True)


def cpu_name():
    """The processor's name and the vector instructions that matter to speed, as the system gives them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(values.get("flags", "").split())
    vectors = [
        flag
        for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
        if flag in flags
    ]
    return " ".join([values.get("model name", platform.machine()), *vectors])


@functools.cache
def git_commit():
    """The commit of this code when first asked, '-dirty' if it was changed since; None outside a checkout."""
    here = Path(__file__).parent.parent
    try:
        command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
