"""SFTConfig: older names end in real options, and precision is what the device truly has."""

import dataclasses
import pickle

import pytest
import torch
import trl
from transformers import TrainingArguments

from sloth_nb import notices
from sloth_nb.errors import SlothWarning, TrainingError
from sloth_nb.training.compat import CONFIG_NAMES, TRAINER_NAMES
from sloth_nb.training.config import SFTConfig, mixed_precision


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(notices, "_said", set())


@pytest.fixture
def card(monkeypatch):
    """A CUDA device of a given compute capability."""

    def make(capability: tuple[int, int]) -> torch.device:
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: capability)
        return torch.device("cuda")

    return make


def test_every_newer_name_of_the_tables_is_a_real_option():
    options = {option.name for option in dataclasses.fields(SFTConfig)}
    newer = {entry.new for entry in CONFIG_NAMES.values() if entry.new}
    newer |= {entry.new for entry in TRAINER_NAMES.values() if entry.new and entry.in_config}
    assert newer <= options
    assert not set(CONFIG_NAMES) & options, "an option that exists is no older name"


def test_the_options_of_a_published_tutorial_are_taken(tmp_path):
    with pytest.warns(SlothWarning):
        config = SFTConfig(
            str(tmp_path),
            max_seq_length=512,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            warmup_ratio=0.1,
            max_steps=60,
            evaluation_strategy="no",
            optim="adamw_8bit",
            seed=3407,
            dataset_num_proc=1,
            report_to="none",
        )
    assert (config.max_length, config.warmup_steps, config.eval_strategy) == (512, 0.1, "no")
    assert config.get_warmup_steps(60) == 6
    assert config.was_given("max_length") and config.was_given("output_dir")
    assert not config.was_given("learning_rate")


def test_a_number_of_warmup_steps_wins_over_a_share():
    with pytest.warns(SlothWarning, match=r"warmup_ratio=0\.5 was left out"):
        assert SFTConfig(warmup_steps=5, warmup_ratio=0.5).warmup_steps == 5


def test_an_unknown_option_is_refused():
    with pytest.raises(TrainingError, match="did you mean 'learning_rate'"):
        SFTConfig(learningrate=1e-4)


@pytest.mark.parametrize(
    ("asked", "capability", "got"),
    [
        ((None, None), (7, 5), (False, True)),
        ((None, None), (8, 0), (True, False)),
        ((None, None), (9, 0), (True, False)),
        ((True, False), (8, 6), (True, False)),
        ((False, True), (8, 6), (False, True)),
        ((None, True), (8, 6), (False, True)),
        ((False, False), (8, 6), (False, False)),
        ((False, None), (8, 6), (False, False)),
        ((None, False), (7, 5), (False, False)),
    ],
)
def test_precision_follows_the_request_where_the_card_can(asked, capability, got, card):
    assert mixed_precision(*asked, card(capability)) == got


def test_bf16_on_a_card_that_only_emulates_it_becomes_fp16_and_says_so(card):
    with pytest.warns(SlothWarning, match="only emulates bf16"):
        assert mixed_precision(True, None, card((7, 5))) == (False, True)


def test_a_cpu_trains_without_autocast():
    cpu = torch.device("cpu")
    assert mixed_precision(None, None, cpu) == (False, False)
    with pytest.warns(SlothWarning, match="autocast"):
        assert mixed_precision(True, False, cpu) == (False, False)


def test_plain_training_arguments_become_ours_and_leave_the_device_s_choices_open(tmp_path):
    config = SFTConfig.of(TrainingArguments(str(tmp_path), learning_rate=1e-3, max_steps=7), packing=True)
    assert isinstance(config, SFTConfig)
    assert (config.output_dir, config.learning_rate, config.max_steps) == (str(tmp_path), 1e-3, 7)
    assert config.packing and config.logging_steps == 1 and config.asked_checkpointing is None
    assert config.bf16 is (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0))


def test_trl_s_own_config_is_taken_too(tmp_path):
    given = trl.SFTConfig(str(tmp_path), use_cpu=True, bf16=False, max_length=99, packing=True)
    config = SFTConfig.of(given)
    assert (config.max_length, config.packing, config.learning_rate) == (99, True, given.learning_rate)


def test_our_own_config_stays_the_same_object():
    config = SFTConfig()
    assert SFTConfig.of(config, max_length=77) is config
    assert config.max_length == 77 and config.was_given("max_length")


