"""The course: eight lessons kept as Markdown beside this file, from which the notebooks are written.

A lesson is edited in its ``.md`` (see ``reading`` for the few words that its code fences take); ``make lessons``
writes notebooks/classroom anew.
"""

from sloth_nb.authoring.lessons.notebooks import lesson_notebook, write_course
from sloth_nb.authoring.lessons.reading import Lesson, lesson, lessons

__all__ = ["Lesson", "lesson", "lesson_notebook", "lessons", "write_course"]
