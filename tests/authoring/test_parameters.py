"""Parameters: read from the command line and set in a notebook."""

import pytest

from sloth_nb.authoring.parameters import parse_parameters
from sloth_nb.errors import NotebookError


def test_values_are_python_literals_or_text():
    assert parse_parameters(
        ["steps=20", "rate=5e-4", "name=Moss", "quoted='7'", "on=True", "x=a=b", "none=None"]
    ) == {
        "steps": 20,
        "rate": 5e-4,
        "name": "Moss",
        "quoted": "7",
        "on": True,
        "x": "a=b",
        "none": None,
    }


@pytest.mark.parametrize("pair", ["steps", "=3", "two words=3", "1st=3"])
def test_what_is_no_parameter_is_refused(pair):
    with pytest.raises(NotebookError, match="no parameter"):
        parse_parameters([pair])
