"""The page in a real browser, by keyboard alone, at two widths; axe looks at each part of it.

With FEWSTEP_SCREENSHOTS=FOLDER the pictures of docs/serve.md are written there.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("playwright")

from playwright import sync_api as playwright

from fewstep.conditions import Mask, Vector
from fewstep.model import load
from fewstep.serving.served import Served
from serving_here import made, running, waiting

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"needs a browser that is installed as one of {', '.join(NAMES)}"
)
SIZES = {"wide": (1280, 860), "phone": (390, 844)}
TABS = 120
"""More presses of Tab than the page has stops."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    models = {name: load(name) for name in ("digits-cd", "digits-edm")}
    with running({name: Served(name, one, "1" * 64) for name, one in models.items()}) as client:
        yield str(client.base_url)


class Visit:
    """One page, and what a person does with its keyboard."""

    def __init__(self, browser: Any, address: str, width: int, height: int, **more: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **more)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(address)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def reach(self, target: Any, back: bool = False) -> None:
        """Press Tab until the target has the focus, and see that it shows it."""
        for _ in range(TABS):
            if target.evaluate("one => one === document.activeElement"):
                outline = target.evaluate(
                    "one => getComputedStyle(one.closest('.board') ?? one).outlineStyle"
                )
                assert outline != "none"
                return
            self.press("Shift+Tab" if back else "Tab")
        raise AssertionError(f"no press of Tab reaches {target}")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, target: Any, text: str) -> None:
        self.reach(target)
        self.press("Control+a")
        self.page.keyboard.type(text)

    def button(self, name: str, within: str = "body") -> Any:
        return self.page.locator(within).get_by_role("button", name=name, exact=True)

    def status(self, words: str) -> None:
        self.page.locator("#status", has_text=words).wait_for()

    def tab(self, name: str) -> None:
        """From wherever the focus is to another part of the page."""
        self.reach(self.page.locator("[role=tab][aria-selected=true]"), back=True)
        self.press("Home")
        for one in ("Sample", "Edit", "Interpolate", "Gallery"):
            if one == name:
                break
            self.press("ArrowRight")
        assert self.page.locator("[role=tab][aria-selected=true]").inner_text() == name

    def check(self, shot: str = "") -> None:
        """No finding of axe, nothing cut off, no complaint; and a picture for the docs."""
        if find_spec("axe_playwright_python"):
            from axe_playwright_python.sync_playwright import Axe

            found = Axe().run(self.page).response["violations"]
            assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        width = self.page.viewport_size["width"]
        assert self.page.evaluate("document.documentElement.scrollWidth") <= width
        assert self.complaints == []
        if shot and (folder := os.environ.get("FEWSTEP_SCREENSHOTS")):
            path = Path(folder) / f"{shot}.png"
            self.page.evaluate("window.scrollTo(0, 0)")
            self.page.wait_for_timeout(200)
            self.page.screenshot(path=path, full_page=width < 500)
            Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


@pytest.fixture(params=SIZES)
def visit(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Visit]:
    scheme = "dark" if request.param == "phone" else "light"
    visit = Visit(browser, address, *SIZES[request.param], color_scheme=scheme)
    visit.name = request.param  # pyright: ignore[reportAttributeAccessIssue]
    yield visit
    visit.context.close()


def source(tile: Any) -> str:
    return tile.locator("img").get_attribute("src").partition(",")[2]


