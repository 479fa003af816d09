"""Attention on a CPU: keys that several queries share."""

import pytest
import torch

from sloth_nb.engine.attention import HostFlash
from sloth_nb.engine.sequences import Sequences


@pytest.mark.parametrize("window", [None, 5])
def test_keys_laid_out_for_each_query_give_what_shared_ones_give(window):
    """As before torch 2.11, whose kernel doesn't know of groups."""
    groups, kv_heads, dim, seqs = 3, 2, 16, Sequences(2, 24)
    torch.manual_seed(0)
    q, dout = (torch.randn(seqs.tokens, groups * kv_heads, dim) for _ in range(2))
    k, v = (torch.randn(seqs.tokens, kv_heads, dim) for _ in range(2))
    results = []
    for laid_out in (groups, 1):
        kernel = HostFlash(dim**-0.5, laid_out, window)
        out, extra = kernel.forward(q, k, v, seqs)
        results.append((out, *kernel.backward(dout.view_as(q), q, k, v, out, extra, seqs)))
    for repeated, shared in zip(*results, strict=True):
        torch.testing.assert_close(repeated, shared, rtol=1e-5, atol=1e-5)
