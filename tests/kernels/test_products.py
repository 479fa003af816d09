"""Products with a wider result: fp32 from 16-bit operands, scaled, and added to what is there."""

import pytest
import torch
from sloth_nb_kernels.products import product


@pytest.mark.parametrize("wide", [True, False], ids=["fp32", "same"])
@pytest.mark.parametrize("add", [True, False], ids=["added", "new"])
def test_it_is_the_scaled_product_added_or_alone(randn, assert_close, device, dtype, wide, add):
    a, b = randn(37, 64, dtype=dtype), randn(64, 24, dtype=dtype)
    result = torch.float32 if wide else dtype
    before = randn(37, 24, dtype=result)
    out = before.clone() if add else torch.full_like(before, float("nan"))
    got = product(a, b, result, alpha=0.5, out=out, add=add)
    assert got.data_ptr() == out.data_ptr()
    want = 0.5 * (a.double() @ b.double())
    scale = 0.5 * (a.double().abs() @ b.double().abs())
    if add:
        want, scale = want + before.double(), scale + before.double().abs()
    # A CPU has no product of 16-bit operands in fp32: there the part is rounded to the operands' dtype.
    rounded = scale if device == "cuda" or dtype is torch.float32 or not wide else None
    if rounded is None:
        assert ((got.double() - want).abs() <= 2 * torch.finfo(dtype).eps * scale).all()
    else:
        assert_close(got, want, scale, roundings=2, slack=64)


def test_without_out_it_makes_its_own(randn):
    a, b = randn(3, 8), randn(8, 5)
    assert torch.equal(product(a, b, torch.float32), a @ b)


def test_a_planted_fault_is_found(randn, assert_close, device, dtype):
    """A factor of 0.6 for 0.5, and a depth an eighth short."""
    a, b = randn(37, 64, dtype=dtype), randn(64, 24, dtype=dtype)
    want, scale = 0.5 * (a.double() @ b.double()), 0.5 * (a.double().abs() @ b.double().abs())
    for wrong in (product(a, b, dtype, alpha=0.6), product(a[:, :-8], b[:-8], dtype, alpha=0.5)):
        with pytest.raises(AssertionError):
            assert_close(wrong, want, scale, roundings=2, slack=64)
