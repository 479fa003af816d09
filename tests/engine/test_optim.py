"""The optimiser that doesn't wait: bitsandbytes' own steps, bit for bit, and its checkpoints."""

import pytest
import torch

bnb = pytest.importorskip("bitsandbytes")

from sloth_nb_kernels.launch import launch  # noqa: E402

from sloth_nb.engine.optim import AdamW, AdamW8bit, without_waiting  # noqa: E402


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [(AdamW8bit, bnb.optim.AdamW8bit, {}), (AdamW, bnb.optim.AdamW, {"optim_bits": 8})],
)
def test_steps_are_bitsandbytes_own_and_its_checkpoints_go_on(ours, theirs, options):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(96, 64)) for _ in range(2)]
    for weight in weights[1:]:
        weight.data.copy_(weights[0].data)
    optimisers = [cls([w], lr=1e-2, **options) for cls, w in zip((ours, theirs), weights, strict=True)]
    for step in range(6):
        gradient = torch.randn(96, 64)
        for weight, optimiser in zip(weights, optimisers, strict=True):
            weight.grad = gradient.clone()
            optimiser.step()
        if step == 2:
            optimisers[0].load_state_dict(optimisers[1].state_dict())
    assert torch.equal(*weights)
    assert optimisers[0].state[weights[0]]["state1"].dtype == torch.uint8


def test_parameters_without_a_gradient_are_left_alone_and_others_classes_too():
    weight = torch.nn.Parameter(torch.ones(64, 64))
    AdamW8bit([weight], lr=1.0).step()
    assert bool((weight == 1).all())
    assert without_waiting(bnb.optim.AdamW) is AdamW and without_waiting(torch.optim.SGD) is torch.optim.SGD


@pytest.mark.gpu
def test_on_a_gpu_all_parameters_of_a_kind_step_in_one_launch_as_bitsandbytes_does(monkeypatch):
    """Two learning rates, one parameter too small for 8 bits, one that seldom has a gradient, and a checkpoint."""
    launched = []
    monkeypatch.setattr(
        "sloth_nb_kernels.adamw_8bit.launch",
        lambda kernel, grid, *args, **meta: (launched.append(grid), launch(kernel, grid, *args, **meta)),
    )
    shapes = [(96, 64), (33, 129), (10, 10), (64, 1000), (80, 80)]
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    optimisers = [
        cls([{"params": weights[:3]}, {"params": weights[3:], "lr": 3e-3}], lr=1e-2, weight_decay=0.1)
        for cls, weights in ((AdamW8bit, ours), (bnb.optim.AdamW8bit, theirs))
    ]
    for step in range(6):
        launched.clear()
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn_like(pair[0]) * 1e-3
            for weight in pair:
                weight.grad = gradient.clone() if i < 4 or step % 2 else None
        for optimiser in optimisers:
            optimiser.step()
        # One that has missed steps counts its own, and so is by itself.
        assert len(launched) == (3 if step % 2 else 2)
        for mine, other in zip(ours, theirs, strict=True):
            # Codes half-way between two may be rounded to either, which the next steps then see.
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=2e-4 * (step > 0) + 1e-6)
        optimisers[0].load_state_dict(optimisers[1].state_dict())
        with torch.no_grad():
            for mine, other in zip(ours, theirs, strict=True):
                mine.copy_(other)


def test_a_checkpoint_with_a_code_table_for_every_parameter_ends_with_one_for_all():
    optimiser = AdamW8bit([torch.nn.Parameter(torch.zeros(4))])
    table, other = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256)
    assert optimiser._shared(table) is table and optimiser._shared(other) is other
    assert optimiser._shared(table.clone()) is table and optimiser._shared(other) is other
