"""A notebook where there is no sloth_nb: its own install cell puts it there, from a wheel, and all else runs."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest

from sloth_nb.authoring import render
from sloth_nb.authoring.execute import execute
from sloth_nb.authoring.recipe import Recipe
from sloth_nb.errors import NotebookError

# The heavy packages are those of this environment; what is installed of sloth_nb itself here must not be seen.
HIDE = """
import importlib.metadata as metadata
real = metadata.MetadataPathFinder.find_distributions
def found(*given, **named):
    return (d for d in real(*given, **named) if d.metadata["Name"] != "sloth-nb" or {here!r} in str(d._path))
metadata.MetadataPathFinder.find_distributions = staticmethod(found)
"""


@pytest.fixture
def clean(tmp_path, monkeypatch) -> Path:
    """The python of a new environment, which kernels of this test run on."""
    folder = tmp_path / "env"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = [python, "-c", "import site; print(site.getsitepackages()[-1])"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "heavy-packages.pth").write_text("\n".join(ours), encoding="utf-8")
    (site / "sitecustomize.py").write_text(HIDE.format(here=str(folder)), encoding="utf-8")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "executable", str(python))
    return python


@pytest.fixture
def wheels(tmp_path, repository) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "wheels")]
    subprocess.run(command, cwd=repository, capture_output=True, check=True)
    return tmp_path / "wheels"


@pytest.mark.slow
@pytest.mark.parametrize("host", ["colab", "kaggle", "jupyter"])
def test_its_own_install_cell_makes_what_the_rest_needs(host, wheels, clean, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    path = Recipe.of("smollm2-135m-instruct", "sft", host).save(tmp_path / "in.ipynb")
    lines: list[str] = []
    put_in = {"max_steps": 3, "batch_size": 2, "accumulation": 1, "output_dir": str(tmp_path / "results")}
    execute(path, tmp_path / "out.ipynb", parameters=put_in, say=lines.append)
    said = "\n".join(lines)
    assert "Installing sloth-nb==0.1.0 and trl==" in said and "gguf==0.19.0, about a minute" in said
    assert "Staying as they are: torch==" in said and "ipywidgets==" in said and "Done." in said
    assert (tmp_path / "results" / "adapter" / "adapter_model.safetensors").is_file()
    where = [str(clean), "-c", "import sloth_nb; print(sloth_nb.__file__)"]
    installed = subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert Path(installed.strip()).is_relative_to(tmp_path / "env")


@pytest.mark.slow
def test_without_a_wheel_the_install_cell_says_where_to_put_it(clean, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    path = Recipe.of("smollm2-135m-instruct", "sft", "kaggle").save(tmp_path / "in.ipynb")
    with pytest.raises(NotebookError, match="Nothing was installed"):
        execute(path, tmp_path / "out.ipynb", say=lambda line: None)
    assert "Add Input" in nbformat.read(path, 4).cells[1].source


def test_all_notebooks_of_a_platform_install_alike_but_for_what_they_add(repository):
    for host in ("colab", "kaggle", "jupyter"):
        books = [nbformat.read(path, 4) for path in (repository / "notebooks" / host).glob("*.ipynb")]
        lines = [cell.source.splitlines() for book in books for cell in book.cells if cell.id == "install"]
        assert len(lines) == len(books) > 1
        assert len({"\n".join(line for line in cell if not line.startswith("add = ")) for cell in lines}) == 1


# Colab's image in August 2026 (googlecolab/backend-info); the last line is not from there, only plausible.
IMAGE = """torch 2.11.0+cu128, torchvision 0.26.0+cu128, torchaudio 2.11.0+cu128, triton 3.6.0, numpy 2.1.3,
pandas 2.2.3, ipywidgets 7.7.1, ipykernel 6.17.1, transformers 5.15.0, peft 0.20.0, datasets 4.0.0, accelerate 1.14.0,
huggingface_hub 1.21.0, pyarrow 18.1.0, safetensors 0.7.0, jinja2 3.1.6, psutil 5.9.5, packaging 25.0, pyyaml 6.0.3"""


@pytest.mark.slow
def test_what_the_cell_installs_leaves_colab_s_image_as_it_is_but_for_what_trl_needs(wheels, tmp_path):
    folder = tmp_path / "colab"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = [python, "-c", "import site; print(site.getsitepackages()[-1])"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    image = dict(pair.split() for pair in IMAGE.split(","))
    for name, version in image.items():
        told = site / f"{name}-{version}.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    table = render.pins()
    kept = [f"{name}=={image[name]}" for name in table["stay"]]
    pip = [python, "-m", "pip", "install", "-q", "--dry-run", "--report", "-", f"--find-links={wheels}"]
    done = subprocess.run(
        [*pip, table["itself"], *table["always"], *table["gpu"], *kept],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No matching distribution found" in done.stderr and "sloth" not in done.stderr.splitlines()[-1]:
        pytest.skip(f"no registry here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-2000:]
    new = {one["metadata"]["name"].lower() for one in json.loads(done.stdout)["install"]}
    assert {"sloth-nb", "trl", "bitsandbytes"} <= new
    assert {"datasets"} <= new & set(image) <= {"datasets", "pyarrow"}, "what is older there than TRL needs"
