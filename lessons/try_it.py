"""Prompts without code: the page of lessons/try_it.ipynb.

    prompt, numbers ──┐
    picture, cells ───┴─► Draw ─► a thread: sample.generate, which tells of every step ─► bar, pictures
                          Stop ─► the next step raises Stopped, and the thread ends

A page only collects what 09 takes and shows what it returns; what 09 refuses is explained here, with the words that the
models know. Drawing runs in a thread of its own, because a kernel that computes does not hear of buttons.

A picture can be used in two ways. With cells marked, only those are drawn and the rest is left alone (06). With none
marked, the whole picture is a sketch to begin with (SDEdit, see 09).
"""
import html
import io
import threading

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageOps

from lessons.notebook import diffusion, inpaint, sample, tokenizer

CELLS = 8       # a side of the mask; each cell is 2×2 of the tiny base model's pixels, and large enough to be clicked
PLACES = {"left": "0,0,0.5,1", "right": "0.5,0,1,1", "top": "0,0,1,0.5", "bottom": "0,0.5,1,1", "none": None}
STAGES = {"base": "small picture", "upsampler": "enlarging"}
LONG, SHORT = {"layout": {"width": "60em"}}, {"width": "6em"}
APART, FRAMED = {"margin": "0 0 0 2em"}, {"border": "1px solid gray"}
WIDE = {"layout": {"width": "29em"}, "style": {"description_width": "9.5em"}}


class Stopped(Exception):
    """Somebody pressed Stop."""


