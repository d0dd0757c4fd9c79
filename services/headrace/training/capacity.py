"""What this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess

import psutil

from headrace.api.scheduling.v1 import scheduling_pb2

PROBE_SECONDS = 10


def detect(cpu: float, memory_bytes: int, gpu: int) -> scheduling_pb2.Resources:
    """Cores that this process may use, memory and GPUs; a number given overrides what is found."""
    return scheduling_pb2.Resources(
        cpu=cpu or len(os.sched_getaffinity(0)),
        memory_bytes=memory_bytes or psutil.virtual_memory().total,
        gpu=gpu if gpu >= 0 else count_gpus(),
    )


def count_gpus() -> int:
    """GPUs that NVIDIA's driver lists; PyTorch is not asked, for importing it costs seconds and memory."""
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