def test_sample_compare_edit_interpolate_and_keep_by_keyboard(visit):
    page, name = visit.page, visit.name
    visit.status("digits-cd and digits-edm: done")
    assert page.locator("#sample .tile").count() == 32
    visit.check(f"serve-sample-{name}")

    # Sample again with the same seed, another number and a class; two models side by side.
    sample = page.locator("#sample")
    visit.type(sample.get_by_label("Seed", exact=True), "7")
    visit.type(sample.get_by_label("Samples"), "4")
    visit.reach(sample.get_by_label("Keep this seed"))
    visit.press("Space")
    visit.reach(sample.get_by_label("Class"))
    page.keyboard.type("8")
    visit.reach(visit.button("Sample", "#sample"))
    visit.press("Enter")
    playwright.expect(page.locator("#sample .tile")).to_have_count(8, timeout=20_000)
    texts = sample.locator("article").all_inner_texts()
    assert [text.splitlines()[0] for text in texts] == ["digits-cd", "digits-edm"]
    assert all("measured for 4" in text for text in texts)
    assert "1 network call a sample" in texts[0]
    assert "35 network calls a sample" in texts[1]
    first = page.locator("#sample .tile").first
    assert made(source(first))["label"] == 8
    assert made(source(first))["seed"] == 7

    # A picture with what made it, its file, and the gallery.
    visit.reach(first)
    visit.press("Enter")
    dialog = page.locator("dialog")
    assert "1" * 64 in dialog.inner_text()
    visit.check()
    visit.reach(visit.button("Keep in the gallery", "dialog"))
    visit.press("Enter")
    with page.expect_download() as waiting_for:
        visit.reach(dialog.get_by_role("link", name="Download"))
        visit.press("Enter")
    saved = waiting_for.value
    assert saved.suggested_filename == "digits-cd-7-0.png"
    content = base64.b64encode(Path(saved.path()).read_bytes()).decode()
    assert made(content)["times"] == [80.0]

    # Edit it: draw a mask with the keys, and see the rest kept.
    before = np.asarray(Image.open(saved.path())).astype(int)
    visit.reach(visit.button("Edit", "dialog"))
    visit.press("Enter")
    board = page.locator(".board")
    visit.reach(board)
    visit.press("Space", "ArrowRight", "ArrowRight", "ArrowDown", "Space")
    assert "pen up" in page.locator("#edit").inner_text()
    visit.reach(visit.button("Edit", "#edit"), back=True)
    visit.press("Enter")
    visit.status("Inpaint: done")
    results = page.locator("#edit .tile")
    assert results.count() == 4
    assert "40 network calls" in page.locator("#edit .facts").inner_text()
    encoded = source(results.first)
    facts = made(encoded)
    assert (facts["verb"], facts["seed"], facts["calls"]) == ("inpaint", 0, 40)
    assert facts["label"] == 8
    after = pixels_of(encoded)
    changed = np.abs(after - before) > 1
    assert 1 <= changed.sum() <= 4, changed
    assert changed[4:6, 4:7].sum() == changed.sum()
    visit.check(f"serve-edit-{name}")

    # Interpolate with the slider.
    visit.tab("Interpolate")
    visit.status("From seed 0 to seed 1: done")
    between = page.locator("#between")
    assert between.locator(".tile").count() == 21
    slider = between.get_by_role("slider")
    visit.reach(slider)
    assert "50 % of the way" in between.inner_text()
    visit.press("ArrowRight", "ArrowRight")
    assert "60 % of the way" in between.inner_text()
    assert slider.get_attribute("aria-valuetext") == "60 % of the way"
    visit.press("End")
    assert made(source(between.locator("figure")))["fraction"] == 1
    visit.check(f"serve-interpolate-{name}")

    # The gallery remembers.
    visit.tab("Gallery")
    assert page.locator("#gallery .tile").count() == 1
    page.reload()
    visit.status("done")
    visit.tab("Gallery")
    assert page.locator("#gallery .tile").count() == 1
    visit.check(f"serve-gallery-{name}")


def pixels_of(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).astype(int)


