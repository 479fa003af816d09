"""The names that data sets give to things, and what a sample of rows shows each column to hold."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

__all__ = ["Column", "Table", "columns_of", "sample_of"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Names are compared in lower case, every space and hyphen an underscore. Earlier ones are more telling.
USER = _words(
    """
    instruction question prompt query problem user human input inputs user_input user_message
    user_prompt user_query input_text prompt_text question_text instructions task_description
    request q problem_statement pregunta frage instruccion
    """
)
CONTEXT = _words("input inputs context passage background reference paragraph document schema")
ASSISTANT = _words(
    """
    output response answer completion assistant reply target targets outputs gpt bot ai
    assistant_response model_response model_output output_text response_text answer_text generation
    answers bot_response ai_response a final_answer respuesta antwort sql
    """
)
REASONING = _words(
    """
    reasoning reasoning_content thinking thought think cot chain_of_thought complex_cot rationale
    thinking_trajectory reasoning_trace
    """
)
SYSTEM = _words("system system_prompt system_message sys")
HISTORY = _words("history")
TOOLS = _words("tools functions available_tools")
TEXT = _words("text content document page_content raw_content markdown code story raw_text")
CONVERSATION = _words(
    """
    messages conversations conversation chat dialogue dialog turns chat_history msgs data utterances
    """
)
LONG = _words("article document dialogue text report")
SHORT = _words("summary highlights")
CHOSEN = _words(
    """
    chosen chosen_response response_chosen preferred preferred_response better_response better
    accepted winning_response response_j best_answer answer_chosen chosen_answer preferred_output
    """
)
REJECTED = _words(
    """
    rejected rejected_response response_rejected dispreferred dispreferred_response worse_response
    worse losing_response response_k unchosen bad_answer answer_rejected rejected_answer
    non_preferred_output
    """
)
WINNER = _words("winner preferred preference better_response_id label choice labels better")
LIKED = _words("label labels thumbs_up liked desirable is_good feedback accepted")
ASKING = _words("prompt prompts question problem query instruction")
TRUTH = _words(
    """
    ground_truth answer solution reward_model expected_answer final_answer target gold gold_answer
    correct_answer test_cases tests verification_info reference_answer answers
    """
)
IMAGE = _words("image images img image_path image_url picture")
AUDIO = _words("audio audio_path speech audios audio_file wav")
SPOKEN = _words("text sentence transcription transcript normalized_text raw_text")
CAPTION = _words("caption captions text description")
CLASS_LABEL = _words("label labels sentiment category class stars rating ner_tags star_rating")
SPEAKER = _words("role speaker from")
METADATA = _words(
    """
    id uid uuid url source dataset title lang language date timestamp category topic split meta
    metadata difficulty level type subject prompt_id data_source ability license path filename
    repo_name repository_name author domain tag idx index created added name ext size max_stars_repo_name
    max_stars_repo_path repo file hash dump file_path version model
    """
)
# Two answers side by side, of which another column names the better.
RIVALS = (
    ("response_a", "response_b"),
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("answer_a", "answer_b"),
    ("answer_0", "answer_1"),
    ("output_a", "output_b"),
    ("output_1", "output_2"),
    ("completion_a", "completion_b"),
    ("conversation_a", "conversation_b"),
)


@dataclass(frozen=True)
class Column:
    """A column's name as given, and what its sampled values are.

    ``kind``: text | turns | texts (a list of strings) | number | flag (true or false) | dict | list | image
        | audio | empty.
    """

    name: str
    kind: str
    values: list[Any]


class Table:
    """The columns of a data set, found by any of their usual names."""

    def __init__(self, dataset: Any, sample: int = 100):
        rows = sample_of(dataset, sample)
        self.names = columns_of(dataset, rows)
        features = getattr(dataset, "features", None) or {}
        self._columns: dict[str, Column] = {}
        for name in self.names:
            values = [row[name] for row in rows if row.get(name) is not None]
            kind = _feature_kind(features.get(name)) or kind_of(values)
            self._columns.setdefault(plain(name), Column(name, kind, values))

    def find(self, names: Iterable[str], *kinds: str, but: Iterable[str] = ()) -> Column | None:
        """The first column with one of ``names``, of one of ``kinds``, whose own name is not in ``but``."""
        for name in names:
            column = self._columns.get(name)
            if column and column.name not in but and (not kinds or column.kind in kinds):
                return column
        return None

    def all(self, *kinds: str) -> list[Column]:
        """Every column of one of ``kinds``."""
        return [column for column in self._columns.values() if column.kind in kinds]

    def __contains__(self, name: str) -> bool:
        return name in self._columns


def sample_of(dataset: Any, count: int) -> list[dict[str, Any]]:
    """The first rows of a data set, of rows on demand (see ``rows``), or of a stream."""
    if hasattr(dataset, "page"):
        return dataset.page(0, count)
    if hasattr(dataset, "__len__"):
        return [dataset[i] for i in range(min(len(dataset), count))]
    return list(islice(dataset, count))


def columns_of(dataset: Any, rows: list[dict[str, Any]] | None = None) -> list[str]:
    """The names of a data set's columns: its own, or those that its first rows have."""
    if own := getattr(dataset, "column_names", None):
        return list(own)
    rows = sample_of(dataset, 100) if rows is None else rows
    return list(dict.fromkeys(name for row in rows for name in row))


def plain(name: str) -> str:
    """A column's name without its spelling's accidents."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _feature_kind(feature: Any) -> str | None:
    kind = type(feature).__name__
    if kind in ("Image", "Audio", "Video"):
        return kind.lower()
    inner = getattr(feature, "feature", None)
    return _feature_kind(inner) if type(inner).__name__ in ("Image", "Audio") else None


def kind_of(values: list[Any]) -> str:
    """What a column's values are; ``mixed`` when they aren't of one kind."""
    kinds = {_kind(value) for value in values} - {"empty"}
    if kinds <= {"list", "texts", "turns"} and len(kinds) > 1:
        kinds -= {"list"}
    return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "empty"


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "turns" if value.lstrip()[:2] == "[{" and turns_of(value) else "text"
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, dict):
        return _dict_kind(value)
    if isinstance(value, (list, tuple)):
        if not value:
            return "empty"
        if all(isinstance(item, str) for item in value):
            return "texts"
        if all(isinstance(item, dict) for item in value):
            images = all({"bytes", "path"} == set(item) for item in value)
            return "image" if images else "turns"
        return "list"
    return "image" if hasattr(value, "getpixel") else "other"


def _dict_kind(value: dict[str, Any]) -> str:
    if {"array", "sampling_rate"} <= set(value):
        return "audio"
    return "image" if {"bytes", "path"} == set(value) else "dict"


def turns_of(value: Any) -> list[dict[str, Any]]:
    """The turns of a conversation cell, which may be JSON text; [] when it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return []
    return value if isinstance(value, list) and all(isinstance(t, dict) for t in value) else []
