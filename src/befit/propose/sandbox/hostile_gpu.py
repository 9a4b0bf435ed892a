"""Little programs that try what only a process with a GPU can do, as those of `hostile` try the rest."""

from befit.propose.sandbox.box import Result
from befit.propose.sandbox.hostile import Hostile, Scene
from befit.propose.sandbox.limits import MIB, Limits

LIMITS = Limits(
    wall_seconds=30, start_seconds=60, memory_bytes=8192 * MIB, gpu_bytes=256 * MIB, processes=256, open_files=4096
)
"""What a program may use that starts CUDA."""

ALLOCATE = """
import ctypes, time, torch
torch.zeros(1, device="cuda")
driver = ctypes.CDLL("libcuda.so.1")
for _ in range(24):
    assert driver.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(128 << 20)) == 0
    time.sleep(0.02)
time.sleep(2)
answer = {"memory": "3 GiB were taken"}
"""
"""By the driver's own call: torch's bound could be undone."""

COMPUTE = "import torch\nanswer = {torch.cuda.get_device_name(): torch.ones(9, device='cuda').sum().item()}"
"""Not hostile: it must work."""


def _ended_for_gpu_memory(result: Result, _scene: Scene) -> tuple[bool, str]:
    said = ", ".join(map(str, result.value.values())) if result.ok else f"{result.reason}: {result.message}"
    return result.reason == "out-of-memory" and "GPU memory" in result.message, said


ON_GPU: dict[str, Hostile] = {
    "gpu-memory": Hostile(
        protection="taking GPU memory without end",
        source=ALLOCATE,
        judge=_ended_for_gpu_memory,
        by=lambda _plan: ["watch (NVML)"],
        limits=LIMITS,
    ),
}
"""By the name that `befit sandbox --require` knows; each needs a fresh process."""
