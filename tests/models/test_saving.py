"""Saved and read back: the same numbers; and what lay there before, when a save fails."""

import copy
import inspect
import json

import huggingface_hub
import pytest
import torch

from sloth_nb import FastLanguageModel, FastModel
from sloth_nb.errors import ExportError, ModelError, SlothWarning
from sloth_nb.models.merging import merged_model
from tests.models.tuned import TEXT, load, logits, stir


def test_an_adapter_read_back_computes_the_same_and_goes_on_training(adapted, tmp_path):
    model, tokenizer = adapted
    model.save_pretrained(tmp_path / "lora")
    tokenizer.save_pretrained(tmp_path / "lora")
    again, its_tokenizer = load(tmp_path / "lora")
    assert torch.equal(logits(model, tokenizer), logits(again, its_tokenizer))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in again.named_parameters() if p.requires_grad] == trained
    assert {p.dtype for p in again.parameters() if p.requires_grad} == {torch.float32}
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in again.modules())


def test_the_real_model_with_a_bf16_base_comes_back_bit_for_bit(smollm2_path, tmp_path):
    model, tokenizer = load(smollm2_path, dtype=None)
    model = stir(FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj", "v_proj"]), 0.02)
    model.save_pretrained(tmp_path / "lora")
    again, _ = load(tmp_path / "lora", dtype=None)
    assert torch.equal(logits(model, tokenizer), logits(again, tokenizer))


@pytest.mark.parametrize("save", ["save_pretrained", "save_pretrained_merged"])
def test_an_adapter_trained_on_a_stretched_base_stretches_it_again(tiny_llama_path, tmp_path, save):
    with pytest.warns(SlothWarning, match="scaled by 4"):
        model, tokenizer = load(tiny_llama_path, max_seq_length=8192)
    model = stir(FastLanguageModel.get_peft_model(model))
    more = {"save_method": "lora"} if save == "save_pretrained_merged" else {}
    getattr(model, save)(tmp_path / "lora", **more)
    again, _ = load(tmp_path / "lora")
    assert again.config.max_position_embeddings == 8192
    assert torch.equal(logits(model, tokenizer), logits(again, tokenizer))
    plain, _ = load(tmp_path / "lora", rope_scaling={"rope_type": "linear", "factor": 1.0})
    assert not torch.equal(logits(model, tokenizer), logits(plain, tokenizer))


@pytest.mark.parametrize("save", ["save_pretrained", "save_pretrained_merged"])
@pytest.mark.parametrize("form", ["4bit", "8bit", "16bit"])
def test_an_adapter_brings_back_the_form_of_the_weights_that_it_was_trained_on(
    tiny_llama_path, tmp_path, form, save
):
    pytest.importorskip("bitsandbytes")
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama_path), **{f"load_in_{form}": True})
    model = stir(FastLanguageModel.get_peft_model(model))
    more = {"save_method": "lora"} if save == "save_pretrained_merged" else {}
    getattr(model, save)(tmp_path / "lora", **more)
    again, _ = FastLanguageModel.from_pretrained(str(tmp_path / "lora"))
    kind = {"4bit": "Linear4bit", "8bit": "Linear8bitLt", "16bit": "Linear"}[form]
    assert type(again.get_base_model().model.layers[0].mlp.up_proj.base_layer).__name__ == kind
    assert torch.equal(logits(model, tokenizer), logits(again, tokenizer))


@pytest.mark.parametrize("asked", [{"load_in_4bit": False}, {"load_in_16bit": True}])
def test_the_form_asked_for_wins_over_the_one_that_the_adapter_names(adapted, tmp_path, asked):
    model, _ = adapted
    model.save_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "sloth_nb_base.json").write_text('{"load_in": "4bit"}')
    again, _ = FastLanguageModel.from_pretrained(str(tmp_path / "lora"), **asked)
    assert not getattr(again, "is_quantized", False)


