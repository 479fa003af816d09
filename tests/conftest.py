"""What the tests share: the real small model, its tokenizer, and tiny random models of other shapes.

Nothing here reaches a network, and nothing that a test doesn't ask for is imported.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before any of these libraries is imported, here or in a process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The folder of SmolLM2-135M-Instruct: real weights (bf16, 30 layers), tokenizer and template."""
    from sloth_nb.catalog.embedded import default_model_path

    return default_model_path()


@pytest.fixture(scope="session")
def shared_tokenizer(smollm2_path: Path) -> Any:
    """SmolLM2's tokenizer, shared by all tests of a process: read it, change nothing on it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_path)


@pytest.fixture
def tokenizer(smollm2_path: Path) -> Any:
    """SmolLM2's tokenizer, fresh, for a test that changes it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_path)


@pytest.fixture
def smollm2(smollm2_path: Path) -> Any:
    """SmolLM2-135M-Instruct itself, fresh, bf16 on the CPU (a quarter of a second)."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.bfloat16)


@pytest.fixture
def tiny_model(shared_tokenizer: Any) -> Callable[..., Any]:
    """Makes a random fp32 model with SmolLM2's vocabulary: ``tiny_model("qwen2", seed=1, hidden_size=32)``.

    Keyword arguments go to the architecture's config. The same arguments give the same weights.
    """

    def make(model_type: str = "llama", *, seed: int = 0, **config: Any) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = {
            "vocab_size": len(shared_tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 2048,
            "bos_token_id": shared_tokenizer.bos_token_id,
            "eos_token_id": shared_tokenizer.eos_token_id,
            "pad_token_id": shared_tokenizer.pad_token_id,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes | config))

    return make


@pytest.fixture
def tiny_llama(tiny_model: Callable[..., Any]) -> Any:
    """A random Llama of 2 layers (3.2 million parameters, nearly all of them embeddings), fp32."""
    return tiny_model("llama", tie_word_embeddings=True)


@pytest.fixture
def tiny_llama_path(tiny_llama: Any, shared_tokenizer: Any, tmp_path: Path) -> Path:
    """The same model with its tokenizer, saved in a folder of this test's own."""
    folder = tmp_path / "tiny-llama"
    tiny_llama.save_pretrained(folder)
    shared_tokenizer.save_pretrained(folder)
    return folder
