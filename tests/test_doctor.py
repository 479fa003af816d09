"""`sloth-nb doctor` on machines that we don't have."""

import os
from dataclasses import replace

import pytest

from sloth_nb import catalog, cli, doctor
from sloth_nb.memory.machine import Device

GIB = 2**30
HERE = doctor.Machine(
    python="3.11.7",
    system="Linux x86_64",
    versions={"torch": "2.13.0", "transformers": "5.23.0", "triton": "3.7.1", "bitsandbytes": "0.50.2"},
    cards=[Device(catalog.gpu("H200"), 130 * GIB)],
    ram_gib=64.0,
    disk_gib=500.0,
    requirements=["torch>=2.8", "transformers<6,>=5.12", 'bitsandbytes>=0.49; extra == "gpu"'],
    torch_cuda="12.8",
    torch_triton="triton==3.7.1",
    token=True,
)


def said(machine):
    return "\n".join(map(str, doctor.examine(machine)))


def wrong(machine):
    return [finding.text for finding in doctor.examine(machine) if finding.look == "bad"]


def test_a_good_machine_has_nothing_wrong():
    assert wrong(HERE) == []
    assert "GPU 0: H200, 130.0 of 139.8 GB free" in said(HERE)
    assert "Attention: cuDNN" in said(HERE) and "Kernels: Triton" in said(HERE)


def test_a_cpu_says_what_it_computes_in():
    assert "The CPU computes in bf16" in said(replace(HERE, cards=[]))
    assert "The CPU computes in float32 (" in said(replace(HERE, cards=[], cpu_bf16=False))
    assert "The CPU computes" not in said(HERE)


@pytest.mark.parametrize(
    ("card", "attention", "kernels"),
    [
        ("T4", "memory-efficient", "products by cuBLAS"),
        ("P100", "memory-efficient", "Triton needs compute capability 7.0"),
        ("A100", "the flash kernel", "Kernels: Triton"),
    ],
)
def test_it_says_what_will_run_on_the_card(card, attention, kernels):
    machine = replace(HERE, cards=[Device(catalog.gpu(card), GIB)])
    assert attention in said(machine) and kernels in said(machine)


def test_a_torch_without_cuda_beside_a_card_is_wrong():
    assert any("built without CUDA" in text for text in wrong(replace(HERE, torch_cuda=None)))
    assert wrong(replace(HERE, torch_cuda=None, cards=[])) == []


@pytest.fixture
def a_driver_with_a_t4(monkeypatch, tmp_path):
    """An nvidia-smi on the path that knows one card."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 15360, 15000, 7.5'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("cuda", "refusal", "said"),
    [
        (
            None,
            "Torch not compiled with CUDA enabled",
            "was built without CUDA and can't use the card: install",
        ),
        (
            "12.8",
            "The NVIDIA driver on your system is too old (found version 11040). Please update",
            "for CUDA 12.8 can't use the card (The NVIDIA driver on your system is too old (found version 11040)): "
            "update the NVIDIA driver, or install torch",
        ),
    ],
)
def test_a_card_that_torch_can_not_use_is_seen_and_wrong(
    cuda, refusal, said, a_driver_with_a_t4, monkeypatch, capsys
):
    import torch

    def init():
        raise AssertionError(refusal)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "GPU 0: T4, 14.6 of 15.0 GB free" in out and said in out and "No NVIDIA card" not in out


def test_a_card_that_is_hidden_on_purpose_is_no_fault():
    machine = replace(HERE, torch_refusal="No CUDA GPUs are available", hidden=True)
    assert wrong(machine) == [] and "CUDA_VISIBLE_DEVICES hides every card" in said(machine)


@pytest.mark.parametrize(
    ("card", "targets", "fits"),
    [
        ("T4", "sm_75 sm_80 sm_90", True),
        ("P100", "sm_75 sm_80 sm_90", False),
        ("RTX 4090", "sm_80 sm_90", True),
        ("RTX 5090", "sm_80 sm_90a", False),
        ("RTX 5090", "sm_80 compute_90", True),
        ("A100", "sm_86 sm_90 compute_90", False),
        ("H200", "", True),
    ],
)
def test_a_torch_without_code_for_the_card_is_wrong(card, targets, fits):
    machine = replace(HERE, cards=[Device(catalog.gpu(card), GIB)], torch_targets=targets.split())
    assert any(f"has no code for {catalog.gpu(card).name}" in text for text in wrong(machine)) is not fits
    assert ("Attention:" in said(machine)) is fits


def test_a_version_outside_its_range_is_wrong_and_named():
    old = replace(HERE, versions={**HERE.versions, "transformers": "4.57.0"})
    assert any("transformers 4.57.0 is outside" in text for text in wrong(old))
    missing = replace(HERE, versions={"torch": "2.13.0"})
    assert any("transformers is missing" in text for text in wrong(missing))


def test_an_extra_that_is_not_there_is_no_fault():
    without = {name: version for name, version in HERE.versions.items() if name != "bitsandbytes"}
    machine = replace(HERE, versions=without)
    assert wrong(machine) == [] and "No bitsandbytes" in said(machine)


def test_a_triton_that_torch_was_not_built_for_is_noted():
    machine = replace(HERE, versions={**HERE.versions, "triton": "3.9.0"})
    assert "triton 3.9.0 is not what torch was built for" in said(machine) and wrong(machine) == []


def test_a_folder_that_hides_the_kernels_package_is_wrong():
    assert any("hides" in text for text in wrong(replace(HERE, shadow=True)))


def test_two_cards_are_both_named_and_how_to_use_them():
    machine = replace(HERE, cards=[Device(catalog.gpu("T4"), 14 * GIB)] * 2)
    assert "GPU 1: T4" in said(machine) and "notebook_launcher" in said(machine)


def test_a_token_is_told_of_but_never_shown(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    assert cli.main(["doctor"]) in (0, 1)
    out = capsys.readouterr().out
    assert "token: found" in out and "secret" not in out
