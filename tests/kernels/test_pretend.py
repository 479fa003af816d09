"""A pretended card: every buffer is made, nothing is launched, and nobody else notices."""

import threading

import torch
from sloth_nb_kernels.launch import capability, on_gpu, pretend, runs_triton
from sloth_nb_kernels.linear_cross_entropy import linear_cross_entropy_forward
from sloth_nb_kernels.rms_norm import rms_norm_forward
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class Made(TorchDispatchMode):
    """The sizes of all tensors that operations return."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.shapes.append((tuple(out.shape), out.dtype))
        return out


def test_an_operation_on_fake_tensors_makes_what_its_kernel_would_fill_and_no_more():
    with FakeTensorMode(), pretend((9, 0)):
        x, weight = torch.empty(64, 128, dtype=torch.bfloat16), torch.empty(128, dtype=torch.bfloat16)
        with Made() as made:
            y, rstd = rms_norm_forward(x, weight, 1e-6)
    assert y.dtype is torch.bfloat16 and rstd.dtype is torch.float32
    wide = [shape for shape, dtype in made.shapes if dtype is torch.float32 and len(shape) > 1]
    assert not wide, "the torch path would have made x in fp32"


def test_the_loss_computes_all_rows_as_on_a_gpu():
    with FakeTensorMode(), pretend((9, 0)):
        hidden, weight = torch.empty(32, 16, dtype=torch.bfloat16), torch.empty(64, 16, dtype=torch.bfloat16)
        result = linear_cross_entropy_forward(hidden, weight, torch.zeros(32, dtype=torch.int64))
    assert result.loss.shape == () and result.hidden_grad.shape == hidden.shape


def test_it_ends_with_its_block_and_is_this_threads_alone():
    x = torch.zeros(1)
    seen = []
    before = runs_triton(x)
    with pretend((7, 5)):
        assert on_gpu(x) and runs_triton(x) and capability(x) == (7, 5)
        other = threading.Thread(target=lambda: seen.append(on_gpu(x)))
        other.start()
        other.join()
    with pretend((6, 0)):
        assert not runs_triton(x)
    assert seen == [False] and not on_gpu(x) and runs_triton(x) == before
