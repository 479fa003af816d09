"""Makes the README's picture anew: the quickstart, run to its end in a real JupyterLab.

``python -m tests.browser.readme_picture`` writes notebooks/images/quickstart.png (needs Pillow; takes as long
as the training).
"""

import io
import tempfile
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright

from tests.browser.lab import REPOSITORY, Notebook, chromium, serving

PICTURE = REPOSITORY / "notebooks" / "images" / "quickstart.png"
SIZE = (1180, 2090)


def main() -> None:
    quickstart = nbformat.read(REPOSITORY / "notebooks" / "quickstart.ipynb", as_version=4)
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        serving(Path(folder)) as server,
    ):
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        server.write("quickstart.ipynb", quickstart)
        book = Notebook(server, browser, "quickstart.ipynb", SIZE)
        book.page.set_default_timeout(1_200_000)
        book.command("application:toggle-left-area")
        book.run()
        _talk(book)
        _look_at(book, "TrainingMonitor(run)")
        picture = book.page.screenshot()
        book.close()
        browser.close()
    _write(picture)


def _talk(book: Notebook) -> None:
    book.page.get_by_label("Message", exact=True).fill("What is the name of your best friend?")
    book.page.get_by_label("Message", exact=True).press("Enter")
    turn = book.page.locator(".sloth-panel").last.locator(".sloth-turn").nth(1)  # the chat is the last panel
    turn.locator(".sloth-cursor").wait_for()
    turn.locator(".sloth-cursor").wait_for(state="detached")


def _look_at(book: Notebook, source: str) -> None:
    """Scrolls to the cell that holds this line, with nothing selected."""
    book.page.evaluate("document.activeElement.blur()")
    cell = book.page.locator(".jp-CodeCell", has_text=source).first
    cell.evaluate("cell => cell.scrollIntoView({block: 'start'})")
    book.page.wait_for_timeout(1500)


def _write(picture: bytes) -> None:
    from PIL import Image

    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(
        PICTURE, optimize=True
    )
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