def test_what_is_set_in_our_own_config_is_looked_at_too():
    config = SFTConfig()
    with pytest.raises(TrainingError, match=r"SFTConfig\(learning_rate='2e-4'\): this is text"):
        SFTConfig.of(config, learning_rate="2e-4")
    with pytest.raises(TrainingError, match=r"SFTConfig\(learning_rate='2e-4'\): this is text"):
        SFTConfig.of(config)


def test_checkpointing_is_left_to_the_trainer_and_the_request_remembered():
    assert SFTConfig().asked_checkpointing is None
    config = SFTConfig(gradient_checkpointing="unsloth")
    assert config.asked_checkpointing == "unsloth" and not config.gradient_checkpointing


def test_a_config_survives_copying():
    config = SFTConfig(max_length=33)
    assert pickle.loads(pickle.dumps(config)).max_length == 33
    assert dataclasses.replace(config, seed=7).max_length == 33


@pytest.mark.parametrize(
    "name", ["learning_rate", "max_steps", "eval_steps", "max_length", "save_total_limit"]
)
def test_a_number_written_as_text_is_named(tmp_path, name):
    with pytest.raises(TrainingError, match=rf"SFTConfig\({name}='2e-4'\): this is text.*YAML"):
        SFTConfig(str(tmp_path), **{name: "2e-4"})


@pytest.mark.parametrize(
    ("option", "way"),
    [
        ({"per_device_train_batch_size": "2"}, r"int\(…\) of what was read from a file\.$"),
        ({"max_steps": "60"}, r"int\(…\) of what was read from a file\.$"),
        ({"learning_rate": "0.1"}, r"float\(…\) of what was read from a file\.$"),
        ({"learning_rate": "seven"}, r"float\(…\) of what was read from a file\.$"),
        ({"learning_rate": "2.5E-4"}, r"float\(…\) of what was read from a file \(YAML takes"),
    ],
    ids=str,
)
def test_what_is_advised_for_a_number_written_as_text_leads_to_one_that_is_taken(tmp_path, option, way):
    with pytest.raises(TrainingError, match=way):
        SFTConfig(str(tmp_path), **option)


@pytest.mark.parametrize("name", ["packing", "use_cpu", "bf16", "padding_free", "eval_packing"])
@pytest.mark.parametrize("value", ["false", "no", "True"])
def test_a_bool_written_as_text_is_named(tmp_path, name, value):
    with pytest.raises(
        TrainingError, match=rf"\({name}='{value}'\): this is text, and True or False is needed"
    ):
        SFTConfig(str(tmp_path), **{name: value})


def test_options_that_may_also_be_text_take_it(tmp_path):
    config = SFTConfig(
        str(tmp_path), gradient_checkpointing="unsloth", include_num_input_tokens_seen="non_padding"
    )
    assert config.asked_checkpointing == "unsloth" and config.include_num_input_tokens_seen == "non_padding"


@pytest.mark.parametrize("name", ["max_steps", "seed", "max_grad_norm", "bf16_full_eval"])
def test_nothing_where_a_value_belongs_is_named_with_the_default(tmp_path, name):
    wanted = {field.name: field.default for field in dataclasses.fields(SFTConfig)}[name]
    with pytest.raises(TrainingError, match=rf"\({name}=None\): it needs a value.*the default, {wanted}\."):
        SFTConfig(str(tmp_path), **{name: None})


@pytest.mark.parametrize("value", [0, -1, 1.5, None])
@pytest.mark.parametrize("name", ["gradient_accumulation_steps", "per_device_train_batch_size"])
def test_a_batch_of_nothing_is_refused(tmp_path, name, value):
    with pytest.raises(
        TrainingError, match=rf"SFTConfig\({name}={value}\): it must be a whole number, 1 or more"
    ):
        SFTConfig(str(tmp_path), **{name: value})


def test_a_dict_of_options_is_taken_and_anything_else_is_named(tmp_path):
    config = SFTConfig.of({"max_steps": 3, "max_seq_length": 64, "output_dir": str(tmp_path)}, packing=True)
    assert (config.max_steps, config.max_length, config.packing) == (3, 64, True)
    assert config.was_given("max_steps") and config.was_given("packing")
    with pytest.raises(TrainingError, match="args is of type int; it must be an SFTConfig"):
        SFTConfig.of(3)
