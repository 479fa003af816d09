"""LoRA over every base against float64 autograd, peft's own layers, and the composition of its parts."""

from dataclasses import replace

import pytest
import torch
from sloth_nb_kernels import (
    Projection,
    dora_linear,
    lora_backward,
    lora_forward,
    lora_linear,
    lora_mlp,
    lora_mlp_reference,
    lora_projections,
    lora_reference,
)
from torch.nn import functional as F

PARTS = ("weight", "bias", "a", "b", "b_bias")


def projection(randn, out, width, dtype=torch.float32, rank=4, bias=False, b_bias=False, **given):
    return Projection(
        weight=randn(out, width, dtype=dtype, scale=width**-0.5),
        bias=randn(out, dtype=dtype) if bias else None,
        a=randn(rank, width, dtype=dtype, scale=width**-0.5) if rank else None,
        b=randn(out, rank, dtype=dtype) if rank else None,
        b_bias=randn(out, dtype=dtype) if b_bias else None,
        scale=0.5,
        **given,
    )


def trained(p, dtype=None, device=None):
    """The same projection with leaves of its own: everything floating is trained."""
    parts = {name: getattr(p, name) for name in PARTS if getattr(p, name) is not None}
    if p.quantised is not None:
        parts.pop("weight")
    leaves = {
        name: t.to(device or t.device, dtype or t.dtype).clone().requires_grad_() for name, t in parts.items()
    }
    return replace(p, **leaves), list(leaves.values())


def near(got, want, dtype, ulps=8):
    """Relative to the largest element: products sum in fp32, each of three or so results rounds to the
    dtype."""
    error = (got.double().cpu() - want.double().cpu()).abs().max()
    return bool(
        error <= ulps * max(torch.finfo(dtype).eps, 2.0**-22) * want.abs().max().clamp(min=1e-3).cpu()
    )


KINDS = {
    "plain": [{}],
    "base bias, LoRA bias": [{"bias": True, "b_bias": True}],
    "qkv": [{"bias": True}, {"rank": 8}, {}],
    "one without adapter": [{}, {"rank": 0}, {"rank": 2}],
}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_outputs_and_every_gradient_match_float64(randn, device, dtype, kinds):
    x = randn(3, 5, 48, dtype=dtype)
    given = [projection(randn, 32 + 8 * i, 48, dtype, **kind) for i, kind in enumerate(kinds)]
    dys = [randn(3, 5, 32 + 8 * i, dtype=dtype) for i in range(len(kinds))]
    leaf, pairs = x.clone().requires_grad_(), [trained(p) for p in given]
    ys = lora_projections(leaf, [p for p, _ in pairs])
    grads = torch.autograd.grad(ys, [leaf, *(t for _, leaves in pairs for t in leaves)], dys)
    wide_leaf, wide = x.double().cpu().requires_grad_(), [trained(p, torch.float64, "cpu") for p in given]
    want = [lora_reference(wide_leaf, p) for p, _ in wide]
    want_grads = torch.autograd.grad(
        want, [wide_leaf, *(t for _, leaves in wide for t in leaves)], [dy.double().cpu() for dy in dys]
    )
    for got, exact in zip((*ys, *grads), (*want, *want_grads), strict=True):
        assert got.dtype == dtype and near(got.detach(), exact.detach(), dtype)


@pytest.mark.parametrize("rows", [0, 1, 127, 2049])
def test_any_number_of_rows_matches_float64(randn, device, dtype, rows):
    x, dy = randn(rows, 48, dtype=dtype), randn(rows, 33, dtype=dtype)
    p = projection(randn, 33, 48, dtype, rank=3)
    (ours, leaves), leaf = trained(p), x.clone().requires_grad_()
    y = lora_linear(leaf, ours)
    grads = torch.autograd.grad(y, [leaf, *leaves], dy)
    (exact, exact_leaves), wide = trained(p, torch.float64, "cpu"), x.double().cpu().requires_grad_()
    want = lora_reference(wide, exact)
    want_grads = torch.autograd.grad(want, [wide, *exact_leaves], dy.double().cpu())
    for got, exactly in zip((y, *grads), (want, *want_grads), strict=True):
        assert got.shape == exactly.shape
        assert rows == 0 or near(got.detach(), exactly.detach(), dtype)


