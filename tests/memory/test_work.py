"""Bad questions get one clear sentence."""

import pytest

from sloth_nb.errors import HardwareError, ModelError, SlothError, TrainingError
from sloth_nb.memory import Work, estimate


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "batch is 0; it must be a whole number of at least 1"),
        ({"batch": 2.5}, "batch is 2.5"),
        ({"length": -1}, "length is -1"),
        ({"rank": 0}, "rank is 0"),
        ({"method": "qlra"}, "Did you mean 'qlora'"),
        ({"policy": "offlod"}, "Did you mean 'offload'"),
        ({"optimiser": "adam"}, "optimiser is 'adam'"),
        ({"policy": ["sloth"] * 40}, "a layer's policy is 'sloth'"),
        ({"policy": ["keep"] * 3}, "policy has 3 entries; qwen3-14b has 40 layers"),
        ({"batchsize": 3}, "no option 'batchsize'. Did you mean 'batch'"),
        ({"mlp_tile": 0}, "mlp_tile is 0"),
    ],
)
def test_an_impossible_option_is_named(options, said):
    with pytest.raises(TrainingError, match=said.replace("(", r"\(").replace(".", r"\.")):
        Work.of("qwen3-14b", **options)


def test_an_unknown_model_or_card_names_the_nearest():
    with pytest.raises(ModelError, match="qwen3-14b"):
        estimate("qwen3-14")
    with pytest.raises(HardwareError, match="RTX 3090"):
        estimate("qwen3-14b", gpu="RTX 3099")


def test_an_error_shows_itself_without_a_traceback():
    with pytest.raises(SlothError) as caught:
        Work.of("qwen3-14b", batch=0)
    assert caught.value._render_traceback_() == [f"TrainingError: {caught.value}"]


def test_a_pair_counts_both_its_answers():
    assert Work.of("qwen3-14b", task="dpo", batch=2, length=100).tokens == 400
