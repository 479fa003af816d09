"""Streamed pieces add up to the text, and no piece ends in half a character."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sloth_nb.inference.decoding import TextOfTokens


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=60))
def test_the_pieces_of_any_text_add_up_to_it(shared_tokenizer, text):
    decoder = TextOfTokens(shared_tokenizer)
    tokens = shared_tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [decoder.add(token) for token in tokens] + [decoder.end()]
    assert "".join(pieces) == shared_tokenizer.decode(tokens, skip_special_tokens=True)


def test_an_emoji_of_several_tokens_comes_whole(shared_tokenizer):
    tokens = shared_tokenizer("ok 🦥🧑‍🚀!", add_special_tokens=False)["input_ids"]
    decoder = TextOfTokens(shared_tokenizer)
    pieces = [decoder.add(token) for token in tokens] + [decoder.end()]
    assert len(tokens) > 6
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == "ok 🦥🧑‍🚀!"


def test_special_tokens_are_not_shown(shared_tokenizer):
    decoder = TextOfTokens(shared_tokenizer)
    tokens = shared_tokenizer("Hi<|im_end|>")["input_ids"]
    assert "".join([decoder.add(token) for token in tokens] + [decoder.end()]) == "Hi"
