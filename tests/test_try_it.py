"""The page for people who do not program: it draws what its fields say, explains what it cannot, and can be stopped."""
from datetime import datetime
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

import small

try_it = import_module("lessons.try_it")


@pytest.fixture
def page(tmp_path):
    """A page with models of random weights, which draw at once what nobody would want to see."""
    made = try_it.Page(small.save_models(tmp_path, ("base", "inpaint")))
    made.inputs["steps"].value = made.inputs["n"].value = 2
    return made


def press(page):
    page.draw.click()
    page.thread.join(60)
    assert not page.draw.disabled and page.stop.disabled, "after a run the page is ready for the next one"
    return page.message.value


def test_a_run_draws_what_generate_draws_with_the_same_entries(page):
    assert "seed 1" in press(page)
    weights = try_it.sample.Weights(page.weights)
    again = try_it.sample.generate(page.inputs["prompt"].value, weights, n=2, seed=1, scale=3.0, steps="2")
    for image, wanted in zip(page.images, again, strict=True):
        assert np.array_equal(image, wanted.permute(1, 2, 0)), "the page is the pipeline, with nothing added"


def test_a_word_that_the_models_do_not_know_is_explained_with_those_they_do(page):
    page.inputs["prompt"].value = "a red <i>dog</i>"
    said = press(page)
    assert "&lt;i&gt;dog&lt;/i&gt;" in said and "umbrella" in said and "to the left of" in said and not page.images
    assert "<b>and</b>" not in said, "it is a heading of the vocabulary, but no word of it"


def test_a_prompt_of_known_words_in_another_order_is_explained_too(page):
    page.inputs["prompt"].value = "a heart"
    said = press(page)
    assert "a red heart" in said and "needs a colour" in said and not page.images


def test_enter_in_the_prompt_draws_and_a_full_stop_does_no_harm(page):
    page.inputs["prompt"].value = "a red heart."
    page.inputs["prompt"]._handle_custom_msg({"event": "submit"}, [])       # what a browser sends
    page.thread.join(60)
    assert "“a red heart”" in page.message.value and len(page.images) == 2


def test_cells_can_be_marked_where_there_is_a_picture_and_a_click_more_takes_the_mark_away(page):
    cell = page.grid.children[9]
    assert page.grid.layout.visibility == "hidden", "without a picture marks would mean nothing"
    page.take(Image.new("RGB", (64, 64), "red"))
    cell.click()
    assert page.grid.layout.visibility == "visible" and np.argwhere(page.hole).tolist() == [[1, 1]]
    assert page.inputs["strength"].disabled and "grey" in page.hint.value
    cell.click()
    assert not page.hole.any() and not page.inputs["strength"].disabled and "sketch" in page.hint.value


def test_stop_ends_a_run_at_its_next_step(page):
    follow, steps = page.step, []
    page.step = lambda *told: (steps.append(told[0]), page.stop.click(), follow(*told))
    assert press(page).startswith("Stopped") and steps == ["base"] and not page.images


def test_marked_cells_are_drawn_and_the_rest_of_the_picture_is_left_alone(page):
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    page.take(Image.fromarray(picture))
    page.mark(try_it.HALVES["right"])
    press(page)
    before, after = np.asarray(page.picture), np.asarray(page.images[0])
    assert (before[:, :48] == after[:, :48]).all() and (before[:, 48:] != after[:, 48:]).any(), "half is drawn anew"


def test_a_file_that_is_no_picture_is_refused_with_a_sentence(page):
    page.upload.value = [{"name": "x", "type": "", "size": 1, "content": b"x", "last_modified": datetime.now()}]
    assert "cannot be read as a picture" in page.message.value and page.picture is None
