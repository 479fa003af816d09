"""What the training loop asks of all modules, answered from one walk: the same answers, without the walking."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback

from sloth_nb.training.one_walk import OneWalk


@pytest.fixture
def adapted_llama(tiny_llama):
    return get_peft_model(tiny_llama, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))


class AtSteps(TrainerCallback):
    """Does something at the end of every step."""

    def __init__(self, do):
        self.do = do

    def on_step_end(self, args, state, control, model=None, **_):
        self.do(model, state.global_step)


def test_the_loop_walks_over_the_model_at_the_first_step_and_never_again(
    make_trainer, tiny_model, adapted_llama, monkeypatch
):
    walks, after = Counter(), []
    named_modules = nn.Module.named_modules

    def counted(self, *args, **kwargs):
        walks[type(self).__name__] += 1
        return named_modules(self, *args, **kwargs)

    for model in (tiny_model("llama"), adapted_llama):
        trainer = make_trainer(model, max_steps=4, logging_steps=1)
        after.clear()
        trainer.add_callback(AtSteps(lambda model, step: after.append(walks.total())))
        with monkeypatch.context() as counting:
            counting.setattr(nn.Module, "named_modules", counted)
            trainer.train()
        assert after[0] > 0 and after[-1] == after[0]


def test_a_module_that_somebody_switched_is_in_training_again_at_the_next_step(make_trainer, tiny_model):
    seen = []

    def switch(model, step):
        seen.append(model.model.layers[0].training)
        if step == 2:
            model.model.layers[0].eval()
        if step == 3:
            model.eval()

    trainer = make_trainer(tiny_model("llama"), max_steps=4)
    trainer.add_callback(AtSteps(switch))
    trainer.train()
    assert seen == [True] * 4


def test_gradients_are_cleared_also_of_what_is_trained_only_for_a_while(make_trainer, tiny_model):
    model = tiny_model("llama")
    weight, grads = model.model.layers[0].mlp.down_proj.weight, []

    def freeze(model, step):
        grads.append(weight.grad)
        weight.requires_grad_(step == 2)

    trainer = make_trainer(model, max_steps=4)
    trainer.add_callback(AtSteps(freeze))
    trainer.train()
    assert grads == [None] * 4


def test_gradients_are_clipped_as_transformers_clips_them(make_trainer, tiny_model, monkeypatch):
    def norms(**config):
        torch.manual_seed(0)
        trainer = make_trainer(tiny_model("llama"), logging_steps=1, **config)
        trainer.train()
        return [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]

    ours = norms(max_grad_norm=0.1)
    monkeypatch.delattr("sloth_nb.training.watched.WatchedTrainer._clip_grad_norm")
    assert len(ours) == 4 and ours == norms(max_grad_norm=0.1)


def test_the_answers_are_the_model_s_own(tiny_model, adapted_llama):
    for model in (tiny_model("llama"), adapted_llama):
        ways = [dict(only_trainable=a, exclude_embeddings=b) for a in (False, True) for b in (False, True)]
        wanted = [model.num_parameters(**way) for way in ways]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with OneWalk(model).answering():
            for _ in range(2):
                assert [model.num_parameters(**way) for way in ways] == wanted
            assert model.train() is model and model.training
            assert not model.eval().training and not any(module.training for module in model.modules())
            assert all(module.training for module in model.train().modules())
            model.zero_grad(set_to_none=False)
            assert any(parameter.grad is not None for parameter in model.parameters())
            model.zero_grad()
        assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_stays_on_the_model_and_what_somebody_put_there_is_left(tiny_model):
    model = tiny_model("llama")
    model.train = mine = lambda mode=True: model
    before = set(vars(model))
    with pytest.raises(KeyboardInterrupt), OneWalk(model).answering():
        assert model.train is mine and set(vars(model)) - before == {"zero_grad", "num_parameters"}
        raise KeyboardInterrupt
    assert set(vars(model)) == before and model.train is mine
