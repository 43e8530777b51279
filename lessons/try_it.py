"""Prompts without code: the page of lessons/try_it.ipynb.

    prompt, numbers ──┐
    picture, cells ───┴─► Draw ─► a thread: sample.generate, which tells of every step ─► bar, pictures
                          Stop ─► the next step raises an error, and the thread ends

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

ROW, COLUMN = np.indices((8, 8))        # of the cells; each is 2×2 of the tiny base model's pixels, and easily clicked
HALVES = {"left": COLUMN < 4, "right": COLUMN > 3, "top": ROW < 4, "bottom": ROW > 3, "none": ROW < 0}
STAGES = {"base": "small picture", "upsampler": "enlarging"}
EMPTY = "<b>A picture to draw into?</b> Press the button below a drawing, or choose a file."
SKETCH = "Click on the picture <b>where to draw anew</b>, or mark a half. With nothing marked, all of it is a sketch."
MARKED = "Only <b>the grey part</b> will be drawn anew. Let the prompt describe the whole picture."
BLANK = Image.new("RGB", (192, 192), "white")
FRAMED, WRAP, APART = {"border": "1px solid gray"}, {"flex_flow": "row wrap"}, {"margin": "2px 0 0 1.5em"}
CANVAS = {"grid_area": "1 / 1", "width": "192px", "height": "192px", "margin": "0"}         # things upon each other
LONG, SHORT = {"layout": {"width": "60em", "max_width": "99%"}}, {"layout": {"width": "6em"}}
WIDE = {"layout": {"width": "29em"}, "style": {"description_width": "9.5em"}}


def png(image):
    """A PIL image as the bytes of a PNG file, which an Image widget shows. Small ones get larger pixels."""
    return image.resize([side * max(1, 192 // image.height) for side in image.size], Image.NEAREST)._repr_png_()


def explain(prompt, weights):
    """Why these weights cannot draw this prompt, as HTML, with the words that they know; "" if they can."""
    try:
        return sample.check_prompt(prompt, weights) or ""
    except ValueError as refusal:
        reason = f"{html.escape(str(refusal))}. Each thing needs a colour, and these are all the words:"
    if unknown := [html.escape(word) for word in tokenizer.unknown_words(prompt)]:
        reason = f"These small models have never seen <b>{'</b>, <b>'.join(unknown)}</b>. They know these words:"
    rows = "".join(f"<tr><td><b>{kind}</b><td>{', '.join(words)}" for kind, words in tokenizer.WORDS.items())
    rows = rows.replace("<b>and<", "<b>also<")      # the heading of the rest: "and" is no word that they know
    return f"{reason}<table style='line-height: 1.4'>{rows}</table>"


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
        self.gallery = widgets.HBox(layout=WRAP)
        prompt, *fields = self.inputs.values()
        prompt.on_msg(lambda _, told, __: told.get("event") == "submit" and self.start())       # the Enter key
        left = widgets.VBox([*fields, widgets.HBox([self.draw, self.stop]), self.bar])
        self.box = widgets.VBox([prompt, widgets.HBox([left, self.easel()], layout=WRAP), self.message, self.gallery])
        self.take(None)

    # --- The picture and its cells ---

    def easel(self):
        """The widgets of what is drawn into: a picture, and see-through cells upon it that say where."""
        self.upload = widgets.FileUpload(accept="image/*", description="From a file", layout={"width": "auto"})
        self.upload.observe(self.read, "value")
        look = {"layout": widgets.Layout(width="24px", height="24px", margin="0", border="1px dotted silver"),
                "style": widgets.ButtonStyle(button_color="transparent")}       # one for all cells: faster
        cells = [button("", lambda _, cell=cell: self.mark(self.hole ^ cell), **look)
                 for cell in np.eye(64, dtype=bool).reshape(64, 8, 8)]
        self.grid = widgets.GridBox(cells, layout=CANVAS | {"grid_template_columns": "repeat(8, 24px)"})
        self.preview, self.hint = widgets.Image(layout=CANVAS), widgets.HTML()
        halves = [button(name, lambda _, half=half: self.mark(half), **SHORT) for name, half in HALVES.items()]
        self.tools = widgets.HBox([*halves, button("Remove", lambda _: self.take(None), **SHORT)], layout=WRAP)
        beside = widgets.VBox([self.hint, self.upload, self.tools], layout={"width": "21em"} | APART)
        canvas = widgets.GridBox([self.preview, self.grid], layout=FRAMED | APART)
        return widgets.HBox([canvas, beside], layout={"align_items": "flex-start"})

    def read(self, change):
        """A file was chosen."""
        for file in change.new:
            try:
                self.take(inpaint.open_image(io.BytesIO(file["content"])))
            except Exception:               # Pillow has no common error
                self.message.value = f"{html.escape(file['name'])} cannot be read as a picture."
        self.upload.value = ()              # so that the same file can be chosen again

    def take(self, picture):
        """A PIL image becomes what is drawn into: its middle square, of at most 512 pixels. None: nothing does."""
        self.picture = picture and ImageOps.fit(picture, (min(*picture.size, 512),) * 2)
        self.message.value = "The picture to draw into is at the upper right." if picture else ""
        self.mark(HALVES["none"])

    def mark(self, hole):
        """These cells [row, column], and no others, will be drawn anew. Show it, and say what can be done."""
        picture, self.hole, self.mask = self.picture or BLANK, hole, Image.fromarray(np.uint8(255 * hole))
        gray = Image.new("RGB", picture.size, "gray")
        self.preview.value = png(Image.composite(gray, picture, self.mask.resize(picture.size, Image.NEAREST)))
        self.hint.value = MARKED if hole.any() else SKETCH if self.picture else EMPTY
        self.inputs["strength"].disabled = self.hint.value != SKETCH
        self.grid.layout.visibility = self.tools.layout.visibility = "visible" if self.picture else "hidden"

    # --- A run ---

    def start(self, _=None):
        """Draw was pressed: a thread begins, unless one is at it."""
        if self.draw.disabled:
            return
        self.draw.disabled, self.stop.disabled, self.message.value = True, False, "What the model believes so far:"
        self.stopped.clear()
        self.thread = threading.Timer(0.3, self.run)        # by then the letters typed last have arrived
        self.thread.start()

    def run(self):
        """What the thread does, and what is said at its end."""
        try:
            self.message.value = self.paint(**{name: field.value for name, field in self.inputs.items()})
        except Exception as error:        # a thread has nobody else to tell
            self.message.value = html.escape(str(error))
        self.bar.value, self.bar.description = 0, "ready"
        self.draw.disabled, self.stop.disabled = False, True

    def paint(self, prompt, steps, strength, **options):
        """One run with these values of the fields. -> what to say about it, in HTML"""
        prompt, inpaints, mask, picture = prompt.strip(" .!?"), bool(self.hole.any()), self.mask, self.picture
        weights = sample.Weights(self.weights, inpaints=inpaints)
        if refusal := explain(prompt, weights):
            return refusal
        known = sample.InpaintInput(picture, mask, weights.header("size")) if inpaints else None
        options |= {"init": picture, "strength": strength} if picture and not inpaints else {}
        self.gallery.children = [widgets.Image(value=png(BLANK), layout=FRAMED) for _ in range(options["n"])]
        images = sample.generate(prompt, weights, steps=str(steps), known=known, callback=self.step, **options)
        self.images = [diffusion.image_grid((known.composite(image) if known else image)[None]) for image in images]
        self.gallery.children = [self.framed(image) for image in self.images]
        return f"“{html.escape(prompt)}”, seed {options['seed']}. The same entries give the same pictures again."

    def step(self, stage, x0, done, total):
        """generate's callback: the bar, and what the model believes so far."""
        if self.stopped.is_set():
            raise InterruptedError("Stopped. This is how far it came.")
        self.bar.max, self.bar.value, self.bar.description = total, done, STAGES[stage]
        for shown, image in zip(self.gallery.children, x0):
            shown.value = png(diffusion.image_grid(image[None]))

    def framed(self, image):
        """A drawn picture with a button that makes it the one to draw into."""
        shown = widgets.Image(value=png(image), layout=FRAMED)
        return widgets.VBox([shown, button("Draw into this one", lambda _: self.take(image))])
