"""Rows of a matrix in host memory: exactly torch's own embedding, on the device that asks."""

import pytest
import torch
from sloth_nb_kernels import host_rows, host_rows_reference, runs_triton


def matrix_for(device, dtype, *shape):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    return values.pin_memory() if device == "cuda" else values


@pytest.mark.parametrize("width", [1, 64, 2049, 5120])
def test_rows_are_those_of_the_matrix_wherever_they_are_asked_for(device, dtype, width):
    matrix = matrix_for(device, dtype, 300, width)
    rows = torch.randint(0, 300, (3, 43), generator=torch.Generator().manual_seed(4)).to(device)
    got = host_rows(matrix, rows)
    assert got.device.type == device and got.dtype == dtype
    assert torch.equal(got.cpu(), matrix[rows.cpu()]) and torch.equal(got, host_rows_reference(matrix, rows))


def test_rows_may_lie_apart_come_as_int32_or_be_none_at_all(device):
    wide = matrix_for(device, torch.float32, 50, 96)
    rows = torch.tensor([[49, 0], [7, 7]], dtype=torch.int32, device=device)
    assert torch.equal(host_rows(wide[:, :80], rows.t()).cpu(), wide[:, :80][rows.t().cpu().long()])
    assert host_rows(wide, rows[:0]).shape == (0, 2, 96)


def test_a_row_that_is_not_there_is_nan_from_a_kernel_and_an_error_from_torch(device):
    matrix = matrix_for(device, torch.float32, 20, 64)
    rows = torch.tensor([3, 20, -1], device=device)
    if runs_triton(rows):
        assert host_rows(matrix, rows).isnan().all(1).tolist() == [False, True, True]
    else:
        with pytest.raises(IndexError):
            host_rows(matrix, rows)


@pytest.mark.gpu
def test_a_captured_gather_follows_its_ids():
    matrix = matrix_for("cuda", torch.bfloat16, 1000, 4096)
    rows = torch.zeros(2, 64, dtype=torch.int64, device="cuda")
    host_rows(matrix, rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = host_rows(matrix, rows)
    rows.copy_(torch.randint(0, 1000, (2, 64)))
    graph.replay()
    assert torch.equal(out.cpu(), matrix[rows.cpu()])


@pytest.mark.gpu
def test_memory_that_a_device_can_not_read_is_refused():
    with pytest.raises(ValueError, match="pin_memory"):
        host_rows(torch.zeros(4, 8), torch.zeros(2, dtype=torch.int64, device="cuda"))


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"\(count, width\)"):
        host_rows(torch.zeros(4), torch.zeros(2, dtype=torch.int64))


def test_a_planted_fault_is_found(device):
    matrix = matrix_for(device, torch.float32, 20, 64)
    rows = torch.arange(10, device=device)
    assert not torch.equal(host_rows(matrix, rows + 1).cpu(), matrix[rows.cpu()])
