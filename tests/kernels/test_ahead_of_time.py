"""Every kernel compiles for every card we serve, on a machine without one: within its shared memory, and
without tensor-core products where Triton no longer makes them (below 8.0).

The dispatchers run on meta tensors of real models' shapes while their launches are recorded, so what is
compiled
is what a card would be given: the same types, block shapes and warps.
"""

import importlib
import pkgutil
from types import SimpleNamespace

import pytest
import sloth_nb_kernels as K
import torch

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(K.INTERPRETED, reason="interpreted kernels are not compiled")

SHARED = {70: 96, 75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may have
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64"}
TYPES |= {torch.uint8: "u8", torch.int8: "i8", torch.int32: "i32"}
MODULES = [importlib.import_module(f"sloth_nb_kernels.{m.name}") for m in pkgutil.iter_modules(K.__path__)]


@pytest.fixture
def launches(monkeypatch):
    recorded = []
    for module in MODULES:
        for name, stand_in in (
            ("launch", lambda kernel, grid, *args, **meta: recorded.append((kernel, args, meta))),
            ("runs_triton", lambda x: True),
            ("programs", lambda x, tiles: max(1, min(tiles, 528))),
        ):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stand_in)
    return recorded


def meta(*shape, dtype):
    return torch.empty(*shape, dtype=dtype, device="meta")


def run_everything(dtype):
    """Each operation once or more, at shapes of Llama-3.1-8B, Qwen3, Gemma 2 and 3, Phi and OLMo."""
    f32, ids = torch.float32, meta(4096, dtype=torch.int64)
    for n in (128, 16384):
        x, w = meta(4096, n, dtype=dtype), meta(n, dtype=dtype)
        _, rstd = K.rms_norm_forward(x, w, 1e-5, zero_centred=n == 128)
        K.rms_norm_backward(x, x, w, rstd, residual_grad=x)
        K.rms_norm_backward(x, x, w, rstd, weight_grad=True, zero_centred=n == 128)
    x, w = meta(4096, 4096, dtype=dtype), meta(4096, dtype=dtype)
    K.add_rms_norm_forward(x, x, w, 1e-5)
    K.rms_norm_forward(x, w, 1e-5, zero_centred=True, plus=x, out=x)
    _, mean, rstd = K.layer_norm_forward(x, w, w, 1e-5)
    K.layer_norm_backward(x, x, w, mean, rstd, weight_grad=True, residual_grad=x)
    gate, up = K.split_gate_up(meta(4096, 2 * 14336, dtype=dtype))
    K.glu_forward(gate, up, "silu")
    for activation in ("silu", "gelu", "gelu_tanh"):
        K.glu_backward(gate, gate, up, activation, dgate=gate, dup=up, h=gate)
    qkv, w = meta(4096, 6144, dtype=dtype), meta(128, dtype=dtype)
    q, k = qkv[:, :4096].view(4096, 32, 128), qkv[:, 4096:5120].view(4096, 8, 128)
    cos = meta(8192, 32, dtype=f32)  # partial: what the whole width does, and more
    K.rope_forward(q, k, cos, cos, ids)
    K.qk_norm_rope_forward(q, k, w, w, 1e-6, cos, cos, ids)
    K.qk_norm_rope_backward(q, k, q, k, w, w, 1e-6, cos, cos, ids, weight_grad=True)
    q, k, cos = meta(4096, 30, 96, dtype=dtype), meta(4096, 3, 96, dtype=dtype), meta(4096, 48, dtype=f32)
    K.rope_forward(q, k, cos, cos, q_out=q, k_out=k)  # nothing is a power of two
    logits = meta(4096, 128256, dtype=dtype)
    K.cross_entropy_forward(logits, ids, grad_out=logits, softcap=30.0, smoothing=0.1, statistics=True)
    hidden, head = meta(4096, 4096, dtype=dtype), meta(128256, 4096, dtype=dtype)
    saved = K.linear_log_probs_forward(hidden, head, ids, entropy=True, chunk_bytes=1 << 40)
    row = meta(4096, dtype=f32)
    K.linear_log_probs_backward(row, row, hidden, head, ids, saved, chunk_bytes=1 << 40)
    blocks = 4096 * 14336 // 64
    nested = SimpleNamespace(absmax=meta(blocks // 256, dtype=f32), code=meta(256, dtype=f32), blocksize=256)
    state = SimpleNamespace(
        absmax=meta(blocks, dtype=torch.uint8), code=meta(16, dtype=f32), blocksize=64, dtype=dtype,
        shape=torch.Size((4096, 14336)), offset=meta(1, dtype=f32), state2=nested,
    )  # fmt: skip
    K.dequantize_nf4(meta(blocks * 32, 1, dtype=torch.uint8), state)
    K.dequantize_nf4(
        meta(blocks * 32, 1, dtype=torch.uint8), state, out=meta(4096, 14368, dtype=dtype)[:, :14336]
    )
    K.dequantize_int8(meta(4096, 14336, dtype=torch.int8), row, dtype=dtype)
    a, b = meta(32, 14336, dtype=f32), meta(4096, 32, dtype=f32)
    part = K.Projection(meta(blocks * 32, 1, dtype=torch.uint8), state, a=a, b=b)
    for parts in (1, 2, 3):
        K.adapted_weight([part] * parts, meta(parts * 4128, 14336 + 128, dtype=dtype))
    K.host_rows(meta(128256, 4096, dtype=dtype), ids)
    codes, absmax, levels = meta(32, 4096, dtype=torch.uint8), meta(512, dtype=f32), meta(256, dtype=f32)
    for dtypes in ((f32, f32), (dtype, dtype)):
        weight, gradient = (meta(32, 4096, dtype=kind) for kind in dtypes)
        K.AdamW8bitStep()(
            [K.Moments(weight, gradient, codes, codes, absmax, absmax)], (levels, levels),
            K.Rates(1e-4, (0.9, 0.999), 1e-8, 0.0, 1),
        )  # fmt: skip


def compile_for(capability, kernel, args, meta):
    """What a launch with these arguments compiles, specialised as Triton would: ones and multiples of 16."""
    signature, constants, attributes = {}, {}, {}
    given = dict(zip(kernel.arg_names, args, strict=False)) | meta
    for i, name in enumerate(kernel.arg_names):
        value = given[name]
        if name in meta or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"
        if isinstance(value, torch.Tensor) or (name not in constants and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    options = {name: value for name, value in meta.items() if name not in kernel.arg_names}
    return triton.compile(source, target=target, options=options)


@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles_within_the_cards_limits(launches, capability):
    run_everything(torch.bfloat16 if capability >= 80 else torch.float16)
    for kernel, args, meta in launches:
        compiled = compile_for(capability, kernel, args, meta)
        assert compiled.asm["cubin"], kernel.__name__
        assert compiled.metadata.shared <= SHARED[capability] * 1024, kernel.__name__
        assert compiled.metadata.num_warps in (1, 2, 4, 8, 16), kernel.__name__
        if capability < 80:
            assert "tt.dot" not in compiled.asm["ttir"], f"{kernel.__name__} has a tl.dot on {capability}"


def test_no_kernel_is_left_out(launches):
    kernels = {
        value
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, triton.runtime.JITFunction) and name.endswith("_kernel")
    }
    run_everything(torch.bfloat16)
    assert {kernel for kernel, _, _ in launches} == kernels
