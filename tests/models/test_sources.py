"""Finding a model by name, and what is said when it can't be found."""

import json
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from sloth_nb import FastLanguageModel
from sloth_nb.catalog.embedded import DEFAULT_MODEL, default_model_path
from sloth_nb.errors import ModelError
from sloth_nb.models.sources import HubOptions, Source, beside_adapter, find_source


def find(name, **options):
    return find_source(name, HubOptions(**options))


def folder(path, **files):
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def hub(monkeypatch):
    """A Hub that answers every download with one error, or a file; remembers how it was asked."""
    state = SimpleNamespace(answer=None, asked=[], reached=None)

    def download(repo_id, filename, **options):
        state.asked.append((repo_id, filename, options))
        answer = state.answer(filename) if callable(state.answer) else state.answer
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    def reach(url, **options):
        if state.reached is not None:
            raise state.reached

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", reach)
    return state


def http_error(kind):
    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
    return kind("refused", response=response)


def test_the_embedded_model_is_found_by_its_name_in_any_case():
    assert find(DEFAULT_MODEL) == find(DEFAULT_MODEL.upper()) == Source(str(default_model_path()))


def test_a_folder_wins_over_a_name_of_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / DEFAULT_MODEL, config={})
    assert find(DEFAULT_MODEL).base == DEFAULT_MODEL


def test_a_name_of_the_catalogue_leads_to_its_repository(hub):
    hub.answer = errors.LocalEntryNotFoundError("offline")
    with pytest.raises(ModelError, match="'Qwen/Qwen3-14B' is not on this machine"):
        find("qwen3-14b")


def test_without_a_network_only_this_machine_is_looked_through(hub, tmp_path):
    hub.reached = httpx.ConnectError("Name or service not known")
    hub.answer = lambda file: (
        tmp_path if file == "config.json" else errors.LocalEntryNotFoundError("not cached")
    )
    found = find("owner/cached")
    assert all(options["local_files_only"] for _, _, options in hub.asked)
    assert found.base_options.local_files_only


def test_an_adapters_folder_brings_its_base_and_its_tokenizer(tmp_path):
    base = folder(tmp_path / "base", config={})
    adapter = folder(tmp_path / "lora", adapter_config={"base_model_name_or_path": str(base)})
    found = find(str(adapter))
    assert (found.base, found.adapter) == (str(base), str(adapter))
    assert found.tokenizer[0] == str(base)
    (adapter / "tokenizer_config.json").write_text("{}")
    assert find(str(adapter)).tokenizer[0] == str(adapter)


def test_an_adapter_trained_on_the_embedded_model_of_another_machine_finds_the_one_here(tmp_path):
    elsewhere = "C:\\Users\\ann\\AppData\\Local\\sloth_nb\\models\\smollm2-135m-instruct-1"
    adapter = folder(tmp_path / "lora", adapter_config={"base_model_name_or_path": elsewhere})
    assert find(str(adapter)).base == str(default_model_path())


@pytest.mark.parametrize("own_tokenizer", [True, False])
def test_the_token_and_the_revision_reach_the_hub_and_the_bases_revision_is_its_own(
    hub, tmp_path, own_tokenizer
):
    config = tmp_path / "adapter_config.json"
    config.write_text(
        json.dumps({"base_model_name_or_path": "owner/base", "revision": "v1"}), encoding="utf-8"
    )

    def answer(filename):
        last = hub.asked[-1][0]
        if filename == "adapter_config.json":
            return config if last == "owner/lora" else http_error(errors.RemoteEntryNotFoundError)
        if filename == "tokenizer_config.json" and not own_tokenizer:
            return http_error(errors.RemoteEntryNotFoundError)
        return tmp_path

    hub.answer = answer
    found = find("owner/lora", token="hf_x", revision="main", cache_dir="there")
    assert found.adapter_options == HubOptions("hf_x", "main", "there")
    assert found.base_options == HubOptions("hf_x", "v1", "there")
    assert hub.asked[0][2] == {
        "token": "hf_x",
        "revision": "main",
        "cache_dir": "there",
        "local_files_only": False,
    }
    assert hub.asked[-1][2]["revision"] == "v1"
    assert found.tokenizer[0] == ("owner/lora" if own_tokenizer else "owner/base")


