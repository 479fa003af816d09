"""The optimiser that doesn't wait: bitsandbytes' own steps, bit for bit, and its checkpoints."""

import pytest
import torch

bnb = pytest.importorskip("bitsandbytes")

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
