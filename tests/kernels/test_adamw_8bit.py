"""8-bit AdamW in one launch: every parameter as by itself, bitsandbytes' states and steps, odd sizes and addresses."""

import pytest
import torch
from sloth_nb_kernels import AdamW8bitStep, Moments, Rates, adamw_8bit_reference
from sloth_nb_kernels.adamw_8bit import BLOCK

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SIZES = [(1,), (3, 85), (256,), (2049,), (32, 576), (7, 4096)]


def tables_on(device):
    functional = pytest.importorskip("bitsandbytes.functional")
    maps = functional.create_dynamic_map(signed=True), functional.create_dynamic_map(signed=False)
    return tuple(table.to(device) for table in maps)


def fresh(shape, device, dtype, gradients=torch.float32, seed=0):
    """A parameter as it is before its first step."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    blocks = -(-count // BLOCK)
    parameter, gradient = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    codes = (torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(2))
    absmax = (torch.zeros(blocks, device=device) for _ in range(2))
    return Moments(parameter.to(dtype), (gradient * 1e-3).to(gradients), *codes, *absmax)


def copied(moments):
    return Moments(*(tensor.clone() for tensor in moments))


def assert_same_step(got, want, before):
    """A quotient that falls half-way between two codes may be rounded to either; everything else is arithmetic of a
    few roundings in fp32, and one to the parameter's dtype. A first moment may cancel, so that it is the learning
    rate, which bounds what changes, that its roundings are measured by."""
    for name in ("first_absmax", "second_absmax"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=4e-7, atol=0)
    for name in ("first", "second"):
        apart = (getattr(got, name).int() - getattr(want, name).int()).abs()
        assert apart.max() <= 1 and apart.float().sum() <= 1 + 1e-3 * apart.numel()
    change = (want.parameter.double() - before.parameter.double()).abs()
    bound = torch.finfo(got.parameter.dtype).eps * want.parameter.double().abs()
    bound += 1e-6 * (change + OPTIONS["lr"])
    assert ((got.parameter.double() - want.parameter.double()).abs() <= bound).all()


def with_new_gradients(moments, step):
    generator = torch.Generator().manual_seed(100 + step)
    noise = torch.randn(moments.gradient.shape, generator=generator) * 1e-3
    return moments._replace(gradient=noise.to(moments.gradient.device, moments.gradient.dtype))


@pytest.mark.parametrize("gradients", [None, torch.float32], ids=["own dtype", "fp32 gradients"])
def test_many_parameters_step_as_each_does_by_itself(device, dtype, gradients):
    tables, together = tables_on(device), AdamW8bitStep()
    many = [fresh(shape, device, dtype, gradients or dtype, seed=i) for i, shape in enumerate(SIZES)]
    for step in range(1, 4):
        many = [with_new_gradients(each, step) for each in many]
        before, alone = [copied(each) for each in many], [copied(each) for each in many]
        together(many, tables, Rates(**OPTIONS, step=step))
        for got, want, old in zip(many, alone, before, strict=True):
            adamw_8bit_reference(want, tables, Rates(**OPTIONS, step=step))
            assert_same_step(got, want, old)


def test_a_step_is_bitsandbytes_own(device, dtype):
    bnb = pytest.importorskip("bitsandbytes")
    tables, ours = tables_on(device), AdamW8bitStep()
    moments = fresh((48, 300), device, dtype, dtype)
    weight = torch.nn.Parameter(moments.parameter.clone())
    # Its CPU code lets weights decay before the step, its CUDA code after: alike where they don't. And its CPU code
    # takes a code near by, not always the nearest.
    options = OPTIONS if device == "cuda" else {**OPTIONS, "weight_decay": 0.0}
    theirs = bnb.optim.AdamW8bit([weight], **options)
    for step in range(1, 6):
        moments = with_new_gradients(moments, step)
        weight.grad = moments.gradient.clone()
        before = copied(moments)
        theirs.step()
        ours([moments], tables, Rates(**options, step=step))
        state = theirs.state[weight]
        assert torch.equal(state["qmap1"], tables[0]) and torch.equal(state["qmap2"], tables[1])
        want = Moments(
            weight.detach(), weight.grad, state["state1"], state["state2"], state["absmax1"], state["absmax2"]
        )
        expected = want if device == "cuda" else want._replace(first=moments.first, second=moments.second)
        assert_same_step(moments, expected, before)
        moments = copied(want)  # from the same codes again


def test_addresses_that_change_or_are_not_aligned_are_followed(device):
    tables, ours = tables_on(device), AdamW8bitStep()
    moments = fresh((64, 100), device, torch.float32)
    wide = torch.zeros(64 * 100 + 1, device=device)
    for step, gradient in enumerate(
        (moments.gradient, wide[1:].view(64, 100), moments.gradient * 2), start=1
    ):
        moments = moments._replace(gradient=gradient.copy_(moments.gradient))
        before, alone = copied(moments), copied(moments)
        ours([moments], tables, Rates(**OPTIONS, step=step))
        adamw_8bit_reference(alone, tables, Rates(**OPTIONS, step=step))
        assert_same_step(moments, alone, before)


def test_a_gradient_that_is_not_finite_leaves_its_parameter_and_clears_its_moments(device):
    tables, ours = tables_on(device), AdamW8bitStep()
    moments = fresh((4, 256), device, torch.float32)
    ours([moments], tables, Rates(**OPTIONS, step=1))
    moments.gradient[1, 3], moments.gradient[2, 5] = float("nan"), float("-inf")
    before = copied(moments)
    ours([moments], tables, Rates(**OPTIONS, step=2))
    same = moments.parameter == before.parameter
    assert same[1, 3] and same[2, 5] and same.sum() == 2
    assert moments.first_absmax.isfinite().all() and moments.second_absmax.isfinite().all()
    for codes, levels in ((moments.first, tables[0]), (moments.second, tables[1])):
        assert levels[codes[1, 3].int()] == 0 and levels[codes[2, 5].int()] == 0


def test_a_moment_keeps_its_sign_however_small(device):
    tables, ours = tables_on(device), AdamW8bitStep()
    moments = fresh((1, 256), device, torch.float32)
    moments.gradient.fill_(-1e-12)[0, 0] = 1.0
    ours([moments], tables, Rates(**OPTIONS, step=1))
    levels = tables[0][moments.first.int()]
    assert levels[0, 0] > 0 and (levels[0, 1:] < 0).all()


def test_nothing_to_do_is_done(device):
    tables = tables_on(device)
    AdamW8bitStep()([], tables, Rates(**OPTIONS, step=1))
    AdamW8bitStep()([fresh((0, 4), device, torch.float32)], tables, Rates(**OPTIONS, step=1))


def test_a_planted_fault_is_found(device):
    """Of a wrong table, a moment that isn't corrected for its start, a decay left out: each is seen."""
    tables = tables_on(device)
    moments = fresh((16, 256), device, torch.float32)
    before, want = copied(moments), copied(moments)
    adamw_8bit_reference(want, tables, Rates(**OPTIONS, step=1))
    faults = [(tables[::-1], OPTIONS, 1), (tables, OPTIONS, 2), (tables, {**OPTIONS, "weight_decay": 0.0}, 1)]
    for wrong, options, step in faults:
        got = copied(moments)
        AdamW8bitStep()([got], wrong, Rates(**options, step=step))
        with pytest.raises(AssertionError):
            assert_same_step(got, want, before)
