"""Each kernel against its plain-torch reference, torch.compile's code for it, its peers, and the device's ceiling.

    PYTHONPATH=.:kernels python kernels/bench/operations.py [--only NAME] [--no-compile] [--tune] [--json FILE]

Shapes are Llama-3.1-8B's at 4,096 tokens in bf16 (Qwen3's heads for q/k-norm). The ceiling is what this device
reaches in the same process: a large copy for what moves bytes, a large bf16 product for what multiplies. Peers
are used where they can be imported (liger_kernel, bitsandbytes). Prints a Markdown table; times are medians with
the L2 cache flushed between runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import sloth_nb_kernels as K
import torch
import triton
from torch import Tensor

T, HIDDEN, FFN, HEADS, KV_HEADS, DIM, VOCAB, RANK = 4096, 4096, 14336, 32, 8, 128, 128256, 32
EPS = 1e-5

try:
    from liger_kernel.transformers import functional as liger
except ImportError:
    liger = None
try:
    import bitsandbytes.functional as bnb
except ImportError:
    bnb = None


@dataclass
class Case:
    """One thing to time: ours, how much it must move or multiply at least, and who else does it."""

    name: str
    ours: Callable[[], Any]
    bytes: int = 0
    flops: int = 0
    others: dict[str, Callable[[], Any]] = field(default_factory=dict)


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def milliseconds(fn: Callable[[], Any]) -> float:
    return triton.testing.do_bench(fn, warmup=25, rep=150, return_mode="median")


def ceilings() -> tuple[float, float]:
    """(bytes, flops) a millisecond that this device reaches."""
    a, b = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    moved = 2 * a.numel() / milliseconds(lambda: b.copy_(a))
    x, y = randn(8192, 8192), randn(8192, 8192)
    return moved, 2 * 8192**3 / milliseconds(lambda: torch.mm(x, y))


class Contestants:
    """Makes the others' functions for a forward and a backward from a differentiable reference."""

    def __init__(self, compile_too: bool):
        self.compile = compile_too

    def forward(self, reference: Callable, *args: Any, **peers: Callable[[], Any]) -> dict[str, Callable]:
        found: dict[str, Callable] = {"torch": lambda: reference(*args)}
        if self.compile:
            compiled = torch.compile(reference, dynamic=False)
            found["compiled"] = lambda: compiled(*args)
        return found | peers

    def backward(
        self, reference: Callable, leaves: list[Tensor], dy: Any, *rest: Any, **peers: Callable
    ) -> dict[str, Callable]:
        """``reference(*leaves, *rest)``; peers are differentiable functions of the same arguments."""
        ways = {"torch": reference, **peers}
        if self.compile:
            ways["compiled"] = torch.compile(reference, dynamic=False)
        return {name: self._gradient(fn, leaves, dy, rest) for name, fn in ways.items()}

    @staticmethod
    def _gradient(fn: Callable, leaves: list[Tensor], dy: Any, rest: tuple) -> Callable:
        graph: list[Any] = []  # made at the first call, so that a peer that fails does so where it is caught

        def run() -> Any:
            if not graph:
                graph.extend(leaf.detach().clone().requires_grad_() for leaf in leaves)
                graph.append(fn(*graph, *rest))
            return torch.autograd.grad(graph[-1], graph[:-1], dy, retain_graph=True)

        return run


def norms(by: Contestants) -> Iterator[Case]:
    x, residual, w, dy = randn(T, HIDDEN), randn(T, HIDDEN), randn(HIDDEN), randn(T, HIDDEN)
    size = 2 * T * HIDDEN
    y, rstd = K.rms_norm_forward(x, w, EPS)

    def reference(x: Tensor, w: Tensor) -> Tensor:
        return K.rms_norm_reference(x, w, EPS)

    peer = {"liger": lambda: liger.liger_rms_norm(x, w, EPS)} if liger else {}
    yield Case(
        "RMSNorm forward", lambda: K.rms_norm_forward(x, w, EPS, out=y), 2 * size, 0,
        by.forward(reference, x, w, **peer),
    )  # fmt: skip

    def added(x: Tensor, residual: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return K.rms_norm_reference(total, w, EPS), total

    yield Case(
        "RMSNorm forward, residual added",
        lambda: K.add_rms_norm_forward(x, residual, w, EPS), 4 * size, 0, by.forward(added, x, residual, w),
    )  # fmt: skip
    peer = {"liger": lambda x, w: liger.liger_rms_norm(x, w, EPS)} if liger else {}
    yield Case(
        "RMSNorm backward, into the residual's gradient",
        lambda: K.rms_norm_backward(dy, x, w, rstd, residual_grad=residual), 4 * size, 0,
    )  # fmt: skip
    yield Case(
        "RMSNorm backward, weight too",
        lambda: K.rms_norm_backward(dy, x, w, rstd, weight_grad=True), 3 * size, 0,
        by.backward(reference, [x, w], dy, **peer),
    )  # fmt: skip
    y, mean, rstd = K.layer_norm_forward(x, w, w, EPS)

    def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, (HIDDEN,), w, b, EPS)

    peer = {"liger": lambda: liger.liger_layer_norm(x, w, w, EPS)} if liger else {}
    yield Case(
        "LayerNorm forward", lambda: K.layer_norm_forward(x, w, w, EPS, out=y), 2 * size, 0,
        by.forward(layer, x, w, w, **peer),
    )  # fmt: skip
    peer = {"liger": lambda x, w, b: liger.liger_layer_norm(x, w, b, EPS)} if liger else {}
    yield Case(
        "LayerNorm backward, weights too",
        lambda: K.layer_norm_backward(dy, x, w, mean, rstd, weight_grad=True), 3 * size, 0,
        by.backward(layer, [x, w, w], dy, **peer),
    )  # fmt: skip


