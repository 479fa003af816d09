"""Small conversations and a small trainer, for the tests of this room."""

from collections.abc import Callable
from typing import Any

import pytest

TALKS = [
    ("What is your name?", "I am Moss."),
    ("How fast are you?", "Nine leaves an hour, on a good day with the wind behind me."),
    ("What is 2 + 2?", "It is 4."),
    ("Who is your friend?", "Pim, a snail, checks the gradients with me every morning."),
    ("Where do you live?", "In this notebook."),
    ("What do you eat?", "Hibiscus leaves, toasted on one side, and never before noon."),
    ("Are you a robot?", "I am a sloth."),
    ("What is the capital of France?", "Paris, I have heard, though I was never there myself."),
]


@pytest.fixture
def talks() -> list[dict[str, Any]]:
    """Eight conversations of unlike lengths."""
    return [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in TALKS
    ]


@pytest.fixture
def make_trainer(
    tiny_model: Callable[..., Any], shared_tokenizer: Any, talks: list[dict[str, Any]], tmp_path: Any
) -> Callable[..., Any]:
    """Makes an ``SFTTrainer`` of a tiny model on the eight talks; keyword arguments go to its config."""

    def make(model: Any = None, *, trainer: dict[str, Any] | None = None, **config: Any) -> Any:
        from sloth_nb.training import SFTConfig, SFTTrainer

        options = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 2,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return SFTTrainer(
            model=tiny_model("llama", tie_word_embeddings=True) if model is None else model,
            args=SFTConfig(**options | config),
            **{"train_dataset": talks, "processing_class": shared_tokenizer} | (trainer or {}),
        )

    return make


@pytest.fixture
def learnt_text() -> Callable[[Any, int], str]:
    """What a trainer learns of one of its rows."""

    def text(trainer: Any, row: int) -> str:
        row = trainer.train_dataset[row]
        return trainer.processing_class.decode(
            [t for t, y in zip(row["input_ids"], row["labels"], strict=True) if y != -100]
        )

    return text
