"""The Jupyter server's part of the JupyterLab extension: what can be chosen, and writing what was.

Three addresses under ``/sloth-nb/``, each behind the server's own login. Files are written through the server's
contents manager, so they land where it keeps its files, and nowhere else. Nothing heavy is imported.
"""

import json
import posixpath
from collections.abc import Callable
from typing import Any

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from sloth_nb.errors import NotebookError, SlothError

__all__ = ["choices"]

USUAL = {"model": "smollm2-135m-instruct", "task": "sft", "platform": "jupyter"}


def choices() -> dict[str, Any]:
    """What the dialog offers: every model with the tasks that it can do, all tasks, all places, and the usual ones."""
    from sloth_nb.authoring.platforms import platforms
    from sloth_nb.authoring.possible import possible_tasks
    from sloth_nb.authoring.tasks import tasks
    from sloth_nb.catalog import models

    able = [(model, [task.name for task in possible_tasks(model)]) for model in models()]
    return {
        "models": [
            {"name": model.name, "family": model.title, "tasks": names} for model, names in able if names
        ],
        "tasks": [{"name": task.name, "title": task.title} for task in tasks()],
        "platforms": [{"name": place.name, "title": place.title} for place in platforms()],
        "usual": USUAL,
    }


class _Handler(APIHandler):
    """A handler of ours: an error that a user can cause is a sentence for the dialog, with status 400."""

    auth_resource = "contents"

    def wanted(self, *names: str) -> list[str]:
        """The named texts of the request's body; a missing one is empty."""
        body = self.get_json_body() or {}
        values = [body.get(name) or "" for name in names]
        if not all(isinstance(value, str) for value in values):
            raise web.HTTPError(400, reason=f"{', '.join(names)} are texts")
        return values

    async def answer(self, make: Callable[[], Any]) -> None:
        try:
            result = make()
            result = await result if hasattr(result, "__await__") else result
        except SlothError as error:
            self.set_status(400)
            result = {"message": str(error)}
        except web.HTTPError as error:
            self.set_status(error.status_code)
            result = {"message": error.log_message or error.reason or str(error)}
        await self.finish(json.dumps(result))


class Choices(_Handler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        await self.answer(choices)


class NewNotebook(_Handler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        model, task, platform, folder = self.wanted("model", "task", "platform", "folder")

        async def make() -> dict[str, str]:
            from sloth_nb.authoring.recipe import Recipe

            recipe = Recipe.of(model, task or USUAL["task"], platform or USUAL["platform"])
            manager = self.contents_manager
            name = await ensure_async(manager.increment_filename(f"{recipe.name}.ipynb", folder))
            path = posixpath.join(folder, name)
            await _save(manager, path, recipe.notebook())
            return {"path": path}

        await self.answer(make)


class Classroom(_Handler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        (folder,) = self.wanted("folder")

        async def make() -> dict[str, str]:
            from sloth_nb.authoring.lessons import lesson_notebook, lessons

            manager = self.contents_manager
            course = posixpath.join(folder, "classroom")
            if not await ensure_async(manager.dir_exists(course)):
                await ensure_async(manager.save({"type": "directory"}, course))
            paths = [posixpath.join(course, f"{lesson.name}.ipynb") for lesson in lessons()]
            for path, lesson in zip(paths, lessons(), strict=True):
                if not await ensure_async(manager.file_exists(path)):  # a student's work stays
                    await _save(manager, path, lesson_notebook(lesson))
            return {"path": paths[0]}

        await self.answer(make)


async def _save(manager: Any, path: str, notebook: dict[str, Any]) -> None:
    import nbformat

    model = {"type": "notebook", "format": "json", "content": nbformat.from_dict(notebook)}
    try:
        await ensure_async(manager.save(model, path))
    except (OSError, web.HTTPError) as error:
        said = getattr(error, "log_message", None) or getattr(error, "strerror", None) or error
        raise NotebookError(f"{path} can't be written: {said}.") from error


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "sloth_nb.authoring.server"}]


def _load_jupyter_server_extension(server: Any) -> None:
    """Called once by Jupyter's server."""
    base = url_path_join(server.web_app.settings["base_url"], "sloth-nb")
    server.web_app.add_handlers(
        ".*$",
        [
            (url_path_join(base, "choices"), Choices),
            (url_path_join(base, "notebook"), NewNotebook),
            (url_path_join(base, "classroom"), Classroom),
        ],
    )
