"""`sloth-nb estimate`: text or JSON, exit codes that a script can use."""

import json
import subprocess
import sys

import pytest

from sloth_nb import cli
from sloth_nb.catalog import find
from sloth_nb.memory import estimate


def test_it_says_what_the_library_says_and_ends_with_0_when_it_fits(capsys):
    assert cli.main(["estimate", "qwen3-14b", "--gpu", "T4", "--seq", "2048"]) == 0
    said = capsys.readouterr().out
    assert str(estimate("qwen3-14b", gpu="T4", length=2048)) in said
    assert "Longest context" in said


def test_it_ends_with_1_and_the_changes_when_it_does_not_fit(capsys):
    assert cli.main(["estimate", "qwen3-14b", "--gpu", "T4", "--seq", "16384"]) == 1
    assert "It fits if you:\n  1. " in capsys.readouterr().out


def test_json_has_every_number(capsys):
    cli.main(["estimate", "llama-3.1-8b", "--gpu", "A100", "--batch", "4", "--json"])
    data = json.loads(capsys.readouterr().out)
    answer = estimate("llama-3.1-8b", gpu="A100", batch=4)
    assert data["total_bytes"] == answer.total == sum(data["kinds"].values())
    assert data["longest_context"] == answer.longest_context() and data["fits"]


def test_a_plan_fits_where_the_plain_run_does_not(capsys):
    call = ["estimate", "llama-3.1-8b", "--gpu", "T4", "--seq", "8192"]
    assert cli.main(call) == 1
    assert cli.main([*call, "--plan", "--ram", "64"]) == 0
    assert "Plan for llama-3.1-8b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["qwen3-15b"], "Nearest: qwen3-14b"),
        (["org/unheard-of"], "or by --hub, which asks the hub"),
        (["/nonexistent/folder"], "There is no folder or file '/nonexistent/folder'"),
        (["./qwen3-14b"], "There is no folder or file './qwen3-14b'"),
        (["~/nonexistent", "--hub"], "There is no folder or file '~/nonexistent'"),
        (["~nobody-of-that-name/x"], "can't be looked for"),
        (["x" * 5000], "can't be looked for: File name too long"),
        (["qwen3-14b", "--gpu", "RTX 4099"], "RTX 4090"),
        (["qwen3-14b", "--batch", "0"], "batch is 0"),
        (["."], "There is no config.json"),
    ],
)
def test_a_wrong_question_gets_one_sentence(arguments, said, capsys):
    assert cli.main(["estimate", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_the_hub_is_asked_only_for_what_is_not_here(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(
        "sloth_nb.memory.estimate_command.from_hub", lambda name: asked.append(name) or find("qwen3-8b")
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(find("qwen3-0.6b").config))
    for name in ("qwen3-14b", "Qwen/Qwen3-14B", "~/mine", "org/new"):
        assert cli.main(["estimate", name, "--hub", "--gpu", "A100"]) == 0
    assert asked == ["org/new"]
    assert "mine" in capsys.readouterr().out


def test_it_answers_without_torch():
    program = (
        "import sys; from sloth_nb.cli import main; main(['estimate', 'qwen3-14b', '--gpu', 'T4']);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_the_language_part_alone_is_asked_for_with_a_flag(capsys):
    assert cli.main(["estimate", "gemma-3-4b-it", "--gpu", "T4"]) == 1
    assert cli.main(["estimate", "gemma-3-4b-it", "--gpu", "T4", "--text-only"]) == 0


def test_the_advice_keeps_to_the_ram_that_is_given(capsys):
    call = ["estimate", "mistral-7b-instruct-v0.3", "--gpu", "T4", "--seq", "32768"]
    assert cli.main([*call, "--ram", "128"]) == 1
    assert "GB of RAM)" in capsys.readouterr().out
    assert cli.main([*call, "--ram", "4"]) == 1
    assert "GB of RAM" not in capsys.readouterr().out
    assert cli.main([*call, "--ram", "nan"]) == 1
    assert "nan GB was given as the RAM" in capsys.readouterr().err


def test_what_fits_the_card_and_not_the_ram_says_so(capsys):
    call = ["estimate", "llama-3.1-8b", "--gpu", "H200", "--policy", "offload", "--seq", "16384"]
    assert cli.main([*call, "--ram", "8"]) == 0
    assert "of which 4.0 GB may be used. It fits if you:\n  1. keep each" in capsys.readouterr().out
