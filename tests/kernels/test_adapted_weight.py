"""A group's weight with its adapters around it: what one launch writes is what its parts are, in their places."""

import pytest
import torch
from sloth_nb_kernels import Projection, adapted_weight, adapted_weight_reference

# Rows of each projection, and the rank of its adapter: None where it has none.
GROUPS = {
    "one": [(192, 16)],
    "gate and up": [(130, 8), (126, 8)],
    "q, k and v": [(256, 8), (64, 24), (64, 8)],
    "k without an adapter": [(128, 8), (64, None), (64, 8)],
    "one row, rank 1": [(1, 1), (1, 2), (3, 1)],
    "four": [(64, 8)] * 4,
}


def projections(rows_and_ranks, columns, device, kind="nf4", nested=True, factors=torch.float32):
    functional = pytest.importorskip("bitsandbytes.functional")
    made, generator = [], torch.Generator().manual_seed(3)

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(device)

    for number, (rows, rank) in enumerate(rows_and_ranks):
        weight, state = randn(rows, columns), None
        if kind == "nf4":
            weight, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
        elif kind == "int8":
            weight, state = randn(rows, columns).mul_(30).to(torch.int8), randn(rows).abs()
        a = b = None
        if rank is not None:
            a, b = randn(rank, columns).to(factors), randn(rows, rank).to(factors)
        made.append(Projection(weight, state, a=a, b=b, scale=0.7 + number))
    return made


def buffer_for(parts, columns, dtype, device):
    rank = sum(0 if p.a is None else len(p.a) for p in parts)
    rows = sum(p.out_features for p in parts)
    return torch.full((rows + rank, columns + -(-rank // 64) * 64), -7.0, dtype=dtype, device=device)


def close(got, want, device):
    """Bit for bit; the interpreter truncates to bf16 where it should round, so there the neighbour will do."""
    if got.dtype is torch.bfloat16 and device == "cpu":
        return ((got.float() - want.float()).abs() <= want.float().abs() * 2.0**-7).all()
    return torch.equal(got, want)


def assert_filled(parts, out, columns, device):
    want = adapted_weight_reference(parts, out.dtype)
    rank = want.shape[1] - columns
    rows = len(want) - rank
    assert close(out[:rows, : columns + rank], want[:rows], device)
    assert close(out[:, :columns], want[:, :columns], device)
    assert out[:, columns + rank :].eq(-7).all() and out[rows:, columns:].eq(-7).all(), "wrote beyond"


@pytest.mark.parametrize("columns", [64, 1032])
@pytest.mark.parametrize("group", GROUPS)
def test_weights_and_factors_lie_in_their_places(device, dtype, group, columns):
    parts = projections(GROUPS[group], columns, device)
    out = buffer_for(parts, columns, dtype, device)
    assert adapted_weight(parts, out) is out
    assert_filled(parts, out, columns, device)


CASES = ["plain absmax", "16-bit factors", "rows that aren't words", "int8", "dense"]


@pytest.mark.parametrize("case", CASES)
def test_every_other_form_of_weight_and_factor_is_the_same(device, case):
    columns = 50 if case == "rows that aren't words" else 128
    parts = projections(
        GROUPS["gate and up"], columns, device, kind=case if case in ("int8", "dense") else "nf4",
        nested=case != "plain absmax", factors=torch.float16 if case == "16-bit factors" else torch.float32,
    )  # fmt: skip
    out = buffer_for(parts, columns, torch.float32, device)
    adapted_weight(parts, out)
    if case == "int8":  # two fp32 products, in another order
        want = adapted_weight_reference(parts, torch.float32)
        torch.testing.assert_close(out[:256, :144], want[:256], rtol=3e-7, atol=0)
        return
    assert_filled(parts, out, columns, device)


def test_parts_of_different_kinds_are_told_apart(device):
    parts = projections([(64, 8)], 128, device) + projections([(64, 8)], 128, device, nested=False)
    parts += projections([(64, 8)], 128, device, kind="dense")
    out = buffer_for(parts, 128, torch.float32, device)
    adapted_weight(parts, out)
    assert_filled(parts, out, 128, device)


def test_products_with_it_are_base_and_adapters_at_once(device):
    parts = projections(GROUPS["q, k and v"], 128, device)
    out = adapted_weight(parts, buffer_for(parts, 128, torch.float32, device)).double()
    x, dy = (torch.randn(5, n, device=device, dtype=torch.float64) for n in (128, 384))
    a, b = out[384:, :128], out[:384, 128:168]
    truth = [(p.dense(torch.float32).double() + p.scale * p.b.double() @ p.a.double()) for p in parts]
    truth = torch.cat(truth)
    tolerance = {"rtol": 1e-5, "atol": 1e-4}  # scale * B is rounded to fp32
    torch.testing.assert_close(torch.cat([x, x @ a.t()], 1) @ out[:384, :168].t(), x @ truth.t(), **tolerance)
    torch.testing.assert_close(torch.cat([dy, dy @ b], 1) @ out[:, :128], dy @ truth, **tolerance)


@pytest.mark.parametrize("fault", ["scale", "places"])
def test_a_planted_fault_is_found(device, fault):
    parts = projections(GROUPS["gate and up"], 128, device)
    out = buffer_for(parts, 128, torch.float32, device)
    adapted_weight(parts, out)
    if fault == "scale":
        out[0, 128] *= 1 + 2.0**-20
    else:
        out[:130, 128:136], out[:130, 136:144] = out[:130, 136:144].clone(), out[:130, 128:136].clone()
    with pytest.raises(AssertionError):
        assert_filled(parts, out, 128, device)


def test_a_buffer_that_does_not_fit_is_refused_with_the_size_it_needs():
    parts = projections(GROUPS["gate and up"], 128, "cpu")
    with pytest.raises(ValueError, match=r"out must be \(272, 144 or more\) .* got \(272, 143\)"):
        adapted_weight(parts, torch.empty(272, 143))
    with pytest.raises(ValueError, match="contiguous rows"):
        adapted_weight(parts, torch.empty(144, 272).t())


def test_a_weight_repacked_for_the_cpu_is_refused():
    parts = projections(GROUPS["one"], 128, "cpu")
    parts[0].quantised.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="train before any evaluation"):
        adapted_weight(parts, buffer_for(parts, 128, torch.float32, "cpu"))
