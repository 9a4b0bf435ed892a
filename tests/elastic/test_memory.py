"""Free memory, as the system tells it."""

from pathlib import Path

import pytest
import torch

from befit.elastic import memory
from befit.elastic.memory import free_memory
from befit.errors import BefitError

MEMINFO = """MemTotal:       16384 kB
MemFree:         1000 kB
MemAvailable:    8192 kB
"""


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert free_memory() == (8192 * 1024, "this machine's memory")


def test_this_machine_has_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert 2**20 < free_memory()[0] < 2**50


def test_a_gpu_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert free_memory() == (100, "GPU 0 NVIDIA H200")


def test_a_system_without_meminfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}
    monkeypatch.setattr(memory.os, "sysconf_names", pages)
    monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
    assert free_memory()[0] == 40960
    monkeypatch.setattr(memory.os, "sysconf_names", {"SC_PAGE_SIZE": 4096})
    with pytest.raises(BefitError, match="give a budget"):
        free_memory()