def test_a_pointer_draws_and_uploads_are_edited(browser, address, tmp_path):
    visit = Visit(browser, address, 1280, 860)
    page = visit.page
    visit.status("done")
    Image.effect_noise((40, 30), 90).save(tmp_path / "photo.png")
    page.get_by_role("tab", name="Edit").click()
    page.locator("#edit").get_by_label("A file of yours").set_input_files(tmp_path / "photo.png")
    page.locator(".board").wait_for()
    visit.button("Edit", "#edit").click()
    visit.status("Mark first what the model should draw anew.")
    page.get_by_label("Task").select_option("strokes")
    page.get_by_label("Colour").fill("#ff0000")
    box = page.locator(".board").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 200, steps=4)
    page.mouse.up()
    corner = "one => [...one.getContext('2d').getImageData(2, 2, 1, 1).data]"
    red = page.locator(".board canvas").last.evaluate(corner)
    assert red == [255, 0, 0, 255]
    visit.button("Edit", "#edit").click()
    visit.status("Strokes to picture: done")
    assert page.locator("#edit .tile").count() == 4
    page.get_by_label("Keep its own size").check()
    page.get_by_label("Task").select_option("vary")
    visit.button("Edit", "#edit").click()
    visit.status("Vary: done")
    assert pixels_of(source(page.locator("#edit .tile").first)).shape == (30, 40)
    (tmp_path / "no.png").write_text("no picture")
    page.locator("#edit").get_by_label("A file of yours").set_input_files(tmp_path / "no.png")
    visit.status("This file is no picture that the browser can show.")
    assert visit.complaints == []
    visit.context.close()


def test_names_of_models_and_classes_are_text_and_no_html(browser):
    evil = "<img src=x onerror=document.title='caught'>"
    model = waiting((2, 16), label={"kind": "label", "classes": 2, "names": [evil, "b"]})
    with running({evil: Served(evil, model, "0")}) as client:
        visit = Visit(browser, str(client.base_url), 390, 844)
        visit.status("done")
        assert evil in visit.page.locator("#sample").inner_text()
        assert evil in visit.page.locator("option").all_inner_texts()
        assert visit.page.title() == "fewstep"
        assert visit.page.locator("img[src=x]").count() == 0
        # The policy stops what would get past this.
        insert = "text => document.body.insertAdjacentHTML('beforeend', text)"
        visit.page.evaluate(insert, evil)
        visit.page.wait_for_timeout(200)
        assert visit.page.title() == "fewstep"
        visit.context.close()


def test_a_token_opens_the_page_and_its_absence_is_said(browser):
    model = waiting()
    with running({"slow": Served("slow", model, "0")}, token="a-long-token") as client:
        for part, words in (
            ("#token=a-long-token", "slow: done"),
            ("", "needs the server's token"),
        ):
            visit = Visit(browser, f"{client.base_url}/{part}", 390, 844)
            visit.status(words)
            assert "a-long-token" not in visit.page.url
            visit.context.close()


def test_a_form_is_made_of_declared_conditions(browser):
    models = {
        "policy": waiting((2, 16), state=Vector(shape=(3,))),
        "speech": waiting((1, None), mask=Mask(length=50)),
        "volume": waiting((1, 4, 4, 4)),
    }
    with running({name: Served(name, one, "0") for name, one in models.items()}) as client:
        visit = Visit(browser, str(client.base_url), 390, 844)
        visit.status("policy and speech: done")
        page = visit.page
        assert (
            page.locator("#sample").get_by_role("group", name="state").locator("input").count() == 3
        )
        sample = page.locator("#sample")
        sample.get_by_label("state 2").fill("0.5")
        sample.get_by_label("Length").fill("30")
        page.get_by_label("volume").check()
        visit.button("Sample", "#sample").click()
        visit.status("policy and speech and volume: done")
        assert page.locator("pre.values").count() == 1
        picture = source(page.locator("article").first.locator(".tile").first)
        assert made(picture)["cond.state"] == [0, 0.5, 0]
        page.get_by_role("tab", name="Edit").click()
        assert "None of these models can edit" in page.locator("#edit").inner_text()
        visit.check()
        visit.context.close()