@pytest.mark.parametrize("text", ["{", "[]", '{"load_in": "2bit"}', '{"load_in": {}}'])
def test_an_adapter_that_names_no_known_form_says_what_to_pass(adapted, tmp_path, text):
    model, _ = adapted
    model.save_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "sloth_nb_base.json").write_text(text)
    with pytest.raises(ModelError, match=r"sloth_nb_base\.json .* Pass load_in_4bit=True or False"):
        FastLanguageModel.from_pretrained(str(tmp_path / "lora"))


def test_plain_peft_reads_the_same_folder(adapted, tmp_path):
    from peft import AutoPeftModelForCausalLM

    model, tokenizer = adapted
    model.save_pretrained(tmp_path / "lora")
    assert torch.equal(
        logits(model, tokenizer),
        logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora"), tokenizer),
    )


def test_asking_again_for_the_adapter_that_is_there_adds_none_and_another_is_refused(adapted, tmp_path):
    model, _ = adapted
    model.save_pretrained(tmp_path / "lora")
    again, _ = load(tmp_path / "lora")
    with pytest.warns(SlothWarning, match="already has this adapter"):
        assert FastLanguageModel.get_peft_model(again) is again
    with pytest.raises(ModelError, match=r"other settings \(r 16 ≠ 8\)"):
        FastLanguageModel.get_peft_model(again, r=8)


def test_a_damaged_adapter_is_named(adapted, tmp_path):
    model, _ = adapted
    model.save_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match=r"The adapter .*lora can't be put on its base"):
        load(tmp_path / "lora")


VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True, "lora_alpha": 7},
    "dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "ranks": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}},
    "head trained": {"modules_to_save": ["lm_head"]},
    "embeddings trained": {"modules_to_save": ["embed_tokens"]},
    "embeddings adapted": {"target_modules": ["q_proj", "embed_tokens"]},
    "tokens trained": {"trainable_token_indices": [17, 500]},
}


def merged_again(model, folder):
    """The merged model in fp32, saved and read back by transformers alone."""
    empty, weights = merged_model(model, torch.float32)
    empty.save_pretrained(folder, state_dict=weights)
    merged, info = type(empty).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return merged


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_computes_what_base_and_adapter_do(
    arguments, tied, tiny_model, shared_tokenizer, tmp_path
):
    base = tiny_model("llama", tie_word_embeddings=tied, attention_bias=True)
    untrained = logits(base, shared_tokenizer)
    model = stir(FastLanguageModel.get_peft_model(base, **arguments))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    expected = logits(model, shared_tokenizer)
    assert (expected - untrained).abs().max() > 1e-2, "the adapter does something"
    merged = merged_again(model, tmp_path)
    assert torch.allclose(expected, logits(merged, shared_tokenizer), atol=2e-5, rtol=1e-4)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters()), "the model was touched"
    assert torch.equal(expected, logits(model, shared_tokenizer))


