"""Embeddings that are trained whole can have a learning rate of their own."""

import pytest
from peft import LoraConfig

from sloth_nb.errors import TrainingError


def test_embeddings_and_head_move_into_groups_of_their_own_and_keep_their_rate(make_trainer, tiny_model):
    adapter = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    trainer = make_trainer(
        tiny_model(tie_word_embeddings=False),
        trainer={"peft_config": adapter},
        learning_rate=1e-3,
        embedding_learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_steps=2,
    )
    trainer.train()
    rates = {
        id(parameter): group["lr"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(rates) == len(trained)
    for name, parameter in trained.items():
        whole = "modules_to_save" in name
        assert rates[id(parameter)] == (1e-4 if whole else 1e-3), name
    assert sum("modules_to_save" in name for name in trained) == 2


def test_a_rate_for_embeddings_that_are_not_trained_is_refused(make_trainer):
    trainer = make_trainer(
        trainer={"peft_config": LoraConfig(r=4, target_modules=["q_proj"])}, embedding_learning_rate=1e-4
    )
    with pytest.raises(TrainingError, match="modules_to_save"):
        trainer.train()
