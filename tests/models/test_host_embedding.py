"""An embedding in host memory: the same numbers, the same files, and every reason why it may have to stay."""

import copy
import gc

import pytest
import torch
from torch import nn

from sloth_nb import FastLanguageModel, generate
from sloth_nb.errors import ModelError, SlothWarning
from sloth_nb.models.host_embedding import HostEmbedding, offload_embedding, why_embedding_stays
from sloth_nb.models.report import engine_of
from sloth_nb.models.workload import work_of


@pytest.fixture
def untied(tiny_model):
    return tiny_model("llama", tie_word_embeddings=False)


def by_hand(model):
    """As on a card; here the host is the device."""
    model.set_input_embeddings(HostEmbedding(model.get_input_embeddings()))
    return model


def loss_and_gradients(model, ids):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_model_computes_trains_and_saves_what_it_did(untied, tmp_path):
    ids = torch.randint(4, 1000, (2, 33), generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(untied)
    hosted = by_hand(untied)
    assert hosted.state_dict().keys() == plain.state_dict().keys()
    for model in (plain, hosted):
        for parameter in model.model.embed_tokens.parameters():
            parameter.requires_grad_(False)
    wanted, got = (loss_and_gradients(model, ids) for model in (plain, hosted))
    assert torch.equal(wanted[0], got[0]) and len(wanted[1]) == len(got[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(wanted[1], got[1], strict=True))

    hosted.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    other = by_hand(copy.deepcopy(plain))
    other.model.embed_tokens.weight.zero_()
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other.model.embed_tokens.weight, plain.model.embed_tokens.weight)


def test_the_engine_and_the_memory_model_know_where_it_is(untied):
    untied.get_input_embeddings().requires_grad_(False)
    model = FastLanguageModel.get_peft_model(by_hand(untied), use_gradient_checkpointing=True)
    assert engine_of(model) is not None and work_of(model).embedding_offload
    ids = torch.arange(4, 40)[None]
    loss, gradients = loss_and_gradients(model.train(), ids)
    assert loss.isfinite() and gradients and "host memory" in str(model)


def test_a_copy_a_cast_and_a_checkpoint_that_does_not_fit(untied):
    hosted = by_hand(untied)
    assert torch.equal(copy.deepcopy(hosted).model.embed_tokens.weight, hosted.model.embed_tokens.weight)
    assert hosted.half().model.embed_tokens.weight.dtype == torch.float16
    assert "model.embed_tokens.weight" not in dict(hosted.named_parameters())
    smaller = {"model.embed_tokens.weight": torch.zeros(3, 64)}
    with pytest.raises(RuntimeError, match=r"embed_tokens.weight is \(3, 64\)"):
        hosted.load_state_dict(smaller, strict=False)
    with pytest.raises(RuntimeError, match=r"embed_tokens\.weight"):
        hosted.load_state_dict({})


def test_an_embedding_that_has_to_stay_says_why(tiny_model):
    reasons = {
        "the output head as well": tiny_model("llama", tie_word_embeddings=True),
        "it is trained": tiny_model("llama", tie_word_embeddings=False),
        "does more than look up rows": tiny_model("gemma3_text", tie_word_embeddings=False),
        "in host memory already": by_hand(tiny_model("llama", tie_word_embeddings=False)),
    }
    for reason, model in reasons.items():
        with pytest.warns(SlothWarning, match=f"stays where it is, because .*{reason}"):
            assert offload_embedding(model) == 0
    frozen = tiny_model("llama", tie_word_embeddings=False).requires_grad_(False)
    assert why_embedding_stays(frozen) == "it is on cpu anyway"
    assert isinstance(frozen.get_input_embeddings(), nn.Embedding)


@pytest.mark.gpu
def test_on_a_card_it_leaves_room_and_changes_nothing(untied, shared_tokenizer, tmp_path):
    untied.save_pretrained(tmp_path)
    shared_tokenizer.save_pretrained(tmp_path)
    losses, sizes, texts = [], [], []
    for offload in (False, True):
        gc.collect()  # other tests' models
        before = torch.cuda.memory_allocated()
        model, tokenizer = FastLanguageModel.from_pretrained(
            str(tmp_path), load_in_4bit=False, load_in_16bit=True, offload_embedding=offload
        )
        sizes.append(torch.cuda.memory_allocated() - before)
        texts.append(generate(model, tokenizer, "Hello", max_new_tokens=4, temperature=0))
        model = FastLanguageModel.get_peft_model(model, random_state=1)
        assert model.device.type == "cuda"
        ids = torch.arange(4, 132, device="cuda")[None]
        for _ in range(5):  # captured at the third
            losses.append(loss_and_gradients(model.train(), ids)[0].item())
            model.zero_grad()
        assert (not offload) or len(engine_of(model).captured.replays) == 1
        del model
    assert losses[:5] == losses[5:] and texts[0] == texts[1]
    assert sizes[0] - sizes[1] >= untied.get_input_embeddings().weight.numel() * 2


def test_a_merged_model_has_its_embedding(tiny_model, shared_tokenizer, tmp_path):
    base = tmp_path / "base"
    tiny_model("llama", tie_word_embeddings=False).save_pretrained(base)
    shared_tokenizer.save_pretrained(base)
    model, tokenizer = FastLanguageModel.from_pretrained(str(base), load_in_4bit=False, dtype="float32")
    model = FastLanguageModel.get_peft_model(by_hand(model))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    model.save_pretrained_merged(tmp_path / "merged", tokenizer)
    model.save_pretrained(tmp_path / "adapter")
    weight = model.get_input_embeddings().weight
    for folder, rounded in (("merged", weight.bfloat16().float()), ("adapter", weight)):
        again, _ = FastLanguageModel.from_pretrained(
            str(tmp_path / folder), load_in_4bit=False, dtype="float32"
        )
        assert torch.equal(again.get_input_embeddings().weight, rounded), folder


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"trainable_token_indices": [1]},
    ],
    ids=["whole", "as a LoRA", "some tokens"],
)
def test_training_it_is_refused(untied, settings):
    with pytest.raises(ModelError, match=r"embed_tokens is in host memory .* Load the model without"):
        FastLanguageModel.get_peft_model(by_hand(untied), **settings)
    assert isinstance(
        FastLanguageModel.get_peft_model(untied, modules_to_save=["lm_head"]).get_input_embeddings(),
        HostEmbedding,
    )
