"""What isn't a tensor of the run: library workspaces, the driver's context, the allocator's unused pieces."""

from sloth_nb.catalog import GPU

__all__ = ["MOVING", "context_bytes", "fragmentation", "library_bytes"]

MIB = 2**20
# Kinds that come and go within a step.
MOVING = ("activations", "workspace", "attention", "dequantised", "loss", "gradients")


def library_bytes(gpu: GPU, captured: bool = False) -> int:
    """cuBLAS's workspaces, from torch's allocator: the forward's thread, the backward's, a capture's stream."""
    if gpu.is_cpu:
        return 0
    return (3 if captured else 2) * (32 * MIB if gpu.capability >= 9.0 else 8 * MIB + 128 * 1024)


def context_bytes(gpu: GPU) -> int:
    """The driver's own: 141 MiB was measured on a T4, 766 to 896 on an H200 with cuDNN's and our kernels loaded.

    On a CPU it is Python with torch and transformers imported.
    """
    if gpu.is_cpu:
        return 600 * MIB
    return (141 if gpu.capability < 8.0 else 320 if gpu.capability < 9.0 else 896) * MIB


def fragmentation(kinds: dict[str, int]) -> int:
    """Pieces of the allocator's blocks that nothing fits into: a share of what comes and goes.

    For what isn't walked through: a CPU, transformers' own steps.
    """
    return int(0.04 * sum(kinds.get(kind, 0) for kind in MOVING))
