"""Gradients that one product writes for several parameters: into their own buffers where those lie in a row."""

import pytest
import torch

from sloth_nb.engine.grads import Grads, buffers_for


def parameters_of(*shapes):
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]


def adapters(rank=4):
    """Of two projections of one input, A and B, then of a narrower one."""
    return parameters_of((rank, 24), (12, rank), (rank, 24), (20, rank), (rank, 8), (7,))


@pytest.mark.parametrize("tiles", [1, 3])
@pytest.mark.parametrize("in_a_row", [True, False], ids=["in a row", "anywhere"])
@pytest.mark.parametrize("wanted", ["all", "the first only"])
def test_stacked_gradients_reach_their_parameters_and_their_buffers(tiles, in_a_row, wanted):
    torch.manual_seed(0)
    everything = adapters()
    stacked = [everything[0], everything[2]]
    trained = everything if wanted == "all" else everything[:2]
    into = buffers_for(trained) if in_a_row else [torch.empty_like(p, requires_grad=False) for p in trained]
    for buffer in into:
        buffer.fill_(torch.nan)
    grads = Grads(trained, into)
    dt, x = torch.randn(9, 8), torch.randn(9, 24)
    for rows in torch.arange(9).chunk(tiles):
        grads.add_stacked(stacked, dt[rows], x[rows])
    grads.settle()
    for parameter, exact in zip(stacked, (dt.T @ x).split(4), strict=True):
        if parameter is stacked[1] and wanted != "all":
            continue
        i = next(i for i, p in enumerate(trained) if p is parameter)
        assert torch.allclose(grads.result()[i], exact, atol=1e-5)
        assert grads.result()[i].data_ptr() == into[i].data_ptr()
    untouched = [g for g, p in zip(grads.result(), trained, strict=True) if all(p is not s for s in stacked)]
    assert untouched == [None] * len(untouched)


def test_what_lies_in_a_row_is_written_without_a_copy(monkeypatch):
    everything = adapters()
    grads = Grads(everything, buffers_for(everything))
    monkeypatch.setattr(torch, "_foreach_copy_", None)
    grads.add_stacked([everything[0], everything[2]], torch.randn(5, 8), torch.randn(5, 24))
    grads.settle()
    assert grads.result()[2].isfinite().all()


def test_each_has_a_buffer_of_its_own_like_it_and_aligned_as_optimisers_read_it():
    odd = parameters_of((1, 3), (3, 3), (4, 4), (8, 4), (5,), (2, 2, 2))
    buffers = buffers_for(odd)
    for i, (parameter, buffer) in enumerate(zip(odd, buffers, strict=True)):
        assert buffer.shape == parameter.shape and buffer.is_contiguous() and not buffer.requires_grad
        assert buffer.data_ptr() % 16 == 0
        buffer.fill_(i)
    assert all((buffer == i).all() for i, buffer in enumerate(buffers))
