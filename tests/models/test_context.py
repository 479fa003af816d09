"""A context longer than the model's own stretches its rotary positions, and says how."""

import pytest
import torch
from transformers import AutoConfig

from sloth_nb import FastLanguageModel
from sloth_nb.errors import ModelError, SlothWarning
from sloth_nb.models.context import apply_context


def config(model_type="llama", **more):
    return AutoConfig.for_model(model_type, hidden_size=64, num_attention_heads=4, **more)


def test_a_shorter_or_equal_context_changes_nothing(recwarn):
    before = config(max_position_embeddings=2048)
    for asked, expected in ((512, 512), (2048, 2048), (None, 2048)):
        changed = config(max_position_embeddings=2048)
        assert apply_context(changed, asked, None) == expected
        assert changed.to_dict() == before.to_dict()
    assert not recwarn


def test_a_longer_context_scales_linearly_and_says_how():
    changed = config(max_position_embeddings=2048)
    with pytest.warns(SlothWarning, match=r"32,768 is longer than the model's 2,048.*scaled by 16.*'linear'"):
        assert apply_context(changed, 32768, None) == 32768
    assert changed.max_position_embeddings == 32768
    assert changed.rope_parameters["rope_type"] == "linear"
    assert changed.rope_parameters["factor"] == 16


def test_positions_of_the_stretched_model_are_those_of_the_original_divided(tiny_llama_path):
    with pytest.warns(SlothWarning, match="scaled by 4"):
        model, _ = FastLanguageModel.from_pretrained(
            str(tiny_llama_path), max_seq_length=8192, load_in_4bit=False
        )
    plain, _ = FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False)
    assert torch.allclose(model.model.rotary_emb.inv_freq * 4, plain.model.rotary_emb.inv_freq)
    assert model.max_seq_length == model.config.max_position_embeddings == 8192
    ids = torch.randint(0, 1000, (1, 2100))
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_scaling_that_is_there_is_multiplied(kind):
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
    changed = config(max_position_embeddings=2048, rope_parameters=rope)
    with pytest.warns(SlothWarning, match=f"type '{kind}' with factor 6"):
        apply_context(changed, 3 * 2048, None)
    assert changed.rope_parameters["rope_type"] == kind
    assert changed.rope_parameters["factor"] == 6
    changed.validate_rope()


def test_only_layers_that_see_everything_are_stretched():
    changed = config("gemma3_text", max_position_embeddings=1024)
    before = dict(changed.rope_parameters["sliding_attention"])
    with pytest.warns(SlothWarning, match="scaled by 2"):
        apply_context(changed, 2048, None)
    assert changed.rope_parameters["sliding_attention"] == before
    assert changed.rope_parameters["full_attention"]["factor"] == 2


def test_longrope_and_learned_positions_cannot_be_stretched():
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_type": "longrope"}
    long = config("phi3", max_position_embeddings=4096, rope_parameters=factors | {"rope_theta": 1e4})
    with pytest.raises(ModelError, match="type 'longrope', which can't be stretched"):
        apply_context(long, 8192, None)
    learned = AutoConfig.for_model("gpt2", n_positions=256)
    with pytest.warns(SlothWarning, match="256 learned positions"):
        assert apply_context(learned, 2048, None) == 256


def test_a_rope_scaling_of_the_users_own_replaces_the_automatic_one(recwarn):
    changed = config(max_position_embeddings=2048)
    assert apply_context(changed, 8192, {"type": "yarn", "factor": 4.0}) == 8192
    assert changed.rope_parameters["rope_type"] == "yarn"
    assert changed.rope_parameters["rope_theta"] == 10000.0
    assert not [w for w in recwarn if w.category is SlothWarning]


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        ({"factor": 2.0}, "has no rope_type"),
        ("yarn", "has no rope_type"),
        ({"type": "linear"}, "can't be used"),
    ],
)
def test_a_rope_scaling_that_says_too_little_is_refused(scaling, text):
    with pytest.raises(ModelError, match=text):
        apply_context(config(), 8192, scaling)


def test_rope_scaling_on_a_model_without_rotary_positions_is_refused():
    with pytest.raises(ModelError, match="no rotary positions to scale"):
        apply_context(AutoConfig.for_model("gpt2"), 512, {"rope_type": "linear", "factor": 2.0})


@pytest.mark.parametrize("length", [0, -1, 2.5, "2048"])
def test_what_is_no_length_is_refused(length):
    with pytest.raises(ModelError, match="is not a number of tokens"):
        apply_context(config(), length, None)