FAMILIES = {
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3_text": {},
    "phi3": {},
    "gpt2": {},
    "mixtral": {"num_local_experts": 2},
    "qwen3_moe": {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_other_families_merge_as_well(family, tiny_model, shared_tokenizer, tmp_path):
    model = stir(FastModel.get_peft_model(tiny_model(family, **FAMILIES[family])))
    expected = logits(model, shared_tokenizer)
    assert torch.allclose(
        expected, logits(merged_again(model, tmp_path), shared_tokenizer), atol=5e-5, rtol=1e-4
    )


@pytest.mark.filterwarnings("ignore:.*pattern keys did not match")
def test_adapted_experts_merge_as_well(tiny_model, shared_tokenizer, tmp_path):
    base = tiny_model("qwen3_moe", **FAMILIES["qwen3_moe"])
    untrained = logits(base, shared_tokenizer)
    model = FastLanguageModel.get_peft_model(base, r=2, target_modules=["gate_proj", "up_proj", "down_proj"])
    expected = logits(stir(model), shared_tokenizer)
    assert (expected - untrained).abs().max() > 1e-2
    assert torch.allclose(
        expected, logits(merged_again(model, tmp_path), shared_tokenizer), atol=5e-5, rtol=1e-4
    )


def test_merged_16bit_writes_16_bits_that_load_without_any_adapter(adapted, tmp_path):
    model, tokenizer = adapted
    model.save_pretrained_merged(tmp_path / "model", tokenizer, save_method="merged_16bit")
    merged, its_tokenizer = load(tmp_path / "model", dtype="bfloat16")
    assert its_tokenizer.chat_template == tokenizer.chat_template
    expected, found = logits(model, tokenizer), logits(merged, its_tokenizer).float()
    assert torch.nn.functional.cosine_similarity(expected, found, dim=-1).min() > 0.999
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_merged_model_is_written_in_shards_of_the_size_asked_for(adapted, tmp_path):
    model, tokenizer = adapted
    model.save_pretrained_merged(tmp_path / "model", tokenizer, max_shard_size="200KB")
    assert (tmp_path / "model" / "model.safetensors.index.json").is_file()
    shards = logits(load(tmp_path / "model")[0], tokenizer)
    model.save_pretrained_merged(tmp_path / "model", tokenizer)
    assert [file.name for file in (tmp_path / "model").glob("model*")] == ["model.safetensors"]
    assert torch.equal(shards, logits(load(tmp_path / "model")[0], tokenizer))


def test_save_method_lora_writes_the_adapter_alone(adapted, tmp_path):
    model, tokenizer = adapted
    model.save_pretrained_merged(tmp_path / "lora", tokenizer, save_method="lora")
    assert not (tmp_path / "lora" / "model.safetensors").exists()
    assert torch.equal(logits(model, tokenizer), logits(load(tmp_path / "lora")[0], tokenizer))


def test_a_merged_model_is_not_written_over_an_adapter(adapted, tmp_path):
    model, tokenizer = adapted
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(ModelError, match="holds an adapter"):
        model.save_pretrained_merged(tmp_path / "lora", tokenizer)


def test_a_model_tuned_in_full_is_saved_and_read_back(tiny_llama_path, tmp_path):
    model, tokenizer = load(tiny_llama_path, full_finetuning=True)
    stir(model)
    model.save_pretrained(tmp_path / "full")
    tokenizer.save_pretrained(tmp_path / "full")
    assert torch.equal(logits(model, tokenizer), logits(load(tmp_path / "full")[0], tokenizer))
    model.save_pretrained_merged(tmp_path / "merged", tokenizer)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(ExportError, match="this model has none"):
        model.save_pretrained_merged(tmp_path / "lora", tokenizer, save_method="lora")


def test_an_adapter_gone_wrong_is_not_merged(adapted, tmp_path):
    model, tokenizer = adapted
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    layer.lora_B["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.up_proj holds values that aren't finite"):
        model.save_pretrained_merged(tmp_path / "model", tokenizer)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("merged_4bit", "a second time"),
        ("merged_16bits", "Did you mean 'merged_16bit'"),
        ("mxfp4", "isn't offered"),
    ],
)
def test_other_methods_are_refused_with_a_reason(adapted, tmp_path, method, text):
    model, tokenizer = adapted
    with pytest.raises(ExportError, match=text):
        model.save_pretrained_merged(tmp_path / "model", tokenizer, save_method=method)


@pytest.mark.parametrize(
    ("name", "value", "kind", "text"),
    [
        ("maximum_memory_usage", 0.5, "warns", "one layer at a time"),
        ("temporary_location", "/tmp/x", "warns", "beside the folder"),
        ("save_function", print, "warns", "only as safetensors"),
        ("datasets", ["x"], "warns", "only compressed forms"),
        ("calibration_dataset", ["x"], "warns", "only compressed forms"),
        ("num_calibration_samples", 2, "warns", "only compressed forms"),
        ("max_seq_length", 512, "warns", "only compressed forms"),
        ("safe_serialization", False, "refuses", "can run code when loaded"),
        ("save_peft_format", False, "refuses", "peft's own form"),
        ("state_dict", {}, "refuses", "can't be combined"),
    ],
)
def test_saving_arguments_without_meaning_say_so(adapted, tmp_path, name, value, kind, text):
    model, tokenizer = adapted
    if kind == "warns":
        with pytest.warns(SlothWarning, match=text):
            model.save_pretrained_merged(tmp_path / "model", tokenizer, **{name: value})
    else:
        with pytest.raises((ModelError, ExportError), match=text):
            model.save_pretrained_merged(tmp_path / "model", tokenizer, **{name: value})


