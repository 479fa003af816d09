"""The same calls on an NVIDIA GPU: placement, precision, quantised weights, and a step of training."""

import pytest
import torch

from sloth_nb import FastLanguageModel, generate, is_bf16_supported

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:.* GPUs are visible"),
]


def step(model, tokenizer):
    ids = tokenizer("slow and steady wins the race", return_tensors="pt").to("cuda")
    model.train()
    loss = model(**ids, labels=ids["input_ids"]).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), gradients


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_model_loads_trains_answers_and_trains_on(bits, tiny_llama_path):
    if bits < 16:
        pytest.importorskip("bitsandbytes")
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(tiny_llama_path), load_in_4bit=bits == 4, load_in_8bit=bits == 8
    )
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    capable = torch.cuda.get_device_capability() >= (8, 0)
    assert is_bf16_supported() is capable
    assert model.dtype == (torch.bfloat16 if capable else torch.float16)
    model = FastLanguageModel.get_peft_model(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    loss, before = step(model, tokenizer)
    assert isinstance(generate(model, tokenizer, "Hello", max_new_tokens=3), str)
    again, after = step(model, tokenizer)
    assert before.keys() == after.keys() and len(before) == sum(p.requires_grad for p in model.parameters())
    assert again == pytest.approx(loss, rel=1e-3)


def test_a_merged_4_bit_model_computes_what_the_quantised_one_does(tiny_llama_path, tmp_path):
    pytest.importorskip("bitsandbytes")
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama_path))
    model = FastLanguageModel.get_peft_model(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    with pytest.warns(match="merged into the quantised weights"):
        model.save_pretrained_merged(tmp_path / "merged", tokenizer)
    merged, _ = FastLanguageModel.from_pretrained(str(tmp_path / "merged"), load_in_16bit=True)
    ids = tokenizer("slow and steady", return_tensors="pt").to("cuda")
    with torch.no_grad():
        expected, found = model.eval()(**ids).logits.float(), merged.eval()(**ids).logits.float()
    assert torch.nn.functional.cosine_similarity(expected, found, dim=-1).min() > 0.999


def test_random_numbers_of_the_gpu_are_left_alone(tiny_llama_path):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False)
    before = torch.cuda.get_rng_state()
    FastLanguageModel.get_peft_model(model)
    assert torch.equal(before, torch.cuda.get_rng_state())
