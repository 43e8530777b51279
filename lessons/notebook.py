"""What the lesson notebooks share: the modules of the course by name, and figures in one style.

A notebook begins with these lines, which work from any folder of the project:

    import pathlib, sys
    sys.path += map(str, [pathlib.Path.cwd(), *pathlib.Path.cwd().parents])
    from lessons.notebook import *

After them `tokenizer`, `transformer`, `unet`, `diffusion`, `guidance`, `inpaint`, `upsample`, `train` and `sample` are
the modules 01 to 09, `torch`, `np` and `plt` are what they are called everywhere, and `show` draws images.
"""
import sys
import textwrap
import warnings
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
tokenizer, transformer, unet, diffusion, guidance, inpaint, upsample, train, sample = map(import_module, (
    "01_tokenizer", "02_transformer", "03_unet", "04_diffusion", "05_guidance", "06_inpaint", "07_upsample", "08_train",
    "09_sample"))

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
plt.rcParams.update({
    "figure.dpi": 90, "figure.figsize": (8, 4), "figure.constrained_layout.use": True, "font.size": 11,
    "axes.prop_cycle": plt.cycler(color=COLORS), "axes.spines.top": False, "axes.spines.right": False,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "image.interpolation": "nearest"})
warnings.filterwarnings("ignore")      # of packages, about themselves: they would differ from machine to machine
torch.manual_seed(0)


__all__ = ["torch", "np", "plt", "show", "ROOT", "COLORS", "tokenizer", "transformer", "unet", "diffusion", "guidance",
           "inpaint", "upsample", "train", "sample"]


def show(images, titles=(), *, columns=6, title="", size=1.7):
    """Images [n, 3, H, W] in [-1, 1] or uint8, each under its title, as one figure whose title says what to see."""
    images = torch.as_tensor(images)
    images = diffusion.to_bytes(images) if images.dtype != torch.uint8 else images
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    lines = max((len(textwrap.wrap(text, 20)) for text in titles), default=0)
    height = rows * (size + 0.2 * lines) + 0.4 * bool(title)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, height), squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(images):
            ax.imshow(images[i].permute(1, 2, 0).cpu().numpy())
            ax.set_title(textwrap.fill(titles[i], 20) if i < len(titles) else "", fontsize=9, loc="center",
                         fontweight="normal")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    plt.show()