def rotations(by: Contestants) -> Iterator[Case]:
    qkv = randn(T, (HEADS + 2 * KV_HEADS) * DIM)
    q = qkv[:, : HEADS * DIM].view(T, HEADS, DIM)
    k = qkv[:, HEADS * DIM : (HEADS + KV_HEADS) * DIM].view(T, KV_HEADS, DIM)
    angles = torch.arange(T, device="cuda")[:, None] * 500000.0 ** (-torch.arange(64, device="cuda") / 64)
    cos, sin, positions = angles.cos(), angles.sin(), torch.arange(T, device="cuda")
    size = 2 * T * (HEADS + KV_HEADS) * DIM
    peer = {}
    if liger:
        doubled = [torch.cat([t, t], -1)[None].bfloat16() for t in (cos, sin)]
        lq, lk = q.transpose(0, 1)[None].clone(), k.transpose(0, 1)[None].clone()
        peer = {"liger": lambda: liger.liger_rope(lq, lk, *doubled)}
    yield Case(
        "RoPE on q and k, in place",
        lambda: K.rope_forward(q, k, cos, sin, positions, q_out=q, k_out=k), 2 * size, 0,
        by.forward(K.rope_reference, q, k, cos, sin, positions, **peer),
    )  # fmt: skip
    w = randn(DIM)
    dq, dk = torch.empty_like(q), torch.empty_like(k)

    def reference(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return K.qk_norm_rope_reference(q, k, w, w, EPS, cos, sin, positions)

    def forward() -> None:
        K.qk_norm_rope_forward(q, k, w, w, EPS, cos, sin, positions, q_out=dq, k_out=dk)

    yield Case("q/k-norm and RoPE forward", forward, 2 * size, 0, by.forward(reference, q, k, w))
    yield Case(
        "q/k-norm and RoPE backward",
        lambda: K.qk_norm_rope_backward(dq, dk, q, k, w, w, EPS, cos, sin, positions), 3 * size,
    )  # fmt: skip
    yield Case(
        "q/k-norm and RoPE backward, weights too",
        lambda: K.qk_norm_rope_backward(dq, dk, q, k, w, w, EPS, cos, sin, positions, weight_grad=True),
        3 * size, 0, by.backward(reference, [q, k, w], (q, k)),
    )  # fmt: skip


def gates(by: Contestants) -> Iterator[Case]:
    gate_up, dh, h = randn(T, 2 * FFN), randn(T, FFN), randn(T, FFN)
    gate, up = K.split_gate_up(gate_up)
    size = 2 * T * FFN
    for activation, label in (("silu", "SwiGLU"), ("gelu_tanh", "GEGLU (tanh)")):

        def reference(gate: Tensor, up: Tensor, activation: Any = activation) -> Tensor:
            return K.glu_reference(gate, up, activation)

        function = (
            None if liger is None else liger.liger_swiglu if activation == "silu" else liger.liger_geglu
        )
        peer = {"liger": lambda f=function: f(gate, up)} if function else {}
        yield Case(
            f"{label} forward", lambda a=activation: K.glu_forward(gate, up, a, out=h), 3 * size, 0,
            by.forward(reference, gate, up, **peer),
        )  # fmt: skip
        yield Case(
            f"{label} backward in place, h again",
            lambda a=activation: K.glu_backward(dh, gate, up, a, dgate=gate, dup=up, h=h), 6 * size, 0,
            by.backward(reference, [gate, up], dh, **({"liger": function} if function else {})),
        )  # fmt: skip
        gate_up.normal_()


def losses(by: Contestants) -> Iterator[Case]:
    rows = 1024
    logits, targets = randn(rows, VOCAB), torch.randint(0, VOCAB, (T,), device="cuda")
    peer = {"liger": lambda: liger.liger_cross_entropy(leaf, targets[:rows])} if liger else {}
    leaf = logits.clone().requires_grad_()

    def reference(logits: Tensor) -> Tensor:
        return K.cross_entropy_reference(logits, targets[:rows]).sum()

    def whole(fn: Callable) -> Callable:
        return lambda: torch.autograd.grad(fn(leaf), leaf)

    others = {"torch": whole(reference)} | peer
    if by.compile:
        others["compiled"] = whole(torch.compile(reference, dynamic=False))
    grad = torch.empty_like(logits)
    yield Case(
        f"cross-entropy and gradient, {rows} rows",
        lambda: K.cross_entropy_forward(logits, targets[:rows], grad_out=grad), 2 * logits.nbytes, 0, others,
    )  # fmt: skip
    hidden, head = randn(T, HIDDEN), randn(VOCAB, HIDDEN) * HIDDEN**-0.5
    x = hidden.clone().requires_grad_()

    def naive() -> Any:
        loss = torch.nn.functional.cross_entropy((x @ head.t()).float(), targets)
        return torch.autograd.grad(loss, x)

    others = {"torch": naive}
    if liger:
        others["liger"] = lambda: torch.autograd.grad(
            liger.liger_fused_linear_cross_entropy(x, head, targets), x
        )
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        native = torch.nn.functional.linear_cross_entropy
        others["torch's fused"] = lambda: torch.autograd.grad(native(x, head, targets), x)
    yield Case(
        "head, loss and hidden gradient",
        lambda: K.linear_cross_entropy_forward(hidden, head, targets), 0, 4 * T * VOCAB * HIDDEN, others,
    )  # fmt: skip
    yield Case(
        "head, loss, hidden and weight gradients",
        lambda: K.linear_cross_entropy_forward(hidden, head, targets, weight_grad=True),
        0, 6 * T * VOCAB * HIDDEN,
    )  # fmt: skip
    saved = K.linear_log_probs_forward(hidden, head, targets, entropy=True)
    row = randn(T, dtype=torch.float32)
    yield Case(
        "token log-probabilities and entropies",
        lambda: K.linear_log_probs_forward(hidden, head, targets, entropy=True), 0, 2 * T * VOCAB * HIDDEN,
    )  # fmt: skip
    yield Case(
        "their backward",
        lambda: K.linear_log_probs_backward(row, row, hidden, head, targets, saved), 0, 4 * T * VOCAB * HIDDEN,
    )  # fmt: skip


def weights(by: Contestants) -> Iterator[Case]:
    if bnb:
        for out, width in ((2 * FFN, HIDDEN), (HIDDEN, FFN), (HIDDEN, HIDDEN), (1024, HIDDEN)):
            packed, state = bnb.quantize_4bit(randn(out, width), quant_type="nf4", compress_statistics=True)
            buffer, count = torch.empty(out, width, dtype=torch.bfloat16, device="cuda"), out * width
            yield Case(
                f"NF4 {out}×{width} to bf16",
                lambda p=packed, s=state, b=buffer: K.dequantize_nf4(p, s, out=b),
                count * 2 + count // 2 + count // 64, 0,
                {"bitsandbytes": lambda p=packed, s=state, b=buffer: bnb.dequantize_4bit(p, s, out=b)},
            )  # fmt: skip
        yield from adapted_weights()
    q = torch.randint(-127, 128, (FFN, HIDDEN), dtype=torch.int8, device="cuda")
    scale, buffer = (
        randn(FFN, dtype=torch.float32),
        torch.empty(FFN, HIDDEN, dtype=torch.bfloat16, device="cuda"),
    )
    yield Case(
        "int8 14336×4096 to bf16", lambda: K.dequantize_int8(q, scale, out=buffer), 3 * q.numel(), 0,
        {"bitsandbytes": lambda: bnb.int8_vectorwise_dequant(q, scale)} if bnb else {},
    )  # fmt: skip


def adapted_weights() -> Iterator[Case]:
    """What a layer's q, k, v and its gate, up need: dequantised, with B beside and A beneath."""
    adapted_weight = importlib.import_module("sloth_nb_kernels.adapted_weight")
    for name, outs in (("q, k, v", (HIDDEN, 1024, 1024)), ("gate, up", (FFN, FFN))):
        parts = []
        for out in outs:
            packed, state = bnb.quantize_4bit(randn(out, HIDDEN), quant_type="nf4", compress_statistics=True)
            a, b = randn(RANK, HIDDEN, dtype=torch.float32), randn(out, RANK, dtype=torch.float32)
            parts.append(K.Projection(packed, state, a=a, b=b, scale=0.5))
        rows, ranks = sum(outs), RANK * len(outs)
        buffer = torch.empty(rows + ranks, HIDDEN + 128, dtype=torch.bfloat16, device="cuda")
        count = rows * HIDDEN
        yield Case(
            f"{name} of NF4 with their adapters around",
            lambda p=parts, b=buffer: K.adapted_weight(p, b),
            count * 2 + count // 2 + count // 64 + 6 * ranks * (rows // len(outs) + HIDDEN), 0,
            {"one by one": lambda p=parts, b=buffer: adapted_weight._one_by_one(p, b, HIDDEN)},
        )  # fmt: skip


def adapters(by: Contestants) -> Iterator[Case]:
    """A gate/up product with its adapter: as addmm, as columns of a longer product, and without an adapter."""
    x, w = randn(T, HIDDEN), randn(2 * FFN, HIDDEN)
    a, b = randn(2 * RANK, HIDDEN), randn(FFN, RANK)
    y, flops = torch.empty(T, 2 * FFN, dtype=torch.bfloat16, device="cuda"), 4 * T * HIDDEN * FFN

    def added() -> None:
        torch.mm(x, w.t(), out=y)
        low_rank = torch.mm(x, a.t())
        for i in range(2):
            y[:, i * FFN : (i + 1) * FFN].addmm_(low_rank[:, i * RANK : (i + 1) * RANK], b.t(), alpha=0.5)

    longer_x, longer_w = randn(T, HIDDEN + 2 * RANK), randn(2 * FFN, HIDDEN + 2 * RANK)

    def longer() -> None:
        torch.mm(longer_x[:, :HIDDEN], a.t(), out=longer_x[:, HIDDEN:])
        for i in range(2):
            longer_w[i * FFN : (i + 1) * FFN, HIDDEN + i * RANK : HIDDEN + (i + 1) * RANK].copy_(b)
        torch.mm(longer_x, longer_w.t(), out=y)

    yield Case(
        "gate/up product with adapters: longer product", longer, 0, flops,
        {"addmm": added, "no adapter": lambda: torch.mm(x, w.t(), out=y)},
    )  # fmt: skip
    dy, dx = randn(T, 2 * FFN), torch.empty(T, HIDDEN, dtype=torch.bfloat16, device="cuda")
    longer_dy, taller_w = randn(T, 2 * FFN + 2 * RANK), randn(2 * FFN + 2 * RANK, HIDDEN)

    def added_back() -> None:
        torch.mm(dy, w, out=dx)
        low_rank = torch.cat([torch.mm(dy[:, i * FFN : (i + 1) * FFN], b) for i in range(2)], 1)
        dx.addmm_(low_rank, a)

    def longer_back() -> None:
        for i in range(2):
            target = longer_dy[:, 2 * FFN + i * RANK : 2 * FFN + (i + 1) * RANK]
            torch.mm(longer_dy[:, i * FFN : (i + 1) * FFN], b, out=target)
        taller_w[2 * FFN :].copy_(a)
        torch.mm(longer_dy, taller_w, out=dx)

    yield Case(
        "its input's gradient: longer product", longer_back, 0, flops,
        {"addmm": added_back, "no adapter": lambda: torch.mm(dy, w, out=dx)},
    )  # fmt: skip


def optimisers(by: Contestants) -> Iterator[Case]:
    """8-bit AdamW of an 8B model's adapters: 32 layers of 7 projections, two fp32 matrices each."""
    if not bnb:
        return
    outs_and_ins = [(4096, 4096)] * 2 + [(1024, 4096)] * 2 + [(FFN, HIDDEN)] * 2 + [(HIDDEN, FFN)]
    shapes = [shape for out, width in outs_and_ins for shape in ((RANK, width), (out, RANK))] * 32
    levels = bnb.create_dynamic_map(signed=True).cuda(), bnb.create_dynamic_map(signed=False).cuda()
    moments = []
    for shape in shapes:
        blocks = torch.Size(shape).numel() // 256
        weight, gradient = (randn(*shape, dtype=torch.float32) for _ in range(2))
        codes = (torch.zeros(shape, dtype=torch.uint8, device="cuda") for _ in range(2))
        moments.append(
            K.Moments(weight, gradient, *codes, *(torch.zeros(blocks, device="cuda") for _ in range(2)))
        )
    rates = K.Rates(1e-4, (0.9, 0.999), 1e-8, 0.01, 10)
    together = K.AdamW8bitStep()

    def one_by_one() -> None:
        for p, g, first, second, first_absmax, second_absmax in moments:
            bnb.optimizer_update_8bit_blockwise(
                "adam", g, p, first, second, 0.9, 0.999, 0.0, 0.0, 1e-8, 10, 1e-4, *levels,
                first_absmax, second_absmax, weight_decay=0.01,
            )  # fmt: skip

    count = sum(each.parameter.numel() for each in moments)
    yield Case(
        f"8-bit AdamW of {len(moments)} adapter matrices", lambda: together(moments, levels, rates),
        16 * count, 0, {"bitsandbytes": one_by_one},
    )  # fmt: skip


def tune() -> None:
    """Times a few block shapes of the kernels whose best is not obvious."""
    # Modules, not the functions of the same names that the package shows.
    cross_entropy, dequantize, glu = (
        importlib.import_module(f"sloth_nb_kernels.{name}") for name in ("cross_entropy", "dequantize", "glu")
    )
    x = randn(1024, VOCAB)
    targets = torch.randint(0, VOCAB, (1024,), device="cuda")
    grad, kept = torch.empty_like(x), cross_entropy.vocab_tile
    for block in (2048, 4096, 8192, 16384, 32768):
        for warps in (4, 8, 16, 32):
            cross_entropy.vocab_tile = lambda vocab, b=block, n=warps: {"BLOCK": b, "num_warps": n}
            ms = milliseconds(lambda: K.cross_entropy_forward(x, targets, grad_out=grad))
            print(f"cross-entropy block {block} warps {warps}: {ms * 1e3:.0f} us", flush=True)
    cross_entropy.vocab_tile = kept
    if bnb:
        packed, state = bnb.quantize_4bit(randn(FFN, HIDDEN), quant_type="nf4", compress_statistics=True)
        out, kept = torch.empty(FFN, HIDDEN, dtype=torch.bfloat16, device="cuda"), dequantize._WORDS
        for words in (128, 256, 512, 1024, 2048):
            dequantize._WORDS = words
            ms = milliseconds(lambda: K.dequantize_nf4(packed, state, out=out))
            print(f"NF4 {FFN}x{HIDDEN} words {words}: {ms * 1e3:.1f} us", flush=True)
        dequantize._WORDS = kept
    gate, up = K.split_gate_up(randn(T, 2 * FFN))
    h, kept = torch.empty(T, FFN, dtype=torch.bfloat16, device="cuda"), glu._BLOCK
    for block in (512, 1024, 2048, 4096):
        glu._BLOCK = block
        ms = milliseconds(lambda: K.glu_forward(gate, up, out=h))
        back = milliseconds(lambda: K.glu_backward(h, gate, up, dgate=gate, dup=up, h=h))
        gate.normal_()
        print(f"SwiGLU block {block}: forward {ms * 1e3:.1f} us, backward {back * 1e3:.1f} us", flush=True)
    glu._BLOCK = kept


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile's code out (its making is slow)"
    )
    parser.add_argument("--tune", action="store_true", help="time block shapes instead")
    parser.add_argument("--json", help="also write the results to this file, one object a line")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    if chosen.tune:
        tune()
        return
    moved, multiplied = ceilings()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}; ceilings: "
        f"{moved / 1e9:.2f} TB/s, {multiplied / 1e9:.0f} TFLOP/s\n\n"
        "| kernel | µs | of the ceiling | others, times slower |\n| --- | --- | --- | --- |",
        flush=True,
    )
    by, lines = Contestants(not chosen.no_compile), []
    for group in (norms, rotations, gates, losses, weights, adapters, optimisers):
        for case in group(by):
            if chosen.only not in case.name:
                continue
            ours = milliseconds(case.ours)
            share = max(case.bytes / moved, case.flops / multiplied) / ours
            others = {}
            for name, fn in case.others.items():
                try:
                    others[name] = milliseconds(fn)
                except Exception as problem:  # a peer that can't do the case must not end the bench
                    print(f"<!-- {case.name}, {name}: {type(problem).__name__}: {str(problem)[:200]} -->")
            compared = " · ".join(f"{name} {ms / ours:.2f} ×" for name, ms in others.items())
            print(f"| {case.name} | {ours * 1e3:.1f} | {share:.0%} | {compared} |", flush=True)
            lines.append({"kernel": case.name, "ms": ours, "share": share, "others_ms": others})
        torch.cuda.empty_cache()
    if chosen.json:
        with open(chosen.json, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
