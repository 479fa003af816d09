"""How often a group of projections rounds to 16 bits what it computes."""

import pytest
import torch
from torch import nn

from sloth_nb.engine.linear import Group
from sloth_nb.engine.projection import Projection

TOKENS, IN, RANK = 64, 256, 8
# Rounding to bf16 once, where values are spread evenly over their binades: 2^-8 / sqrt(12) of them, times 1.02 to 1.5.
ONCE = 2.0e-3


def group(outs=(96, 64), adapted=(True, True)):
    """bf16 projections of one input, some of them with adapters that contribute a tenth."""
    torch.manual_seed(0)
    projections = []
    for out, has in zip(outs, adapted, strict=True):
        base = nn.Linear(IN, out, bias=False, dtype=torch.bfloat16)
        a = nn.Parameter(torch.randn(RANK, IN) / IN**0.5) if has else None
        b = nn.Parameter(torch.randn(out, RANK) * 0.02) if has else None
        projections.append(Projection("p", base, "dense", out, IN, a, b, scaling=0.5))
    made = Group(projections)
    copies, sources = made.low_rank_targets(torch.empty(0, dtype=torch.bfloat16))
    for copy, source in zip(copies, sources, strict=True):
        copy.copy_(source)
    return made


def exact(made, x):
    """Each projection's output in float64, of the adapters as they are in bf16."""
    outs = []
    for p in made.projections:
        y = x.double() @ p.base.weight.double().t()
        if p.rank:
            a, b = (factor.detach().bfloat16().double() for factor in (p.lora_a, p.lora_b))
            y += p.scaling * (x.double() @ a.t()) @ b.t()
        outs.append(y)
    return torch.cat(outs, 1)


def off(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("adapted", [(True, True), (True, False), (False, False)])
def test_an_output_with_what_adapters_add_is_rounded_once(adapted):
    made = group(adapted=adapted)
    x = torch.randn(TOKENS, IN).bfloat16()
    garbage = torch.full((TOKENS, made.out_features), float("nan"), dtype=torch.bfloat16)
    y, _ = made.forward(x, made.weights(torch.bfloat16), out=garbage)
    assert off(y, exact(made, x).detach()) < ONCE


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("adapted", [(True,), (False,)])
def test_a_residual_is_added_wherever_it_lies(adapted, in_place):
    made = group(outs=(IN,), adapted=adapted)
    x, residual = torch.randn(TOKENS, IN).bfloat16(), torch.randn(TOKENS, IN).bfloat16()
    before = residual.clone()
    out = residual if in_place else torch.full_like(residual, float("nan"))
    y, _ = made.forward(x, made.weights(torch.bfloat16), residual=residual, out=out)
    assert y is out and off(y, (exact(made, x) + before.double()).detach()) < 1.5 * ONCE
    assert in_place or torch.equal(residual, before)


@pytest.mark.parametrize("adapted", [(True, True), (False, False)])
def test_an_inputs_gradient_rounds_no_more_often_than_there_are_projections(adapted):
    made = group(adapted=adapted)
    dy = torch.randn(TOKENS, made.out_features).bfloat16()
    dt = made.backward_low_rank(dy, made.weights(torch.bfloat16))
    dx = made.backward_input(dy, dt, made.weights(torch.bfloat16))
    wanted = sum(
        dy[:, rows].double() @ p.base.weight.double()
        for p, rows in zip(made.projections, made._rows, strict=True)
    )
    if dt is not None:
        wanted = wanted + dt.double() @ made.a.double()
    assert off(dx, wanted.detach()) < ONCE * len(made.projections) ** 0.5
