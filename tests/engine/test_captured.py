"""Steps that are replayed give what autograd gives, whatever comes between. Here a replay runs the step once more, on
the CPU; tests/engine/test_gpu.py has the same with graphs."""

import gc
import weakref
from collections import deque
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from families import TARGETS, adapted_model, batch, step, worst
from lazy_streams import lazy_streams
from quantised import quantised_model

from sloth_nb.engine import graphs, host_memory, offload
from sloth_nb.engine.decoder import Decoder
from sloth_nb.engine.graphs import Replay
from sloth_nb.engine.host_memory import HostMemory
from sloth_nb.engine.offload import Offloader, Parked
from sloth_nb.engine.rules import Settings
from sloth_nb.models.install import install
from sloth_nb.models.report import engine_of


class OnACard(torch.Tensor):
    """Ids that say they are on a card."""

    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl


class RunAgain(Replay):
    """Where a graph is replayed the step runs."""

    def _capture(self, step):
        self.taken, self._dloss = 0, torch.ones(())

        def forward():
            with torch.no_grad():
                self._loss = step.forward(self.inputs)

        def backward():
            with torch.no_grad():
                step.backward(self._dloss)

        self._forward, self._backward = SimpleNamespace(replay=forward), SimpleNamespace(replay=backward)


@pytest.fixture
def capturing(monkeypatch):
    monkeypatch.setattr(graphs, "Replay", RunAgain)
    monkeypatch.setattr(graphs, "unreserved", lambda device: 1 << 40)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(Settings, "captures", lambda *args: True)


def on_a_card(inputs):
    return inputs | {"input_ids": inputs["input_ids"].as_subclass(OnACard)}


