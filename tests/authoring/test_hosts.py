"""The hosts' own versions, emulated: Colab's old widgets and kernel, Kaggle's pinned ones without foreign code."""

import sys

import nbformat
import pytest

from sloth_nb.authoring.cells import as_notebook, as_text, code
from sloth_nb.authoring.execute import execute
from sloth_nb.authoring.recipe import Recipe
from tests.authoring import miniature
from tests.overlay import overlay

COLAB = (
    "ipywidgets==7.7.1",
    "ipython_genutils==0.2.0",
    "plotly==5.24.1",
    "tenacity==9.1.2",
    "ipykernel==6.17.1",
)
KAGGLE = ("ipywidgets==8.1.5", "widgetsnbextension==4.0.13", "jupyterlab_widgets==3.0.13")
TOKEN = "hf_" + "x" * 30
VAULT = {
    "colab": {
        "google/__init__.py": "",
        "google/colab/__init__.py": "",
        "google/colab/userdata.py": f"def get(name):\n    return {TOKEN!r}\n",
    },
    "kaggle": {
        "kaggle_secrets.py": f"class UserSecretsClient:\n    def get_secret(self, name):\n        return {TOKEN!r}\n",
    },
}
# What a saved notebook can't tell: which versions ran, and whose widgets were made.
ASK = """
import ipykernel, ipywidgets, plotly, os
made = getattr(ipywidgets.Widget, "_instances", None) or getattr(ipywidgets.widgets.widget, "_instances", None)
made = made if made else ipywidgets.Widget.widgets
print("versions", ipywidgets.__version__, plotly.__version__, ipykernel.__version__)
print("modules", sorted({one._model_module for one in made.values() if hasattr(one, "_model_module")}), len(made))
print("token", len(os.environ["HF_TOKEN"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "task", "packages", "versions"),
    [("colab", "sft", COLAB, "7.7.1 5.24.1 6.17.1"), ("kaggle", "completion", KAGGLE, "8.1.5")],
)
def test_a_notebook_runs_on_the_host_s_own_versions(
    host, task, packages, versions, tmp_path, monkeypatch, repository, kernels_find_the_package
):
    folder = tmp_path / "overlay"
    overlay(folder, packages)
    for name, text in VAULT[host].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":" if sys.platform != "win32" else ";")
    monkeypatch.setenv("SLOTH_NB_HOST", host)
    recipe = Recipe.of("llama-3.2-3b-instruct", task, host)
    notebook = as_notebook(
        [*recipe.cells(), code("ask", ASK)], recipe.platform.notebook_metadata(recipe.machine)
    )
    path = tmp_path / "in.ipynb"
    path.write_text(as_text(notebook), encoding="utf-8")
    model = miniature.tiny_model(recipe.model, tmp_path / "model")
    put_in = miniature.parameters(recipe, nbformat.read(path, 4), model, tmp_path / "results")
    lines: list[str] = []
    execute(path, tmp_path / "out.ipynb", parameters=put_in, say=lines.append)
    said = "\n".join(lines)
    assert f"versions {versions}" in said
    modules = next(line for line in lines if line.strip().startswith("modules"))
    assert set(eval(modules.split(" ", 5)[5].rsplit(" ", 1)[0])) <= {
        "@jupyter-widgets/base",
        "@jupyter-widgets/controls",
        "@jupyter-widgets/output",
    }
    assert int(modules.rsplit(" ", 1)[1]) > 20, "panels were built"
    assert "token 33" in said, "the vault's token is there"
    written = (tmp_path / "out.ipynb").read_text("utf-8")
    assert TOKEN not in written and TOKEN not in said, "and nowhere in the notebook"
    out = nbformat.read(tmp_path / "out.ipynb", 4)
    assert "widgets" not in out.metadata
    shown = [o["data"] for c in out.cells for o in c.get("outputs", []) if "data" in o]
    assert any("image/svg+xml" in data or "application/vnd.plotly.v1+json" in data for data in shown)
    assert any("text/html" in data and "<script" not in str(data["text/html"]) for data in shown)