def test_a_file_beside_an_adapter_is_found_here_and_on_the_hub(hub, tmp_path):
    here = folder(tmp_path / "lora", note={})
    assert beside_adapter(Source("base"), "note.json") is None
    assert beside_adapter(Source("base", adapter=str(here)), "note.json") == here / "note.json"
    assert beside_adapter(Source("base", adapter=str(here)), "other.json") is None
    there = Source("base", adapter="owner/lora", adapter_options=HubOptions("hf_x", "v1"))
    hub.answer = here / "note.json"
    assert beside_adapter(there, "note.json") == here / "note.json"
    assert hub.asked == [
        ("owner/lora", "note.json", {"token": "hf_x", "revision": "v1", "local_files_only": False})
    ]
    for missing in (http_error(errors.RemoteEntryNotFoundError), errors.LocalEntryNotFoundError("offline")):
        hub.answer = missing
        assert beside_adapter(there, "note.json") is None
    hub.answer = http_error(errors.GatedRepoError)
    with pytest.raises(ModelError, match="is gated"):
        beside_adapter(there, "note.json")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            http_error(errors.GatedRepoError),
            r"is gated: accept its licence at https://huggingface\.co/owner/name",
        ),
        (
            http_error(errors.RepositoryNotFoundError),
            "There is no model 'owner/name' on the Hub, or it is private",
        ),
        (http_error(errors.RevisionNotFoundError), "has no revision 'v9'"),
        (http_error(errors.RemoteEntryNotFoundError), "holds neither config.json nor adapter_config.json"),
        (errors.LocalEntryNotFoundError("x"), "not on this machine, and the Hub can't be reached"),
        (errors.OfflineModeIsEnabled("x"), "not on this machine, and the Hub can't be reached"),
        (ConnectionError("reset by peer"), "could not be asked for 'owner/name': reset by peer"),
    ],
)
def test_each_refusal_of_the_hub_is_one_sentence_that_names_the_offline_model(hub, error, text):
    hub.answer = error
    with pytest.raises(ModelError, match=text) as caught:
        find("owner/name", revision="v9", token="hf_secret")
    assert f"{DEFAULT_MODEL!r} always works offline" in str(caught.value)
    assert "hf_secret" not in str(caught.value)


def test_without_a_network_the_real_hub_client_ends_in_the_same_sentence():
    with pytest.raises(ModelError, match="not on this machine, and the Hub can't be reached"):
        FastLanguageModel.from_pretrained("owner/nowhere")


def test_an_impossible_id_is_not_asked_for():
    with pytest.raises(ModelError, match="neither a folder here nor a possible id"):
        find("two words")


def test_near_names_of_the_catalogue_the_cache_and_this_folder_are_offered(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "lora_model", adapter_config={})
    repos = [SimpleNamespace(repo_id=name, repo_type="model") for name in ("me/tuned", "owner/other")]
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: SimpleNamespace(repos=repos))
    hub.answer = errors.LocalEntryNotFoundError("x")
    with pytest.raises(ModelError) as caught:
        find("lora_modle")
    assert "Nearest on this machine: 'lora_model'" in str(caught.value)
    assert "Also downloaded before: 'me/tuned', 'owner/other'" in str(caught.value)
    with pytest.raises(ModelError, match=r"Nearest in the catalogue: .*'qwen3-14b'"):
        find("qwen3-14bb")


@pytest.mark.parametrize("name", ["", "  ", None, 7])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ModelError, match="is not a name"):
        find(name)


def test_a_missing_folder_names_the_nearest(tmp_path):
    folder(tmp_path / "my-model", config={})
    with pytest.raises(ModelError, match=r"There is no folder .*my-modle\. Nearest: my-model"):
        find(str(tmp_path / "my-modle"))
    with pytest.raises(ModelError, match=r"Models there: my-model"):
        find(str(tmp_path / "zzz"))
    with pytest.raises(ModelError, match="doesn't exist either"):
        find(str(tmp_path / "no" / "such"))


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"is a file. Pass the folder"):
        find(str(tmp_path / "model.gguf"))


def test_a_runs_folder_names_its_latest_checkpoint(tmp_path):
    for step in (20, 100):
        folder(tmp_path / "outputs" / f"checkpoint-{step}", config={})
    with pytest.raises(ModelError, match=r"Its latest checkpoint is .*checkpoint-100"):
        find(str(tmp_path / "outputs"))


def test_a_folder_without_a_model_says_what_it_holds(tmp_path):
    folder(tmp_path / "stuff", notes=[])
    with pytest.raises(
        ModelError, match=r"neither config\.json nor adapter_config\.json; it holds notes\.json"
    ):
        find(str(tmp_path / "stuff"))


def test_adapters_without_a_base_or_on_another_adapter_are_refused(tmp_path):
    nowhere = folder(tmp_path / "nowhere", adapter_config={})
    with pytest.raises(ModelError, match="doesn't say which model it belongs to"):
        find(str(nowhere))
    gone = folder(tmp_path / "gone", adapter_config={"base_model_name_or_path": str(tmp_path / "x" / "y")})
    with pytest.raises(ModelError, match=r"belongs to the model .* and that failed: There is no folder"):
        find(str(gone))
    base = folder(tmp_path / "base", config={})
    first = folder(tmp_path / "first", adapter_config={"base_model_name_or_path": str(base)})
    second = folder(tmp_path / "second", adapter_config={"base_model_name_or_path": str(first)})
    with pytest.raises(ModelError, match="is itself an adapter"):
        find(str(second))


def test_a_damaged_adapter_config_is_named(tmp_path):
    broken = folder(tmp_path / "broken")
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json can't be read"):
        find(str(broken))


def test_a_model_that_brings_its_own_code_is_not_run_unless_allowed(tiny_llama_path):
    config = json.loads((tiny_llama_path / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}
    (tiny_llama_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tiny_llama_path / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="trust_remote_code"):
        FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False)
