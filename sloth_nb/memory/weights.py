"""What a run holds before its first token: weights by format, adapters, gradients, optimiser states."""

from dataclasses import dataclass

from sloth_nb.catalog import Shape
from sloth_nb.memory.trace import rounded
from sloth_nb.memory.work import Work

__all__ = ["NF4_BITS", "Standing", "adapter_parameters", "optimiser_bytes", "standing", "weight_bytes"]

# NF4 with double quantisation (Dettmers 2023, arXiv 2305.14314): 4 bits, one 8-bit scale a block of 64, one
# fp32 a 256 of those: 4 + 8/64 + 32/(64*256).
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
# Each 4-bit layer has two code books of its own and an offset: 16 and 256 fp32 numbers and one.
NF4_EXTRAS = 512 + 1024 + 512


@dataclass(frozen=True)
class Standing:
    """Bytes that stay for the whole run, on one device; ``host`` is in the machine's RAM."""

    weights: int
    adapters: int
    gradients: int
    optimiser: int
    host: int
    trainable: int


def weight_bytes(shape: Shape, method: str) -> int:
    """The model's weights as ``from_pretrained`` leaves them on the device.

    Norms, embeddings, the head, biases and fused experts stay 16-bit when the linear layers are made small.
    """
    if method in ("lora", "full"):
        return 2 * shape.parameters
    small = shape.linear_weights
    rest = 2 * (shape.parameters - small)
    layers = sum(block.count * len(block.linears) for block in shape.blocks)
    if method == "lora-8bit":
        rows = sum(block.count * sum(x.outputs for x in block.linears) for block in shape.blocks)
        return small + 4 * rows + rest
    return int(small * NF4_BITS / 8) + layers * NF4_EXTRAS + rest


def adapter_parameters(shape: Shape, rank: int, targets: tuple[str, ...] | None) -> int:
    """A: (rank, in) and B: (out, rank) for every layer that the LoRA wraps."""
    return sum(block.count * rank * (x.inputs + x.outputs) for block, x in shape.adapted(targets))


def optimiser_bytes(parameters: int, tensors: int, itemsize: int, optimiser: str) -> int:
    """States of one device. 8-bit: two bytes a parameter and two fp32 scales a block of 256.

    torch's AdamW keeps its two moments in the parameters' own dtype; "adamw_fp32" is the master-weight way:
    fp32 weights and moments for 16-bit parameters.
    """
    if optimiser == "sgd":
        return 0
    if optimiser in ("adamw_8bit", "paged_adamw_8bit"):
        return 2 * parameters + 8 * parameters // 256 + tensors * 1024
    if optimiser == "adamw_fp32":
        return 12 * parameters
    return 2 * itemsize * parameters


def standing(work: Work) -> Standing:
    """The bytes that stay, by kind, for this work on each device."""
    shape = work.model.shape
    weights, host = weight_bytes(shape, work.method), 0
    if work.embedding_offload and not shape.tied:
        moved = 2 * shape.embedding_parameters
        weights, host = weights - moved, host + moved
    if work.lora:
        trainable, itemsize = adapter_parameters(shape, work.rank, work.targets), 4
        tensors = 2 * sum(block.count for block, _ in shape.adapted(work.targets))
        adapters = trainable * itemsize
    else:
        trainable, itemsize = shape.parameters - sum(t.parameters for t in shape.towers), 2
        tensors = sum(block.count * (len(block.linears) + 2) for block in shape.blocks)
        adapters = 0
    gradients = trainable * itemsize
    states = optimiser_bytes(trainable, tensors, itemsize, work.optimiser)
    if work.optimiser.startswith("paged"):
        states, host = 0, host + states  # paged in a little at a time during the step
    if work.task == "dpo" and not work.lora:
        weights *= 2  # the frozen reference; with LoRA it is the model with its adapter switched off
    if work.gpus > 1 and work.strategy == "fsdp":
        share = work.gpus
        weights, adapters, gradients, states = (x // share for x in (weights, adapters, gradients, states))
    elif work.gpus > 1:
        gradients *= 2  # DDP's buckets hold a copy
    return Standing(rounded(weights), rounded(adapters), rounded(gradients), rounded(states), host, trainable)