def test_fp32_adapters_over_16_bit_rows_get_fp32_gradients(randn, device):
    x, p = randn(4, 48, dtype=torch.bfloat16), projection(randn, 32, 48)
    p, leaves = trained(replace(p, weight=p.weight.bfloat16()))
    y = lora_linear(x, p)
    grads = torch.autograd.grad(y.float().sum(), leaves)
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_bases_are_their_dequantised_selves(randn, device, dtype, kind):
    functional = pytest.importorskip("bitsandbytes.functional")
    p = projection(randn, 32, 64, dtype)
    if kind == "nf4":
        weight, state = functional.quantize_4bit(p.weight, quant_type="nf4", compress_statistics=True)
    else:
        state = p.weight.float().abs().amax(1)
        weight = (p.weight.float() * 127 / state[:, None]).round().to(torch.int8)
    p = replace(p, weight=weight, quantised=state)
    dense = replace(p, weight=p.dense(dtype), quantised=None)
    assert p.out_features == 32 and dense.weight.shape == (32, 64)
    x, dy, results = randn(5, 64, dtype=dtype), randn(5, 32, dtype=dtype), []
    for q in (p, dense):
        (q, leaves), leaf = trained(q), x.clone().requires_grad_()
        y = lora_linear(leaf, q)
        results.append([y, *torch.autograd.grad(y, [leaf, *leaves[-2:]], dy)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_outputs_go_into_columns_of_one_buffer(randn, device):
    x = randn(6, 48)
    pair = [projection(randn, 32, 48, bias=True), projection(randn, 16, 48)]
    want, _ = lora_forward(x, pair)
    buffer = torch.zeros(6, 48, device=device)
    got, saved = lora_forward(x, pair, outs=[buffer[:, :32], buffer[:, 32:]])
    assert torch.equal(buffer, torch.cat(want, 1)) and got[0].data_ptr() == buffer.data_ptr()
    dx = torch.empty_like(x)
    out, grads = lora_backward([buffer[:, :32], buffer[:, 32:]], x, pair, saved, out=dx)
    assert out is dx and grads[0].weight is None and grads[0].a.shape == (4, 48)
    none, _ = lora_backward([buffer[:, :32], buffer[:, 32:]], x, pair, saved, input_grad=False)
    assert none is None


def test_dropout_is_the_composition_with_the_same_draws(randn, device):
    x, dy = randn(7, 48), randn(7, 32)
    p, leaves = trained(projection(randn, 32, 48, bias=True, b_bias=True, dropout=0.4))

    def composed(x, p):
        low_rank = F.linear(F.dropout(x, p.dropout), p.a)
        return F.linear(x, p.weight, p.bias) + p.scale * F.linear(low_rank, p.b, p.b_bias)

    results = []
    for fn in (lora_linear, composed):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        y = fn(leaf, p)
        results.append([y, *torch.autograd.grad(y, [leaf, *leaves], dy)])
    for a, b in zip(*results, strict=True):
        assert near(a.detach(), b.detach(), torch.float32, 16)
    assert not near(lora_linear(x, p), results[0][0].detach(), torch.float32, 16)  # other draws


def test_dropout_of_everything_leaves_the_base(randn, device):
    x, p = randn(7, 48), projection(randn, 32, 48, dropout=1.0)
    assert torch.equal(lora_linear(x, p), lora_linear(x, replace(p, a=None, b=None)))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_mlp_matches_its_composition_and_runs_backward_once(randn, device, activation, dropout):
    x, dy = randn(2, 3, 48), randn(2, 3, 48)
    shapes = (80, 48), (80, 48), (48, 80)
    pairs = [trained(projection(randn, *shape, bias=True, dropout=dropout)) for shape in shapes]
    projections, leaves = [p for p, _ in pairs], [t for _, ts in pairs for t in ts]

    def composed(x):
        if not dropout:
            return lora_mlp_reference(x, *projections, activation)
        act = F.silu if activation == "silu" else lambda t: F.gelu(t, approximate="tanh")
        gate, up = lora_projections(x, projections[:2])
        return lora_linear(act(gate) * up, projections[2])

    results = []
    for fn in (lambda x: lora_mlp(x, *projections, activation), composed):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        y = fn(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, *leaves], dy, retain_graph=True)])
        if len(results) == 1:
            with pytest.raises(RuntimeError, match="run the forward again"):
                torch.autograd.grad(y, leaf, dy)
    for a, b in zip(*results, strict=True):
        assert near(a.detach(), b.detach(), torch.float32, 32)


