"""A lesson's Markdown becomes parts; what an author can get wrong is said."""

import pytest

from sloth_nb.authoring.lessons.notebooks import unsolved
from sloth_nb.authoring.lessons.reading import read
from sloth_nb.errors import NotebookError

SMALL = """# 1. Small

Hello.

```python load
x = 1
```

## Exercise 1: double

Double it.

```python double exercise
def double(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION
```

```python double wrong
def double(x):
    return x
```

```python double-check check=2
assert double(2) == 4
```

## The end

Good.
"""


def test_prose_is_cut_at_headings_and_code_keeps_its_name():
    lesson = read(SMALL, "1_small")
    assert lesson.title == "1. Small"
    assert [(part.id, part.kind) for part in lesson.parts] == [
        ("load-text", "prose"),
        ("load", "code"),
        ("double-text", "prose"),
        ("double", "exercise"),
        ("double-check", "check"),
        ("end", "prose"),
    ]
    assert lesson.parts[0].slide == "slide" and lesson.parts[4].slide == "skip"


def test_a_wrong_answer_is_kept_for_tests_and_is_no_cell():
    lesson = read(SMALL, "1_small")
    assert lesson.wrong == {"double": ("def double(x):\n    return x",)}
    assert lesson.points == 2
    assert [(a.id, b.id) for a, b in lesson.exercises] == [("double", "double-check")]


def test_a_students_exercise_has_a_gap_in_nbgraders_words():
    (exercise, _), *_ = read(SMALL, "1_small").exercises
    assert (
        unsolved(exercise.source) == "def double(x):\n    # YOUR CODE HERE\n    raise NotImplementedError()"
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("```python load", "```python", "a code fence needs a name"),
        ("```python load", "```python load skip", "knows no word 'skip'"),
        ("```python load", "```python load slide=big", "'big' is no slide type"),
        ("check=2", "check=two", "check= takes the points"),
        ("```python load", "```python double", "two cells are named 'double-text'"),
        ("# 1. Small", "Small", "begins with its title"),
        ("    ### END SOLUTION\n", "", "the solution stands between"),
        ("double wrong", "treble wrong", "a wrong answer to 'treble'"),
        ("```python double-check check=2", "```python double-check", "has no check"),
        ("```python double exercise", "```python double", "followed by its own check"),
    ],
)
def test_what_an_author_gets_wrong_is_named(old, new, said):
    assert old in SMALL
    with pytest.raises(NotebookError, match=said):
        read(SMALL.replace(old, new, 1), "1_small")
