"""How much memory is free here, and how much of it a model may be planned to take."""

import os
from pathlib import Path

import torch

from befit.errors import BefitError

USABLE = 0.9
"""Share of the free memory that weights and cache may take. The rest is for activations, the allocator's rounding and the
library's own context; vLLM, too, plans with nine tenths (its --gpu-memory-utilization) unless told otherwise."""

MEMINFO = Path("/proc/meminfo")


def free_memory() -> tuple[int, str]:
    """Free bytes, and of what: the first GPU with its name, or this machine's memory where there is no GPU.

    Raises `BefitError` where the system does not tell.
    """
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(0)
        return free, f"GPU 0 {torch.cuda.get_device_name(0)}"
    return _free_host(), "this machine's memory"


def _free_host() -> int:
    """What the kernel says can be had without swapping; else, elsewhere than on Linux, the pages that nobody uses."""
    if MEMINFO.is_file():
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            name, _, amount = line.partition(":")
            if name == "MemAvailable":
                return int(amount.split()[0]) * 1024
    page, names = os.sysconf("SC_PAGE_SIZE"), os.sysconf_names
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):  # macOS has only the second: all of its memory
        if pages in names and (count := os.sysconf(pages)) > 0:
            return page * count
    raise BefitError(
        "this system does not say how much memory is free; give a budget instead of --fit, such as memory=4GiB"
    )
