"""The name of the processor, which Python's ``platform`` does not know on Linux; imported by what measures time."""

import platform
from pathlib import Path


def processor_name() -> str:
    """'AMD EPYC 7763 64-Core Processor', from the kernel where it tells, else what ``platform`` says."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
