"""Older argument names: renamed, moved or dropped, each said once; unknown names refused."""

import warnings

import pytest

from sloth_nb import notices
from sloth_nb.errors import SlothWarning, TrainingError
from sloth_nb.training.compat import CONFIG_NAMES, TRAINER_NAMES, Older, translate


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(notices, "_said", set())


KNOWN = {"max_length", "eval_strategy", "use_cpu", "processing_class"}


def test_a_renamed_argument_is_passed_on_with_one_warning_a_process():
    with pytest.warns(SlothWarning, match="max_seq_length is called max_length now"):
        assert translate("SFTConfig", {"max_seq_length": 64}, KNOWN, CONFIG_NAMES) == ({"max_length": 64}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert translate("SFTConfig", {"max_seq_length": 65}, KNOWN, CONFIG_NAMES) == ({"max_length": 65}, {})


def test_a_dropped_argument_says_why():
    with pytest.warns(SlothWarning, match="always saved as safetensors"):
        assert translate("SFTConfig", {"save_safetensors": False}, KNOWN, CONFIG_NAMES) == ({}, {})


def test_a_trainer_argument_that_moved_goes_into_the_config():
    with pytest.warns(SlothWarning) as said:
        here, config = translate("SFTTrainer", {"tokenizer": "t", "packing": True}, KNOWN, TRAINER_NAMES)
    assert here == {"processing_class": "t"} and config == {"packing": True}
    assert len(said) == 2


def test_a_switch_that_was_off_leaves_the_newer_option_alone():
    with pytest.warns(SlothWarning):
        assert translate("SFTConfig", {"group_by_length": False}, KNOWN, CONFIG_NAMES) == ({}, {})


def test_an_unknown_argument_is_refused_with_the_nearest_right_one():
    with pytest.raises(TrainingError, match="no argument 'max_lenght'; did you mean 'max_length'"):
        translate("SFTConfig", {"max_lenght": 1}, KNOWN, CONFIG_NAMES)
    with pytest.raises(TrainingError, match=r"no argument 'zzz'\.$"):
        translate("SFTConfig", {"zzz": 1}, KNOWN, CONFIG_NAMES)


@pytest.mark.filterwarnings("ignore::sloth_nb.errors.SlothWarning")
def test_an_older_and_a_newer_name_that_disagree_are_refused():
    with pytest.raises(TrainingError, match="same option"):
        translate("SFTConfig", {"max_length": 1, "max_seq_length": 2}, KNOWN, CONFIG_NAMES)
    assert translate("SFTConfig", {"max_length": 2, "max_seq_length": 2}, KNOWN, CONFIG_NAMES)[0] == {
        "max_length": 2
    }


def test_the_warning_points_at_the_line_of_the_user():
    with pytest.warns(SlothWarning) as said:
        notices.warn("message", once="a")
    assert said[0].filename == __file__


@pytest.mark.parametrize("entry", [*CONFIG_NAMES.values(), *TRAINER_NAMES.values()])
def test_every_entry_says_where_the_name_went_or_why_it_is_gone(entry: Older):
    assert entry.new or entry.why
