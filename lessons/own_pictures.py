"""Twenty captioned pictures to practise on, and the figure of what a run on them has learned.

No download: matplotlib ships one photograph (Grace Hopper, a United States Navy portrait), one scan of a head and one
drawing of a present. Parts of the first two, named as one would name them, make a folder such as anybody could fill
with pictures of their own: NAME.jpg, and its caption in NAME.txt. own_pictures.md tells what to do with it.

    python lessons/own_pictures.py FOLDER                                     fills the folder, a second
    python lessons/own_pictures.py FOLDER --weights WEIGHTS --figure OUT.png  draws the folder's captions and NEW ones
                                                                              with weights trained on it; a minute
"""
import argparse
import gzip
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from matplotlib import cbook
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
sample, train = import_module("09_sample"), import_module("08_train")

# left, top, right, bottom in pixels of the photograph. Few are square: the reader takes the middle square of each, so
# what is meant must lie there.
PHOTOGRAPH = {
    "a woman in a navy uniform": (0, 44, 512, 556),
    "a woman's face with glasses": (165, 115, 375, 325),
    "a pair of glasses": (170, 152, 365, 242),
    "an eye behind glasses": (278, 160, 352, 234),
    "a smiling mouth": (215, 250, 315, 320),
    "a white cap with a golden eagle": (150, 15, 378, 150),
    "a golden eagle on black": (218, 24, 308, 110),
    "white stars on blue": (0, 40, 130, 210),
    "one white star on blue": (44, 56, 110, 122),
    "red and white stripes of a flag": (30, 250, 130, 390),
    "a golden cord before a flag": (100, 160, 172, 330),
    "a blue wall": (400, 20, 505, 180),
    "a dark shoulder before a blue wall": (335, 290, 512, 470),
    "a white collar and a black tie": (180, 340, 350, 530),
    "ribbons on a dark uniform": (320, 460, 462, 550),
    "a name tag on a dark uniform": (70, 455, 175, 545),
    "a golden button on a dark uniform": (210, 530, 278, 600),
}
SCAN = {"a scan of a head": (0, 0, 256, 256), "a scan of a brain": (38, 38, 188, 148)}
PRESENT = {"a blue present with a silver ribbon": (0, 0, 128, 128)}

# What the folder does not say: its things with other words, and things that it does not show
NEW = ("a golden star on blue", "white stars on black", "a scan of a woman's face", "a red present", "a cat")


def picture_of(name):
    """One of matplotlib's sample files as an RGB image."""
    with cbook.get_sample_data(name, asfileobj=True) as file:
        if name.endswith(".jpg") or name.endswith(".png"):
            image = Image.open(file).convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        numbers = np.frombuffer(file.read(), np.uint16).reshape(256, 256)   # cbook has unpacked the .gz
        return Image.fromarray((255.0 * numbers / numbers.max()).astype(np.uint8)).convert("RGB")


def examples():
    """All of them: {caption: image}."""
    files = {"grace_hopper.jpg": PHOTOGRAPH, "s1045.ima.gz": SCAN, "Minduka_Present_Blue_Pack.png": PRESENT}
    return {caption: picture_of(name).crop(box) for name, boxes in files.items() for caption, box in boxes.items()}


def fill(folder):
    """Write the folder: a picture and its caption under one name. OSError where that cannot be done."""
    folder.mkdir(parents=True)       # of its own: nothing that is there is touched
    for number, (caption, image) in enumerate(examples().items()):
        image.save(folder / f"{number:02d}.jpg", quality=95)
        (folder / f"{number:02d}.txt").write_text(caption + "\n", encoding="utf-8")
    return number + 1
