"""The command line: commands are found, loaded lazily, and end with honest exit codes."""

import subprocess
import sys
from importlib import import_module

import pytest

from sloth_nb import cli


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0 and name in capsys.readouterr().out
    module = import_module(cli.COMMANDS[name].module)
    assert callable(module.add_arguments) and callable(module.run)


def test_a_wrong_call_ends_with_2(capsys):
    for arguments in ([], ["nonsense"], ["run"]):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2
    assert "usage: sloth-nb" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sloth_nb.authoring.run_command.run", interrupted)
    assert cli.main(["run", "x.ipynb"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_fault():
    """As in ``sloth-nb estimate … | head -1``: the other end of the pipe is closed before anything is written."""
    command = [sys.executable, "-m", "sloth_nb.cli", "estimate", "qwen3-0.6b", "--gpu", "T4"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1


def test_help_loads_nothing_heavy():
    program = """
import sys
from sloth_nb.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
assert not {"torch", "nbclient"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
