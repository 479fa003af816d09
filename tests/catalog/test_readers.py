"""Any config.json: read as transformers builds it, and refused with the field that is missing."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloth_nb import catalog
from sloth_nb.errors import ModelError, SlothError
from sloth_nb.memory import estimate
from sloth_nb.memory.engines import engine_runs

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


def _sizes(hidden, ffn, layers, heads, vocab, context):
    """As a config.json says them."""
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
        "max_position_embeddings",
    )
    return dict(zip(names, (hidden, ffn, layers, heads, vocab, context), strict=True))


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


@pytest.mark.parametrize(
    "value",
    [-1, 1.5, True, "4", [2], float("nan"), float("inf"), 10**5000, 0],
    ids=lambda value: f"{value!r:.9}" if value != 10**5000 else "huge",
)
@pytest.mark.parametrize("field", ["head_dim", "num_key_value_heads", "hidden_size"])
def test_a_field_that_may_be_left_out_is_no_nonsense_either(field, value):
    with pytest.raises(ModelError, match=f"'{field}' in config.json is .*a positive whole number") as caught:
        catalog.from_config({**LLAMA, field: value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' .*at most 10,000"),
        ({"tie_word_embeddings": "false"}, "'tie_word_embeddings' .*true or false"),
        ({"num_attention_heads": 65}, "'num_attention_heads' .* 65, which can't be beside hidden_size 64"),
        ({"num_key_value_heads": 8}, "beside num_key_value_heads 8"),
        ({"num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [7]}, "from 0 to 2"),
    ],
)
def test_what_no_model_can_be_is_named(fields, said):
    with pytest.raises(ModelError, match=said):
        catalog.from_config({**LLAMA, **fields})


@pytest.mark.parametrize("text", ["[" * 100_000, '{"hidden_size": ' + "9" * 5000 + "}", "\\udcff"])
def test_a_file_that_python_can_not_parse_is_one_sentence(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json (can't be read|is not JSON)"):
        catalog.from_config(tmp_path)


CONFIGS = [
    LLAMA,
    {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    {**LLAMA, "model_type": "phi"},
    *(
        catalog.find(name).config
        for name in (
            *("llama-4-scout-17b-16e-instruct", "llama-3.2-11b-vision-instruct", "gemma-3-4b-it"),
            *("mistral-small-3.2-24b-instruct-2506", "whisper-base", "csm-1b", "qwen3-30b-a3b"),
        )
    ),
]
OPTIONAL = (
    *("head_dim", "num_key_value_heads", "tie_word_embeddings", "attention_bias", "intermediate_size_mlp"),
    *("num_experts", "moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers", "text_config"),
    *(
        "vision_config",
        "audio_config",
        "kv_lora_rank",
        "hidden_act",
        "_name_or_path",
        "first_k_dense_replace",
    ),
)
ODD = st.sampled_from([-1, 0, 1, 1.5, "4", True, None, float("nan"), float("inf"), 10**9])
HUGE = st.sampled_from([1, -1]).map(lambda sign: sign * 10**5000)  # more digits than Python prints
ANY_JSON = st.recursive(
    ODD | HUGE | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_a_field_holds_there_is_an_answer_or_one_sentence(data):
    config = dict(data.draw(st.sampled_from(CONFIGS)))
    inner = data.draw(st.sampled_from(["", *(key for key in config if isinstance(config[key], dict))]))
    target = dict(config[inner]) if inner else config
    for field in data.draw(st.sets(st.sampled_from([*target, *OPTIONAL]), min_size=1, max_size=2)):
        target[field] = data.draw(ANY_JSON)
    if inner:
        config[inner] = target
    try:
        answer = estimate(config, gpu="T4", length=64)
    except SlothError as error:
        assert len(str(error)) < 3000
    else:
        assert answer.total > 0


@pytest.mark.parametrize("kind", ["gpt_neox", "phi", "starcoder2", "nemotron", "arcee"])
@pytest.mark.parametrize("tied", [None, False, True])
def test_a_decoder_without_gates_is_counted_as_transformers_builds_it(kind, tied):
    config = {**LLAMA, "model_type": kind, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if tied is not None:
        config["tie_word_embeddings"] = tied
    shape = catalog.from_config(config).shape
    total, linear = counts(built(config))
    assert (shape.parameters, shape.linear_weights) == (total, linear)


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (dict(model_type="gpt_neox", **_sizes(4096, 16384, 32, 32, 50432, 2048)), 6.857),
        (dict(model_type="phi", **_sizes(2560, 10240, 32, 32, 51200, 2048)), 2.780),
        (
            dict(model_type="starcoder2", **_sizes(4608, 18432, 32, 36, 49152, 16384), num_key_value_heads=4),
            7.174,
        ),
        (
            dict(
                model_type="nemotron",
                **_sizes(3072, 9216, 32, 24, 256000, 4096),
                num_key_value_heads=8,
                head_dim=128,
            ),
            4.191,
        ),
    ],
    ids=["pythia-6.9b", "phi-2", "starcoder2-7b", "nemotron-mini-4b"],
)
def test_published_models_without_gates_have_their_published_counts(config, billions):
    assert catalog.from_config(config).parameters / 1e9 == pytest.approx(billions, rel=0.001)


@pytest.mark.parametrize(
    ("kind", "flat"),  # flat: as the older ones lie on the hub
    [
        ("qwen2_vl", True),
        ("qwen2_vl", False),
        ("qwen2_5_vl", True),
        ("qwen2_5_vl", False),
        ("qwen3_vl", False),
    ],
)
def test_a_qwen_that_sees_keeps_its_tower(kind, flat):
    vision = {"depth": 2, "num_heads": 4, "patch_size": 4, "hidden_size": 64}
    vision |= (
        {"embed_dim": 32}
        if kind == "qwen2_vl"
        else {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
    )
    if kind == "qwen3_vl":
        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    text = {**LLAMA, "head_dim": 16, "pad_token_id": 0, "hidden_act": "silu"}
    text["model_type"] = f"{kind}_text"
    nested = {"model_type": kind, "tie_word_embeddings": False, "text_config": text, "vision_config": vision}
    total, linear = counts(built(nested, "AutoModelForImageTextToText"))
    config = {**text, **nested, "text_config": None} if flat else nested
    info = catalog.from_config(config)
    assert (info.shape.parameters, info.shape.linear_weights) == (total, linear)
    assert info.modality == "text+image"


@pytest.mark.parametrize("tied", [False, True, None])
def test_whether_embeddings_are_tied_is_the_whole_model_s_word(tied):
    whole = catalog.find("mistral-small-3.2-24b-instruct-2506").config
    text = {**whole["text_config"], "tie_word_embeddings": not tied}
    config = {**whole, "text_config": text, "tie_word_embeddings": tied}
    if tied is None:  # then its class' word, not the text's
        text["tie_word_embeddings"] = False
        del config["tie_word_embeddings"]
    total, _ = counts(built(config, "AutoModelForImageTextToText"))
    assert catalog.from_config(config).parameters == total


def test_a_text_part_counts_itself_alone_and_is_what_the_engine_runs():
    whole = catalog.find("gemma-3-4b-it")
    assert whole.text_part.parameters == whole.text_part.shape.parameters < whole.parameters
    config = {**whole.config, "text_config": {**whole.config["text_config"]}}
    config["text_config"].pop("model_type", None)
    part = catalog.from_config(config).text_part
    assert engine_runs(part) and part.parameters == whole.text_part.parameters


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("bert", {}, "'bert' is an encoder"),
        ("xlm-roberta", {}, "is an encoder"),
        ("gemma3n_text", {"hidden_act": "gelu_pytorch_tanh"}, "doesn't know .activation 'gelu_pytorch_tanh'"),
        ("gpt_bigcode", {"hidden_act": "gelu"}, "doesn't know"),
        ("unheard_of", {}, "doesn't know .activation ''"),
        (
            "glm4_moe",
            {"hidden_act": "silu", "first_k_dense_replace": 1},
            "of its own kind .first_k_dense_replace",
        ),
        ("mamba", {"hidden_act": "silu"}, "doesn't know"),
        ("voxtral", {"audio_config": {}, "hidden_act": "silu"}, "hears"),
    ],
)
def test_an_architecture_that_would_be_guessed_is_refused_with_what_tells_it_apart(kind, fields, said):
    with pytest.raises(ModelError, match=said):
        catalog.from_config({**LLAMA, "model_type": kind, **fields})


def test_an_unknown_decoder_that_computes_as_a_llama_is_read_as_one():
    known = catalog.from_config(LLAMA)
    assert (
        catalog.from_config({**LLAMA, "model_type": "mine", "hidden_act": "silu"}).parameters
        == known.parameters
    )


def test_latent_attention_is_refused_with_the_reason():
    with pytest.raises(ModelError, match="latent attention"):
        catalog.from_config({**LLAMA, "model_type": "deepseek_v3", "kv_lora_rank": 512})


def test_fused_projections_answer_to_the_usual_target_names():
    shape = catalog.find("phi-4").shape
    names = [linear.name for _, linear in shape.adapted(["q_proj", "v_proj", "down_proj"])]
    assert names == ["qkv_proj", "down_proj"]
    assert len(shape.adapted()) == 4
