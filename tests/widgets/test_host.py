"""Which host this is, from what it leaves in a kernel's environment."""

import os
import subprocess
import sys

import pytest
from sloth_nb_widgets.host import HOSTS, current, detect


def found(environ, *, in_kernel=True, colab=False, parent="jupyter-lab"):
    return detect(environ, in_kernel, colab, lambda: parent).name


@pytest.mark.parametrize(
    ("environ", "parent", "name"),
    [
        ({"JPY_SESSION_NAME": "a.ipynb"}, "python jupyter-lab", "lab"),
        ({"JPY_SESSION_NAME": "a.ipynb"}, "python jupyter-notebook", "notebook"),
        ({"JPY_SESSION_NAME": "a.ipynb", "VSCODE_PID": "1"}, "python jupyter-lab", "lab"),
        ({"VSCODE_PID": "1"}, "python", "vscode"),
        ({"COLAB_RELEASE_TAG": "x"}, "python", "colab"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "COLAB_RELEASE_TAG": "x"}, "", "kaggle"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, "", "headless"),
        ({"SERVER_SOFTWARE": "voila/0.5"}, "python voila", "voila"),
        ({}, "python papermill", "headless"),
        ({}, "python jupyter-nbconvert --execute", "headless"),
        ({"JPY_SESSION_NAME": "a"}, "jupyter-lab sloth_nb", "lab"),
        ({}, "", "lab"),
        ({"SLOTH_NB_HOST": "headless", "JPY_SESSION_NAME": "a.ipynb"}, "python jupyter-lab", "headless"),
    ],
)
def test_a_host_is_known_by_its_traces(environ, parent, name):
    assert found(environ, parent=parent) == name


def test_colab_is_known_by_its_module():
    assert found({}, colab=True) == "colab"


def test_without_a_kernel_it_is_a_script_whatever_the_environment_says():
    assert found({"COLAB_RELEASE_TAG": "x"}, in_kernel=False) == "script"
    assert found({"SLOTH_NB_HOST": "lab"}, in_kernel=False) == "script"
    assert current() is HOSTS["script"]


def test_a_wrong_wish_names_the_hosts():
    with pytest.raises(ValueError, match="'jupiter' is no host; one of: lab"):
        found({"SLOTH_NB_HOST": "jupiter"})


def test_nothing_but_python_is_needed_to_ask(repository):
    code = "import sys, sloth_nb_widgets.host as h; print(h.current().name, 'ipywidgets' in sys.modules)"
    path = os.pathsep.join([str(repository), str(repository / "widgets")])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["script", "False"]
