"""What the memory model is told of a run is what the run is."""

from peft import LoraConfig, get_peft_model

from sloth_nb import memory
from sloth_nb.models.install import install
from sloth_nb.training.prediction import predicted_bytes


def longest(trainer) -> int:
    return max(len(row["input_ids"]) for row in trainer.train_dataset)


def test_a_run_is_described_to_the_memory_model_as_it_is(make_trainer, tiny_llama):
    model = get_peft_model(tiny_llama, LoraConfig(r=8, target_modules=["q_proj", "down_proj"]))
    trainer = make_trainer(model, per_device_train_batch_size=3)
    about = {
        "method": "lora",
        "rank": 8,
        "targets": ("down_proj", "q_proj"),
        "batch": 3,
        "length": longest(trainer),
        "optimiser": "adamw_torch_fused",
    }
    config = tiny_llama.config.to_dict()
    told = predicted_bytes(trainer.model, trainer.args, trainer.train_dataset, gpu="T4")
    assert told == memory.estimate(config, gpu="T4", engine="hf", policy="keep", **about).tensors
    install(trainer.model, "unsloth")
    told = predicted_bytes(trainer.model, trainer.args, trainer.train_dataset, gpu="T4")
    assert told == memory.estimate(config, gpu="T4", engine="sloth", policy="sloth", **about).tensors
    trainer.args.fp16 = True  # the engine leaves fp32 weights under autocast to the model
    told = predicted_bytes(trainer.model, trainer.args, trainer.train_dataset, gpu="T4")
    assert told == memory.estimate(config, gpu="T4", engine="hf", policy="keep", **about).tensors


def test_nothing_is_predicted_for_a_cpu_or_an_unknown_card(make_trainer):
    trainer = make_trainer()
    assert predicted_bytes(trainer.model, trainer.args, trainer.train_dataset) is None
    assert predicted_bytes(trainer.model, trainer.args, trainer.train_dataset, gpu="no such card") is None
    trainer.train()
    assert "predicted_bytes" not in trainer.run.events[0].data
