"""Models as training might have left them, and what they compute: for the tests of saving and writing."""

import torch

from sloth_nb import FastLanguageModel
from sloth_nb.models.report import report_of

TEXT = "The quick brown fox jumps over the lazy sloth."


def load(path, **arguments):
    return FastLanguageModel.from_pretrained(
        str(path), **{"load_in_4bit": False, "dtype": "float32", **arguments}
    )


def logits(model, tokenizer):
    """By transformers' own modules on both sides, so that equal weights give equal bits."""
    model.eval()
    report = report_of(model)
    if report is not None:
        report.undo()
    with torch.no_grad():
        return model(**tokenizer(TEXT, return_tensors="pt")).logits


def stir(model, std=0.1):
    """Gives every trainable weight a value that training might have given it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * std
    return model
