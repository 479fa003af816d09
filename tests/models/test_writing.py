"""A folder is written whole or stays as it was: when the disk fills up, at an interrupt, beside other files."""

import errno

import pytest
import torch

from sloth_nb.errors import ModelError
from sloth_nb.models.writing import written_folder
from tests.models.tuned import load, logits, stir


def fail_after(monkeypatch, target, error):
    """The first write goes through, the next fails."""
    import safetensors.torch

    real, calls = safetensors.torch.save_file, []

    def save(*args, **kwargs):
        calls.append(1)
        if len(calls) >= target:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", save)
    monkeypatch.setattr("peft.peft_model.safe_save_file", save)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "safetensors"],
)
def test_a_full_disk_leaves_the_adapter_that_was_there_whole(adapted, tmp_path, monkeypatch, error):
    model, tokenizer = adapted
    folder = tmp_path / "lora"
    model.save_pretrained(folder)
    saved = logits(model, tokenizer)
    stir(model)
    with monkeypatch.context() as during:
        fail_after(during, 1, error)
        with pytest.raises(
            ModelError, match=r"lora could not be saved: the disk is full\. What was saved there"
        ):
            model.save_pretrained(folder)
    assert torch.equal(saved, logits(load(folder)[0], tokenizer))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".lora")] == []
    model.save_pretrained(folder)
    assert torch.equal(logits(model, tokenizer), logits(load(folder)[0], tokenizer))


def test_a_full_disk_after_some_shards_leaves_the_merged_model_whole(adapted, tmp_path, monkeypatch):
    model, tokenizer = adapted
    model.save_pretrained_merged(tmp_path / "model", tokenizer, max_shard_size="200KB")
    saved = logits(load(tmp_path / "model")[0], tokenizer)
    stir(model)
    fail_after(monkeypatch, 2, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ModelError, match="the disk is full"):
        model.save_pretrained_merged(tmp_path / "model", tokenizer, max_shard_size="100KB")
    assert torch.equal(saved, logits(load(tmp_path / "model")[0], tokenizer))


def test_an_interrupt_while_saving_leaves_what_was_there(adapted, tmp_path, monkeypatch):
    model, _ = adapted
    model.save_pretrained(tmp_path / "lora")
    saved = (tmp_path / "lora" / "adapter_model.safetensors").read_bytes()
    stir(model)
    fail_after(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_model.safetensors").read_bytes() == saved


def test_other_files_of_the_folder_stay(adapted, tmp_path):
    model, _ = adapted
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "README.md").write_text("---\nlicense: mit\n---\nMy words.\n", encoding="utf-8")
    model.save_pretrained(tmp_path / "lora")
    assert (tmp_path / "lora" / "notes.txt").read_text() == "mine"
    assert "My words." in (tmp_path / "lora" / "README.md").read_text(encoding="utf-8")


def test_an_error_that_is_not_the_disks_passes_unchanged(tmp_path):
    with pytest.raises(ZeroDivisionError), written_folder(tmp_path / "x"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ModelError, match="Nothing can be written to"),
        written_folder(tmp_path / "file" / "x"),
    ):
        pass
