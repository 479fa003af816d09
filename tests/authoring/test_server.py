"""The server's part of the extension, asked over HTTP as JupyterLab asks it."""

import json

import nbformat
import pytest
from jupyter_server.serverapp import ServerApp
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port

from sloth_nb.authoring.server import choices


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """ask(path, body) -> (status, answer) of a server whose folder is tmp_path/files."""
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    (tmp_path / "files").mkdir()
    socket, port = bind_unused_port()
    socket.close()
    ServerApp.clear_instance()
    server = ServerApp.instance()
    server.initialize(
        [
            f"--ServerApp.port={port}",
            "--ServerApp.ip=127.0.0.1",
            "--ServerApp.allow_root=True",
            "--ServerApp.open_browser=False",
            "--IdentityProvider.token=secret",
            f"--ServerApp.root_dir={tmp_path / 'files'}",
            "--ServerApp.jpserver_extensions={'sloth_nb.authoring.server': True}",
        ],
        new_httpserver=True,
    )
    loop = IOLoop.current()

    def call(path, body=None, token="secret"):
        async def fetch():
            return await AsyncHTTPClient().fetch(
                f"http://127.0.0.1:{port}/sloth-nb/{path}",
                raise_error=False,
                headers={"Authorization": f"token {token}"},
                method="GET" if body is None else "POST",
                body=None if body is None else json.dumps(body),
            )

        response = loop.run_sync(fetch)
        return response.code, json.loads(response.body or b"{}")

    yield call
    server.http_server.stop()
    ServerApp.clear_instance()


def test_only_who_is_logged_in_is_answered(ask):
    assert ask("choices", token="wrong")[0] == 403
    assert ask("classroom", {"folder": ""}, token="wrong")[0] == 403


def test_choices_are_models_with_the_tasks_that_they_can_do(ask):
    status, answer = ask("choices")
    assert status == 200 and answer == choices()
    names = {task["name"] for task in answer["tasks"]}
    assert answer["models"] and all(
        set(model["tasks"]) <= names and model["tasks"] for model in answer["models"]
    )
    usual = answer["usual"]
    assert usual["task"] in next(m["tasks"] for m in answer["models"] if m["name"] == usual["model"])
    assert usual["platform"] in {place["name"] for place in answer["platforms"]}


def test_a_notebook_is_written_into_the_folder_and_never_over_another(ask, tmp_path):
    (tmp_path / "files" / "mine").mkdir()
    wanted = {"model": "smollm2-135m-instruct", "task": "sft", "platform": "jupyter", "folder": "mine"}
    paths = [ask("notebook", wanted)[1]["path"] for _ in range(2)]
    assert len(set(paths)) == 2
    for path in paths:
        nbformat.validate(nbformat.read(tmp_path / "files" / path, as_version=4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "qwen3-140b"}, "qwen3-14b"),
        ({"task": "dance"}, "dance"),
        ({"platform": "moon"}, "moon"),
        ({"folder": "nowhere"}, "can't be written"),
        ({"folder": "../.."}, ""),
    ],
)
def test_what_can_not_be_is_a_sentence(ask, tmp_path, change, said):
    wanted = {"model": "smollm2-135m-instruct", "task": "sft", "platform": "jupyter", "folder": ""}
    status, answer = ask("notebook", wanted | change)
    assert 400 <= status < 500 and said in answer["message"]
    assert not list(tmp_path.rglob("*.ipynb"))


def test_the_course_is_written_once_and_a_students_work_stays(ask, tmp_path):
    assert ask("classroom", {"folder": ""}) == (200, {"path": "classroom/1_what_a_model_is.ipynb"})
    course = tmp_path / "files" / "classroom"
    assert len(list(course.glob("*.ipynb"))) == 8
    (course / "3_lora_from_scratch.ipynb").write_text("my work")
    (course / "1_what_a_model_is.ipynb").unlink()
    assert ask("classroom", {"folder": ""})[0] == 200
    assert (course / "3_lora_from_scratch.ipynb").read_text() == "my work"
    assert (course / "1_what_a_model_is.ipynb").is_file()


def test_a_body_that_is_no_text_is_refused(ask):
    assert ask("classroom", {"folder": 3})[0] == 400