@pytest.mark.parametrize(
    "options", [{}, {"lora_bias": True}, {"use_rslora": True}, {"use_dora": True}], ids=str
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_is_what_peft_computes(device, options, dropout):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(48, 32, bias=True)).to(device)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["0"], init_lora_weights=False, **options
    )
    layer = peft.get_peft_model(base, config).base_model.model[0].train()
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    p = Projection(
        layer.base_layer.weight, bias=layer.base_layer.bias, a=a.weight, b=b.weight, b_bias=b.bias,
        scale=layer.scaling["default"], dropout=dropout,
    )  # fmt: skip
    x, dy = torch.randn(5, 48, device=device), torch.randn(5, 32, device=device)
    leaves = [t for t in layer.parameters() if t.requires_grad]
    magnitude = layer.lora_magnitude_vector["default"].weight if options.get("use_dora") else None
    results = []
    for ours in (False, True):
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        y = (
            layer(leaf)
            if not ours
            else lora_linear(leaf, p)
            if magnitude is None
            else dora_linear(leaf, p, magnitude)
        )
        results.append([y, *torch.autograd.grad(y, [leaf, *leaves], dy)])
    for got, want in zip(results[1], results[0], strict=True):
        assert near(got.detach(), want.detach(), torch.float32, 32)


def test_parts_that_do_not_fit_are_refused():
    x, p = torch.ones(2, 48), Projection(torch.ones(32, 48), a=torch.ones(4, 48), b=torch.ones(32, 4))
    for bad, message in (
        (lambda: lora_linear(x, replace(p, b=None)), "both a and b"),
        (lambda: lora_linear(x[:, :40], p), r"weight \(32, 48\) does not take x \(2, 40\)"),
        (lambda: lora_linear(x, replace(p, b=torch.ones(32, 5))), r"a \(r, 48\) and b \(32, r\)"),
        (lambda: dora_linear(x, replace(p, a=None, b=None), torch.ones(32)), "needs an adapter"),
        (lambda: dora_linear(x, p, torch.ones(31)), r"magnitude must be \(32,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


def test_a_planted_fault_is_found(randn, device, dtype):
    """An adapter scaled twice is far outside what rounding allows."""
    x, p = randn(5, 48, dtype=dtype), projection(randn, 32, 48, dtype)
    want = lora_reference(x.double().cpu(), trained(p, torch.float64, "cpu")[0])
    assert near(lora_linear(x, p), want.detach(), dtype)
    assert not near(lora_linear(x, replace(p, scale=0.25)), want.detach(), dtype)


def test_a_planted_fault_in_the_mlp_or_in_dora_is_found(randn, device):
    x = randn(5, 48)
    gate, up, down = (projection(randn, *shape) for shape in ((80, 48), (80, 48), (48, 80)))
    want = lora_mlp_reference(x, gate, up, down, "silu")
    assert near(lora_mlp(x, gate, up, down, "silu"), want, torch.float32, 32)
    assert not near(lora_mlp(x, up, gate, down, "silu"), want, torch.float32, 32)
    lengths = (gate.weight + gate.scale * gate.b @ gate.a).norm(dim=1)
    want = lora_linear(x, gate)  # what DoRA is with the lengths that the rows have
    assert near(dora_linear(x, gate, lengths), want, torch.float32, 32)
    assert not near(dora_linear(x, gate, gate.weight.norm(dim=1)), want, torch.float32, 32)
