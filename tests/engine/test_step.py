"""The step that a graph captures, run as it is on the CPU; and the rule that decides what goes to the host."""

import pytest
import torch
from families import CONFIGS, adapted_model, batch, step

from sloth_nb.engine.policy import activation_bytes
from sloth_nb.engine.rules import offload_policies
from sloth_nb.engine.step import CausalStep
from sloth_nb.memory import moving
from sloth_nb.models.install import install
from sloth_nb.models.report import engine_of


@pytest.mark.parametrize("policy", ["keep", "recompute"])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_manual_step_gives_the_loss_and_gradients_of_autograd(family, policy):
    model, inputs = adapted_model(family), batch()
    loss, grads = step(model, **inputs)
    install(model, policy)
    engine = engine_of(model)
    parameters = [p for layer in engine.layers() for p in layer.parameters()]
    buffers = [torch.full_like(p, torch.nan) for p in parameters]
    targets = torch.nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
    manual = CausalStep(engine, engine.bound(), engine.plan(38, 19), 19, buffers)
    with torch.no_grad():
        given = {
            "input_ids": inputs["input_ids"],
            "targets": targets,
            "items": (targets != -100).sum().float(),
        }
        got = manual.forward(given)
        manual.backward(torch.tensor(3.0))
    assert abs(float(got - loss)) < 1e-5
    by_parameter = {id(p): g for p, g in zip(parameters, buffers, strict=True)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            error = (by_parameter[id(parameter)] / 3 - grads[name]).norm() / grads[name].norm()
            assert float(error) < 2e-5, name


SIZES = activation_bytes(CONFIGS["llama"], 1000)


LINK = 1e9


def moved(seconds, host=10**12, again=0.0):
    """Of 8 layers whose forward takes so long, over a link of a GB a second."""
    return offload_policies(SIZES, (again, again), seconds, 8, LINK, host)


def test_a_slow_link_moves_only_inputs_and_attention():
    policies = moved(seconds=0.0)
    assert all(p.host == {"input", "attention"} for p in policies[:-1])
    assert policies[-1].host == frozenset() and policies[-1].device == {"input", "attention"}


def test_what_takes_longer_to_compute_again_than_it_makes_wait_is_moved():
    hidden = (SIZES["input"] + SIZES["attention"] + SIZES["middle"] + 0.5 * SIZES["qkv"]) / LINK
    wait = 0.5 * SIZES["qkv"] / LINK
    assert moved(hidden, again=0.9 * wait)[0].host == {"input", "attention", "middle"}
    assert moved(hidden, again=1.1 * wait)[0].host == {"input", "attention", "middle", "qkv"}


def test_a_fast_link_moves_everything_and_some_layers_gate_up():
    seconds = (sum(SIZES.values()) - 0.49 * SIZES["gate_up"]) / (LINK * moving.LINK_SHARE)
    policies = moved(seconds)
    wide = [i for i, p in enumerate(policies) if "gate_up" in p.host]
    assert len(wide) == 4 and wide == [0, 1, 3, 5]
    assert all({"input", "attention", "middle", "qkv"} <= p.held for p in policies)


def test_few_wide_layers_are_not_worth_the_memory_of_one():
    seconds = (sum(SIZES.values()) - 0.8 * SIZES["gate_up"]) / (LINK * moving.LINK_SHARE)
    assert not any("gate_up" in p.host for p in moved(seconds))


def test_long_sequences_do_not_hold_gate_up_whole():
    sizes = activation_bytes(CONFIGS["llama"], 1 << 30 >> 8)
    assert sizes["gate_up"] > moving.WIDE_BYTES
    policies = offload_policies(sizes, (1.0, 1.0), 1e6, 8, LINK, 10**15)
    assert not any("gate_up" in p.host for p in policies)


def test_a_small_host_moves_no_more_than_it_can_hold():
    host = 8 * (SIZES["input"] + SIZES["attention"] + SIZES["middle"])
    policies = moved(seconds=1e3, host=host)
    total = sum(SIZES[name] for p in policies for name in p.host)
    assert total <= host and all("qkv" not in p.host for p in policies)
