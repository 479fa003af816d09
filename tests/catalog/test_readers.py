"""Any config.json: read as transformers builds it, and refused with the field that is missing."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloth_nb import catalog
from sloth_nb.errors import ModelError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
}


def built(config, architecture="AutoModelForCausalLM"):
    """The model that transformers makes of a config, without weights."""
    import torch
    import transformers

    with torch.device("meta"):
        made = transformers.CONFIG_MAPPING[config["model_type"]](**config)
        if architecture.startswith("Auto"):
            return getattr(transformers, architecture).from_config(made)
        return getattr(transformers, architecture)(made)


def counts(model):
    import torch

    head = model.get_output_embeddings()
    linear = sum(
        m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head
    )
    return sum(p.numel() for p in model.parameters()), linear


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(
        ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "smollm3", "olmo2", "gemma2"]
    ),
    heads=st.sampled_from([(4, 4), (4, 2), (8, 1)]),
    head_dim=st.sampled_from([8, 16]),
    ffn=st.integers(16, 200),
    layers=st.integers(1, 4),
    tied=st.booleans(),
)
def test_a_decoder_is_counted_as_transformers_builds_it(kind, heads, head_dim, ffn, layers, tied):
    hidden = heads[0] * head_dim
    config = {
        **LLAMA,
        **{"model_type": kind, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers},
        **{"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": head_dim},
        **{"tie_word_embeddings": tied, "pad_token_id": 0},
    }
    total, linear = counts(built(config))
    shape = catalog.from_config(config).shape
    if kind == "olmo2":  # its q and k norms run over all heads: not told apart, and tiny
        assert shape.parameters == pytest.approx(total, rel=0.02)
    else:
        assert shape.parameters == total
    assert shape.linear_weights == linear


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-30b-a3b",
        "llama-4-maverick-17b-128e-instruct",
        "llama-3.2-11b-vision-instruct",
        "gemma-3-4b-it",
        "mistral-small-3.2-24b-instruct-2506",
        "whisper-base",
        "csm-1b",
        "deepseek-r1-distill-qwen-1.5b",
    ],
)
def test_a_mixture_tower_or_codec_is_counted_as_transformers_builds_it(name):
    info = catalog.find(name)
    total, linear = counts(built(info.config, info.config["architectures"][0]))
    assert info.shape.parameters == total
    # transformers' routers of Llama 4 and Qwen3 differ in class; both are counted as linear here
    routers = sum(b.count * x.weights for b in info.shape.blocks for x in b.linears if x.name == "router")
    assert info.shape.linear_weights in (linear, linear + routers)


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_field_is_named(field):
    config = {key: value for key, value in LLAMA.items() if key != field}
    with pytest.raises(ModelError, match=field):
        catalog.from_config(config)


@pytest.mark.parametrize("value", [0, -1, 2.5, "many", True, [3]])
def test_a_field_that_is_no_size_is_named_with_its_value(value):
    with pytest.raises(ModelError, match="num_hidden_layers"):
        catalog.from_config({**LLAMA, "num_hidden_layers": value})


def test_a_folder_and_its_config_json_mean_the_same(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(LLAMA))
    folder, file = (catalog.from_config(tmp_path / "tiny" / part) for part in (".", "config.json"))
    assert folder.name == file.name == "tiny"
    assert folder.parameters == file.parameters
    assert catalog.resolve(str(tmp_path / "tiny")).parameters == folder.parameters


def test_a_file_that_is_not_a_config_says_so(tmp_path):
    broken = tmp_path / "config.json"
    with pytest.raises(ModelError, match="There is no"):
        catalog.from_config(broken)
    broken.write_text('{"hidden_size": 4,')
    with pytest.raises(ModelError, match="line 1, column"):
        catalog.from_config(broken)
    broken.write_text("[1, 2]")
    with pytest.raises(ModelError, match="JSON object"):
        catalog.from_config(broken)


def test_latent_attention_is_refused_with_the_reason():
    with pytest.raises(ModelError, match="latent attention"):
        catalog.from_config({**LLAMA, "model_type": "deepseek_v3", "kv_lora_rank": 512})


def test_fused_projections_answer_to_the_usual_target_names():
    shape = catalog.find("phi-4").shape
    names = [linear.name for _, linear in shape.adapted(["q_proj", "v_proj", "down_proj"])]
    assert names == ["qkv_proj", "down_proj"]
    assert len(shape.adapted()) == 4
