"""The hub, as it answers and as it fails; no connection is ever opened here."""

import json
import socket

import httpx
import pytest
from huggingface_hub import errors as hub

from sloth_nb import catalog, cli
from sloth_nb.catalog.hub import PROXIES, cached_config
from sloth_nb.errors import ModelError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


def response(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/org/model"))


@pytest.fixture
def answers(monkeypatch, tmp_path):
    """answers(what): from now on the hub gives this file or raises this error."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def answer(what):
        def download(repository, file, **options):
            if isinstance(what, Exception):
                raise what
            return what

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)

    return answer


def test_any_model_is_read_by_its_config(answers, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    answers(str(tmp_path / "config.json"))
    info = catalog.from_hub("org/tiny-llama")
    assert info.name == "tiny-llama" and info.shape.layers == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            hub.GatedRepoError("no", response=response(403)),
            "accept its licence once at https://huggingface.co/org/qwen3-15b",
        ),
        (hub.RepositoryNotFoundError("no", response=response(404)), "In the catalogue: qwen3-14b"),
        (hub.RemoteEntryNotFoundError("no", response=response(404)), "isn't a transformers model"),
        (hub.LocalEntryNotFoundError("no"), "can't be reached"),
        (hub.OfflineModeIsEnabled("no"), "smollm2-135m-instruct always works offline"),
        (hub.HFValidationError("no"), "is no repository's name"),
        (ConnectionError("no"), "Nothing of the hub is cached here"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else "",
)
def test_each_failure_is_one_sentence_that_says_what_to_do(answers, error, said):
    answers(error)
    with pytest.raises(ModelError, match=said):
        catalog.from_hub("org/qwen3-15b")


def test_what_was_fetched_before_is_found_without_asking(answers, tmp_path):
    folder = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    answers(AssertionError("asked the network"))
    assert cached_config("org/tiny") == folder / "config.json"
    assert catalog.cached_models() == ["org/tiny"]
    assert catalog.resolve("org/tiny").shape.layers == 3
    with pytest.raises(ModelError, match="No model named 'org/other'"):
        catalog.resolve("org/other")


def test_a_missing_network_names_what_is_cached(answers, tmp_path):
    folder = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    answers(ConnectionError("no"))
    with pytest.raises(ModelError, match="In this machine's cache: org/tiny"):
        catalog.from_hub("org/else")


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "/x", "x/", "../../etc/passwd"])
def test_only_a_repositorys_name_is_looked_for(answers, name):
    assert cached_config(name) is None


def test_the_command_line_asks_the_hub_only_when_told(answers, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    answers(str(tmp_path / "config.json"))
    assert cli.main(["estimate", "org/tiny", "--gpu", "T4"]) == 1
    assert cli.main(["estimate", "org/tiny", "--gpu", "T4", "--hub"]) == 0


def test_without_a_network_the_answer_is_at_once_what_is_cached(answers, tmp_path, monkeypatch):
    def nowhere(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", nowhere)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    answers(AssertionError("asked the network"))
    with pytest.raises(ModelError, match="can't be reached for org/tiny"):
        catalog.from_hub("org/tiny")
    folder = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert catalog.from_hub("org/tiny").shape.layers == 3
