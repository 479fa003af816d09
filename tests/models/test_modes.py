"""One model answers and trains in turn."""

import torch
from peft import LoraConfig, get_peft_model

from sloth_nb.models.modes import for_inference, for_training
from sloth_nb.models.report import engine_of, report_of


def test_dropout_drops_again_when_a_model_that_has_answered_trains(tiny_model):
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    ids = torch.arange(5, 21)[None]
    for_inference(model)
    assert engine_of(model) is not None and len({float(model(ids, labels=ids).loss) for _ in range(2)}) == 1
    for_training(model)
    assert "lora_dropout=0.5" in str(report_of(model))
    assert len({float(model(ids, labels=ids).loss) for _ in range(3)}) == 3
