"""An image of one's own: held against the same image as a test image, which the build knows."""

import io
import json

import numpy as np
import pytest
from apptest import at_place, element, fine, items, page
from chromium import app_server, chromium
from PIL import Image
from test_cli import run  # noqa: F401

from attribution.engine import Engine
from attribution.pictures import Aside, alike
from attribution.records import UserError

TEST = 7


@pytest.fixture
def build(tiny):
    return Engine(tiny.cache, tiny.workspace).open(tiny.build)


@pytest.fixture
def picture(build) -> bytes:
    """A test image of the build as a file."""
    file = io.BytesIO()
    Image.fromarray(build.image("test", TEST)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("target", ["predicted", "3"])
def test_a_test_image_brought_again_gets_its_own_answer(build, picture, target):
    image = alike(picture, build.data.train.images)
    assert np.array_equal(image, build.image("test", TEST))
    found = build.attempt(image, target, k=5)
    answer = build.query(TEST, 5, target)
    assert np.allclose(found.probs, build.probs_TC[TEST], atol=1e-5)
    assert (found.predicted, found.target) == (answer.predicted, answer.target)
    for side in ("proponents", "opponents"):
        ours, known = getattr(found, side), getattr(answer, side)
        assert [h.train_id for h in ours] == [h.train_id for h in known]
        assert [h.score for h in ours] == pytest.approx([h.score for h in known], rel=0.02)
        assert [h.agreement for h in ours] == [h.agreement for h in known]


def test_pictures_take_the_form_of_the_data(build, picture):
    images = build.data.train.images
    drawn = Image.new("RGB", (300, 300), "white")
    drawn.paste("black", (140, 20, 160, 280))
    file = io.BytesIO()
    drawn.save(file, "JPEG")
    dark, light = (alike(file.getvalue(), images, invert) for invert in (False, True))
    assert dark.shape == light.shape == images[0].shape and dark.dtype == np.uint8
    assert np.abs(255 - dark.astype(int) - light).max() <= 1
    assert light[:, :5].max() < 5 and light[14, 14] > 200
    colour = alike(picture, np.zeros((1, 28, 28, 3), np.uint8))
    assert np.array_equal(colour, np.repeat(build.image("test", TEST)[..., None], 3, 2))
    with pytest.raises(Aside):
        alike(b"PK\x03\x04 no picture", images)


def test_a_senseless_question_is_told(build):
    image = build.image("test", TEST)
    with pytest.raises(UserError, match="target 'eleven'"):
        build.attempt(image, "eleven")
    with pytest.raises(UserError, match="k = 0"):
        build.attempt(image, k=0)


def test_the_command(tiny, build, picture, tmp_path, run):  # noqa: F811
    file = tmp_path / "seven <b>.png"
    file.write_bytes(picture)
    words = ("try", tiny.build, file, "--cache", tiny.cache, "-k", "4")
    found = json.loads(run(*words, "--json").out)
    assert found["predicted"] == build.predicted_T[TEST] and len(found["proponents"]) == 4
    said = run(*words, "--target", "3", "--opponents")
    assert said.code == 0 and "opponents of 3" in said.out and "seven <b>.png" in said.out
    for name, content, word in (("none.png", None, "No such file"), ("a.png", b"GIF", "not a pic")):
        bad = tmp_path / name
        if content:
            bad.write_bytes(content)
        refused = run("try", tiny.build, bad, "--cache", tiny.cache)
        assert refused.code == 2 and word in refused.err and "Traceback" not in refused.err


def test_the_page_answers_and_asks_about_other_classes(tiny, build, picture, monkeypatch):
    at_place(tiny, monkeypatch)
    app = fine(page("try_image"))
    assert "Bring a picture" in app.info[0].value
    app.file_uploader[0].upload("mine <b>.png", picture).run()
    fine(app)
    card = element(app, "tried_subject")
    assert card["name"] == "mine <b>.png"
    assert card["facts"][0][0] == f"Predicted {build.classes[build.predicted_T[TEST]]}"
    wanted = [h.train_id for h in build.query(TEST, 12).proponents]
    assert [i["id"] for i in items(app, "tried_hits")] == wanted
    other = int((build.predicted_T[TEST] + 1) % 10)
    app.pills[0].set_value(other).run()
    fine(app)
    wanted = [h.train_id for h in build.query(TEST, 12, str(other)).proponents]
    assert [i["id"] for i in items(app, "tried_hits")] == wanted
    app.toggle[0].set_value(True).run()
    fine(app)
    assert element(app, "tried_subject")["src"] != card["src"]


def test_what_is_no_picture_is_one_sentence(tiny, monkeypatch):
    at_place(tiny, monkeypatch)
    app = page("try_image")
    app.file_uploader[0].upload("fake.png", b"PK\x03\x04 a zip").run()
    assert not app.exception
    assert "a zip archive" in app.warning[0].value


def test_a_picture_is_pasted_in_a_real_browser(tiny, build, picture):
    with app_server(tiny.cache, tiny.workspace) as url, chromium() as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(f"{url}/try_image")
        box = tab.get_by_test_id("stChatInputTextArea")
        box.click()
        tab.evaluate(
            """bytes => {
              const file = new File([new Uint8Array(bytes)], "pasted.png", {type: "image/png"});
              const data = new DataTransfer();
              data.items.add(file);
              const event = new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
              document.activeElement.dispatchEvent(event);
            }""",
            list(picture),
        )
        tab.get_by_test_id("stChatInputSubmitButton").click()
        tab.get_by_text("Your picture").wait_for()
        name = build.classes[build.predicted_T[TEST]]
        tab.get_by_text(f"Predicted {name}").wait_for()
        hits = build.query(TEST, 12).proponents
        tab.locator(f'.tile[data-id="{hits[0].train_id}"]').first.wait_for()