def packed(*lengths):
    inputs = batch(1, sum(lengths), seed=len(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    edges = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    told = {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": 32, "max_length_k": 32}
    return inputs | told | {"position_ids": positions}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_replayed_steps_of_several_shapes_give_the_gradients_of_autograd(family, capturing):
    model = adapted_model(family)
    batches = [batch(seed=1), batch(seed=2), batch(2, 23), batch(3, 7), packed(5, 9, 18), packed(30, 2, 1)]
    install(model, True, cuda_graphs=False)
    wanted = [step(model, **inputs) for inputs in batches]
    install(model, True)
    for _ in range(4):
        for inputs, (loss, grads) in zip(batches, wanted, strict=True):
            got_loss, got = step(model, **on_a_card(inputs))
            assert abs(float(got_loss - loss)) < 1e-5 and worst(got, grads) < 1e-5
    assert len(engine_of(model).captured.replays) == 4


def test_two_forwards_that_wait_for_their_backward_do_not_share_a_replay(capturing):
    model, (first, second) = adapted_model("llama"), (batch(seed=1), batch(2, 40))
    install(model, True, cuda_graphs=False)
    model.zero_grad(set_to_none=True)
    (model(**first).loss + model(**second).loss).backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    install(model, True)
    for _ in range(3):
        step(model, **on_a_card(first))
        step(model, **on_a_card(second))
    assert len(engine_of(model).captured.replays) == 2
    model.zero_grad(set_to_none=True)
    (model(**on_a_card(first)).loss + model(**on_a_card(second)).loss).backward()
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert worst(got, wanted) < 1e-5


def test_what_is_captured_goes_when_a_longer_step_has_no_room_and_when_plans_are_made_anew(
    capturing, monkeypatch
):
    model = adapted_model("llama")
    install(model, True)
    captured = engine_of(model).captured
    for _ in range(3):
        step(model, **on_a_card(batch()))
    next(iter(captured.replays._captured.values())).taken = 1 << 30
    monkeypatch.setattr(graphs, "unreserved", lambda device: 1 << 30)
    step(model, **on_a_card(batch(1, 30)))
    assert len(captured.replays) == 1
    step(model, **on_a_card(batch(2, 40)))
    assert len(captured.replays) == 0
    engine_of(model).forget_plans()
    for _ in range(3):
        step(model, **on_a_card(batch()))
    assert len(captured.replays) == 1


def captured_of(model, inputs):
    for _ in range(3):
        step(model, **on_a_card(inputs))
    return engine_of(model).captured.replays._captured


def test_rotations_live_as_long_as_the_graph_that_reads_them(capturing):
    model = adapted_model("llama")
    install(model, True)
    assert len(captured_of(model, batch())) == 1
    table = engine_of(model).rotations
    read = [weakref.ref(rotation.cos) for rotation in table._plain[19, torch.device("cpu")].values()]
    for length in range(20, 60):  # more lengths than the table keeps
        table.for_length(length, torch.device("cpu"))
    assert (19, torch.device("cpu")) not in table._plain and all(ref() is not None for ref in read)


def test_an_embedding_that_asks_for_a_gradient_is_no_reason_not_to_capture(capturing):
    model = adapted_model("llama")
    model.enable_input_require_grads()
    install(model, True)
    assert len(captured_of(model, batch())) == 1
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: 2 * output)
    engine_of(model).forget_plans()
    assert len(captured_of(model, batch())) == 0


def test_an_adapted_embedding_is_trained_at_every_step(capturing):
    model = adapted_model("llama", target_modules=[*TARGETS, "embed_tokens"])
    loss, wanted = step(model, **batch())
    install(model, True)
    for _ in range(4):
        got_loss, got = step(model, **on_a_card(batch()))
        assert abs(float(got_loss - loss)) < 1e-6 and worst(got, wanted) < 1e-5


def test_what_is_trained_may_change_under_a_captured_shape(capturing):
    model, plain = adapted_model("llama"), adapted_model("llama")
    install(model, True)
    captured_of(model, batch())
    for one in (model, plain):
        for name, parameter in one.named_parameters():
            if "layers.0" in name and "lora_" in name:
                parameter.requires_grad_("down_proj" not in name)
    for _ in range(4):
        assert worst(step(model, **on_a_card(batch()))[1], step(plain, **batch())[1]) < 1e-5


def padded_on_the_right(length, shorter):
    """Two rows, the second shorter, as a collator pads it."""
    inputs = batch(2, length, seed=length)
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, length - shorter :] = 0
    return inputs | {"labels": inputs["labels"].masked_fill(mask == 0, -100), "attention_mask": mask}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3"])
def test_batches_of_any_length_are_replayed_from_one_that_is_a_little_longer(family, capturing):
    model = adapted_model(family)
    batches = [padded_on_the_right(length, length % 7) for length in (38, 45, 33, 47, 40, 48, 36)]
    wanted = [step(model, **inputs) for inputs in batches]
    install(model, True)
    for inputs, (loss, grads) in zip(batches, wanted, strict=True):
        got_loss, got = step(model, **on_a_card(inputs))
        assert abs(float(got_loss - loss)) < 1e-5 and worst(got, grads) < 1e-5
    (replay,) = engine_of(model).captured.replays._captured.values()
    assert replay.inputs["input_ids"].shape == (2, 48)


def test_batches_that_are_all_alike_are_not_padded(capturing):
    model = adapted_model("llama")
    install(model, True)
    (replay,) = captured_of(model, batch(2, 45)).values()
    assert replay.inputs["input_ids"].shape == (2, 45)


def test_where_work_takes_longer_than_launching_nothing_is_padded(capturing, monkeypatch):
    monkeypatch.setattr(
        Settings, "captures", lambda self, config, tokens, length, like, within: within > 3e-3
    )
    model = adapted_model("llama")
    install(model, True)
    for length in (38, 45, 33, 47, 40, 48, 36):
        step(model, **on_a_card(batch(2, length)))
    assert not len(engine_of(model).captured.replays)


def launches_before_it_looks(model, inputs, monkeypatch):
    """Whether a step launched what was captured before it looked at how the model stands."""
    order, engine = [], engine_of(model)
    look, run = engine.bound, Replay.run
    with monkeypatch.context() as watched:
        watched.setattr(engine, "bound", lambda: (order.append("look"), look())[1], raising=False)
        watched.setattr(Replay, "run", lambda self, inputs: (order.append("launch"), run(self, inputs))[1])
        loss, grads = step(model, **on_a_card(inputs))
    return order[0] == "launch", loss, grads


def test_a_captured_step_is_launched_before_the_host_looks_at_the_model(capturing, monkeypatch):
    model = adapted_model("llama")
    wanted = step(model, **batch())
    install(model, True)
    captured_of(model, batch())
    for _ in range(3):
        first, loss, grads = launches_before_it_looks(model, batch(), monkeypatch)
        assert first and abs(float(loss - wanted[0])) < 1e-5 and worst(grads, wanted[1]) < 1e-5


def test_what_was_launched_for_a_model_that_stands_differently_is_thrown_away(capturing, monkeypatch):
    model, plain = adapted_model("llama"), adapted_model("llama")
    install(model, True)
    captured_of(model, batch())
    for one in (model, plain):
        one.get_base_model().model.layers[1].mlp.down_proj.scaling["default"] = 5.0
    wanted = step(plain, **batch())
    for expected in (True, False, False, False, False):  # and nothing is launched on a guess again
        first, loss, grads = launches_before_it_looks(model, batch(), monkeypatch)
        assert first is expected and abs(float(loss - wanted[0])) < 1e-5 and worst(grads, wanted[1]) < 1e-5


def test_a_hook_that_comes_after_the_capture_is_not_passed_by(capturing):
    model, plain = adapted_model("llama"), adapted_model("llama")
    install(model, True)
    captured_of(model, batch())
    hooks = [
        one.get_base_model().model.layers[1].register_forward_hook(lambda module, args, output: 2 * output)
        for one in (model, plain)
    ]
    wanted = step(plain, **batch())
    loss, grads = step(model, **on_a_card(batch()))
    assert abs(float(loss - wanted[0])) < 1e-5 and worst(grads, wanted[1]) < 1e-5
    assert "hook" in " ".join(engine_of(model).left_to_model)
    for hook in hooks:
        hook.remove()
    for _ in range(2):
        wanted, got = step(plain, **batch()), step(model, **on_a_card(batch()))
        assert abs(float(got[0] - wanted[0])) < 1e-5 and worst(got[1], wanted[1]) < 1e-5


def test_with_nothing_to_train_nothing_is_captured(capturing):
    model = adapted_model("llama")
    install(model, True)
    with model.disable_adapter():
        for _ in range(4):
            assert model(**on_a_card(batch())).loss.isfinite()
    assert len(engine_of(model).captured.replays) == 0


@pytest.mark.parametrize("place", ["model.layers.1.mlp.up_proj.base_layer", "model.embed_tokens", "lm_head"])
def test_a_graph_is_not_replayed_when_what_it_reads_has_moved(capturing, place):
    model = adapted_model("llama")
    install(model, True)
    (first,) = captured_of(model, batch())
    weight = model.get_base_model().get_submodule(place).weight
    weight.data = weight.data.clone()
    assert first not in list(captured_of(model, batch()))[1:] and len(captured_of(model, batch())) == 2


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_graph_is_not_replayed_when_what_stands_beside_a_quantised_weight_is_another(kind, capturing):
    model, plain = quantised_model(kind), quantised_model(kind)
    install(model, True)
    install(plain, True, cuda_graphs=False)
    for factor in (3.0, 0.5):
        (replay,) = captured_of(model, batch()).values()
        for one in (model, plain):
            weight = one.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight
            if kind == "nf4":
                weight.quant_state.offset = weight.quant_state.offset * factor
            else:
                weight.SCB = weight.SCB * factor
        wanted = step(plain, **batch())
        for _ in range(4):
            loss, grads = step(model, **on_a_card(batch()))
            assert abs(float(loss - wanted[0])) < 1e-5 and worst(grads, wanted[1]) < 1e-5
        (another,) = engine_of(model).captured.replays._captured.values()
        assert another is not replay and not engine_of(model).captured._alternates


def test_angles_that_depend_on_the_batch_are_not_captured(capturing, monkeypatch):
    model = adapted_model("llama")
    install(model, True)
    monkeypatch.setattr(engine_of(model).rotations.module, "rope_type", "dynamic")
    assert len(captured_of(model, batch())) == 0


class _NeverComes:
    """The stream of an event within a capture that was broken off."""

    @property
    def run(self):
        raise RuntimeError("captured event")


def test_the_next_capture_waits_for_nothing_of_one_that_was_broken_off(capturing, monkeypatch):
    model, (first, second) = adapted_model("llama"), (batch(), batch(2, 23))
    wanted = step(model, **second)
    with lazy_streams(monkeypatch):
        monkeypatch.setattr(Decoder, "offloader_for", lambda self, *_: Offloader(torch.device("cpu")))
        monkeypatch.setattr(host_memory, "pinned", lambda size: torch.empty(size, dtype=torch.uint8))
        monkeypatch.setattr(offload, "HostMemory", partial(HostMemory, pin=host_memory.pinned))
        install(model, "offload-wide", mlp_tile=7)
        assert len(captured_of(model, first)) == 1
        left, event = engine_of(model).captured.offloader, (_NeverComes(), 1)
        left._leaving.append((torch.zeros(1), event))
        left._coming.append(Parked(torch.zeros(1), None, torch.zeros(1), deque([(1, event)])))
        assert len(captured_of(model, second)) == 2
        loss, grads = step(model, **on_a_card(second))
    assert abs(float(loss - wanted[0])) < 1e-5 and worst(grads, wanted[1]) < 1e-5


def test_taking_the_engine_off_gives_back_what_it_held(capturing):
    model = adapted_model("llama")
    report = install(model, True)
    gone = [weakref.ref(replay) for replay in captured_of(model, batch()).values()]
    report.undo()
    gc.collect()
    assert all(ref() is None for ref in gone) and report.engine.offloader is None