def png(image):
    """A PIL image as the bytes of a PNG file, which an Image widget shows. Small ones get larger pixels."""
    return image.resize([side * max(1, 192 // image.height) for side in image.size], Image.NEAREST)._repr_png_()


def explain(prompt, weights):
    """Why these weights cannot draw this prompt, as HTML, with the words that they know; "" if they can."""
    try:
        sample.check_prompt(prompt, weights)
        return ""
    except ValueError as refusal:
        reason = html.escape(str(refusal))
    if unknown := [html.escape(word) for word in tokenizer.unknown_words(prompt)]:
        reason = f"These small models have never seen <b>{'</b>, <b>'.join(unknown)}</b>. They know these words:"
    rows = "".join(f"<tr><td><b>{kind}</b><td>{', '.join(words)}" for kind, words in tokenizer.WORDS.items())
    return f"{reason}<table>{rows}</table>"


def button(text, action, **options):
    """A button that calls action(button)."""
    made = widgets.Button(description=text, **options)
    made.on_click(action)
    return made


class Page:
    """The widgets, in one that a notebook displays: `page.box`. After a run `page.images` are PIL images.

    weights  a folder of weight files
    """

    def __init__(self, weights=sample.FOLDERS["tiny"]):
        self.weights, self.stopped, self.picture, self.images = weights, threading.Event(), None, []
        self.inputs = {
            "prompt": widgets.Text("a red heart above a blue umbrella", description="Prompt", **WIDE | LONG),
            "seed": widgets.BoundedIntText(1, 0, 999_999, description="Seed", **WIDE),
            "scale": widgets.FloatSlider(3, min=0, max=8, step=0.5, description="Guidance scale", **WIDE),
            "steps": widgets.IntSlider(25, min=2, max=100, description="Steps", **WIDE),
            "n": widgets.IntSlider(2, min=1, max=6, description="Pictures", **WIDE),
            "strength": widgets.FloatSlider(0.6, min=0, max=1, step=0.1, description="Sketch changes", **WIDE)}
        self.draw = button("Draw", self.start, button_style="success", icon="paint-brush")
        self.stop = button("Stop", lambda _: self.stopped.set(), button_style="danger", icon="stop", disabled=True)
        self.bar, self.message = widgets.IntProgress(description="ready", **WIDE), widgets.HTML()
        self.gallery = widgets.HBox(layout={"flex_flow": "row wrap"})
        prompt, *fields = self.inputs.values()
        left = widgets.VBox([*fields, widgets.HBox([self.draw, self.stop]), self.bar])
        self.box = widgets.VBox([prompt, widgets.HBox([left, self.easel()]), self.message, self.gallery])
        self.refresh()

    # --- The picture and its cells ---

    def easel(self):
        """The widgets of what is drawn into: a picture, and cells that say where."""
        self.upload = widgets.FileUpload(accept="image/*", description="From a file", layout={"width": "auto"})
        self.upload.observe(self.read, "value")
        look = widgets.Layout(width="22px", height="22px", padding="0", margin="0")     # one for all: faster
        self.cells = [widgets.ToggleButton(layout=look, tooltip="draw here") for _ in range(CELLS ** 2)]
        for cell in self.cells:
            cell.observe(self.refresh, "value")
        grid = widgets.GridBox(self.cells, layout={"grid_template_columns": f"repeat({CELLS}, 24px)"})
        self.preview = widgets.Image(layout={"width": "192px", "height": "192px"} | FRAMED)
        marks = [button(name, lambda _, where=where: self.mark(where), layout=SHORT) for name, where in PLACES.items()]
        above = widgets.HBox([self.upload, button("No picture", lambda _: self.take(None))])
        return widgets.VBox([above, widgets.HBox([grid, self.preview]), widgets.HBox(marks)], layout=APART)

    def read(self, change):
        """A file was chosen."""
        if not change.new:
            return
        try:
            self.take(inpaint.open_image(io.BytesIO(change.new[0]["content"])))
        except Exception as error:        # Pillow has no common error
            self.message.value = f"This file cannot be read as a picture: {html.escape(str(error))}"
        self.upload.value = ()            # so that the same file can be chosen again

    def take(self, picture):
        """A PIL image becomes what is drawn into: its middle square, of at most 512 pixels. None: nothing does."""
        self.picture = picture and ImageOps.fit(picture, (min(*picture.size, 512),) * 2)
        self.message.value = "Mark cells to draw there. Without any, the picture is a sketch." if picture else ""
        self.refresh()

    def mark(self, where):
        """Mark the cells of a box, given as for --box, and no others; None: none at all."""
        chosen = sample.box_mask(where).resize((CELLS, CELLS), Image.NEAREST) if where else Image.new("L", (CELLS,) * 2)
        for cell, value in zip(self.cells, np.asarray(chosen).flat):
            cell.value = bool(value)

    def mask(self):
        """The cells as 09 wants them: an L image, white = draw here."""
        return Image.fromarray(np.uint8([255 * cell.value for cell in self.cells]).reshape(CELLS, CELLS))

    def refresh(self, _=None):
        """Show the picture, and grey on it what will be drawn anew."""
        picture = self.picture or Image.new("RGB", (192, 192), "white")
        hole = self.mask().resize(picture.size, Image.NEAREST)
        self.preview.value = png(Image.composite(Image.new("RGB", picture.size, "gray"), picture, hole))

    # --- A run ---

    def start(self, _=None):
        """Draw was pressed: a thread begins, unless one is at it."""
        if self.draw.disabled:
            return
        self.draw.disabled, self.stop.disabled, self.message.value = True, False, ""
        self.stopped.clear()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        """What the thread does, and what is said at its end."""
        try:
            self.message.value = self.paint(**{name: field.value for name, field in self.inputs.items()})
        except Stopped:
            self.message.value = "Stopped. This is how far it came."
        except Exception as error:        # a thread has nobody else to tell
            self.message.value = html.escape(str(error))
        self.bar.value, self.bar.description = 0, "ready"
        self.draw.disabled, self.stop.disabled = False, True

    def paint(self, prompt, steps, strength, **options):
        """One run with these values of the fields. -> what to say about it, in HTML"""
        mask, picture = self.mask(), self.picture
        inpaints = bool(picture and mask.getbbox())
        weights = sample.Weights(self.weights, inpaints=inpaints)
        if refusal := explain(prompt, weights):
            return refusal
        known = sample.InpaintInput(picture, mask, weights.header("size")) if inpaints else None
        options |= {"init": picture, "strength": strength} if picture and not inpaints else {}
        self.gallery.children = [widgets.Image(layout=FRAMED)]      # what is believed so far
        images = sample.generate(prompt, weights, steps=str(steps), known=known, callback=self.step, **options)
        images = [known.composite(image) for image in images] if known else images
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.gallery.children = [self.framed(image) for image in self.images]
        return f"“{html.escape(prompt)}”, seed {options['seed']}. The same entries give the same pictures again."

    def step(self, stage, x0, done, total):
        """generate's callback: the bar, and what the model believes so far."""
        if self.stopped.is_set():
            raise Stopped
        self.bar.max, self.bar.value, self.bar.description = total, done, STAGES[stage]
        self.gallery.children[0].value = png(diffusion.image_grid(diffusion.to_bytes(x0), columns=len(x0)))

    def framed(self, image):
        """A drawn picture with a button that makes it the one to draw into."""
        shown = widgets.Image(value=png(image), layout=FRAMED)
        return widgets.VBox([shown, button("Draw into this one", lambda _: self.take(image))])