def test_a_process_that_is_not_the_main_one_writes_nothing(adapted, tmp_path):
    model, tokenizer = adapted
    model.save_pretrained_merged(tmp_path / "model", tokenizer, is_main_process=False)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("method", ["save_pretrained_gguf", "push_to_hub_gguf", "save_pretrained_torchao"])
def test_forms_that_come_later_say_what_can_be_written_today(adapted, method):
    model, tokenizer = adapted
    with pytest.raises(
        ExportError, match=f"{method} isn't offered yet. What can be written: save_pretrained_merged"
    ):
        getattr(model, method)("model", tokenizer, quantization_method="q4_k_m")


def test_a_copied_or_pickled_model_saves_itself_and_not_the_original(tiny_llama_path, tmp_path):
    model, tokenizer = load(tiny_llama_path)
    torch.save(model, tmp_path / "whole.pt")
    pickled = torch.load(tmp_path / "whole.pt", weights_only=False)
    model = stir(FastLanguageModel.get_peft_model(model))
    twin = copy.deepcopy(model)
    stir(model)
    ids = tokenizer(TEXT, return_tensors="pt")
    for name, other in (("twin", twin), ("pickled", pickled)):
        with torch.no_grad():
            expected = other.eval()(**ids).logits
        assert not torch.equal(expected, logits(model, tokenizer))
        other.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        assert torch.equal(expected, logits(load(tmp_path / name)[0], tokenizer))


def test_the_bound_methods_show_their_own_arguments(adapted):
    assert list(inspect.signature(adapted[0].for_training).parameters) == ["use_gradient_checkpointing"]
    assert "save_method" in inspect.signature(adapted[0].save_pretrained_merged).parameters


# --- the Hub


class Api:
    """Remembers what would have been sent."""

    sent: dict

    def __init__(self, token=None):
        type(self).sent = {"token": token}

    def create_repo(self, repo_id, **options):
        type(self).sent |= options
        return type("Repo", (), {"repo_id": f"me/{repo_id.split('/')[-1]}"})()

    def create_branch(self, repo_id, **options):
        type(self).sent["branch"] = options["branch"]

    def upload_folder(self, *, repo_id, folder_path, **options):
        from pathlib import Path

        type(self).sent |= {
            "repo": repo_id,
            "files": sorted(p.name for p in Path(folder_path).iterdir()),
            **options,
        }


def test_pushing_uploads_the_merged_model_and_its_tokenizer(adapted, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(
        huggingface_hub, "metadata_update", lambda repo, data, **_: Api.sent.update(card=data)
    )
    model, tokenizer = adapted
    model.push_to_hub_merged(
        "me/model", tokenizer, token="hf_x", private=True, revision="v1", tags=["sloth"], create_pr=True
    )
    assert Api.sent["token"] == "hf_x" and Api.sent["private"] and Api.sent["create_pr"]
    assert (Api.sent["repo"], Api.sent["revision"], Api.sent["branch"]) == ("me/model", "v1", "v1")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(Api.sent["files"])
    assert Api.sent["card"] == {"tags": ["sloth"]}


def test_saving_with_push_to_hub_uploads_the_folder_under_its_name(adapted, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model, tokenizer = adapted
    model.save_pretrained_merged(
        tmp_path / "mine", tokenizer, save_method="lora", push_to_hub=True, token="hf_x"
    )
    assert Api.sent["repo"] == "me/mine"
    assert "adapter_model.safetensors" in Api.sent["files"]


def test_an_upload_without_a_network_says_so_and_shows_no_token(adapted):
    model, tokenizer = adapted
    with pytest.raises(ExportError, match="me/model could not be uploaded to the Hub") as caught:
        model.push_to_hub_merged("me/model", tokenizer, save_method="lora", token="hf_secret")
    assert "hf_secret" not in str(caught.value)
