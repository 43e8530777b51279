"""Networks far too small to draw anything, for tests that are about everything but quality."""
import os
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import torch

unet, train, sample = import_module("03_unet"), import_module("08_train"), import_module("09_sample")
ROOT = Path(__file__).parent.parent


def preset(kind="base", **training):
    """The tiny preset made smaller still: 32 channels, one text layer, eight pictures a step."""
    tiny = train.PRESETS["tiny"][kind]
    text = replace(tiny.network.text, width=32, layers=1, heads=1)
    net = replace(tiny.network, channels=32, head_channels=32, text=text)
    return replace(tiny, network=net, train=replace(tiny.train, **{"steps": 4, "batch": 8, "warmup": 2} | training))


def clip_preset(**training):
    """The tiny CLIP made smaller still, as `preset` does."""
    tiny = train.PRESETS["tiny"]["clip"]
    text = replace(tiny.network.text, width=32, layers=1, heads=1)
    net = replace(tiny.network, width=32, layers=1, heads=1, embedding=32, text=text)
    return replace(tiny, network=net, train=replace(tiny.train, **{"steps": 4, "batch": 8, "warmup": 2} | training))


def randomize(network):
    """A fresh network answers zero, whatever it is asked; one with random weights does not."""
    torch.manual_seed(0)
    for p in network.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.7 / p[0].numel() ** 0.5)
        else:
            p.data += 0.1 * torch.randn_like(p)
    return network


@lru_cache
def facts(kind, difficulty, folder):
    """What `train` writes beside the weights, read from a file that it wrote."""
    path = train.train(preset(kind, steps=1, batch=1), folder / kind / difficulty, difficulty=difficulty)
    saved = unet.read_weights(path)
    return {name: value for name, value in saved.items() if name not in ("config", "weights")}


def save_models(folder, scratch, difficulty="full", kinds=("base", "upsampler")):
    """base.pt and upsampler.pt, or others, with random weights, complete in all else: -> folder."""
    for kind in kinds:
        network = randomize(unet.UNet(preset(kind).network))
        unet.save_weights(folder / f"{kind}.pt", network, **facts(kind, difficulty, scratch))
    return folder


def environment():
    """Of a script that a test starts: its output can be read as text anywhere, and no window opens."""
    return os.environ | {"PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"}


def run(script, *args, timeout=600, cwd=ROOT):
    """A script as a reader runs it: CompletedProcess, its output as text."""
    return subprocess.run([sys.executable, script, *map(str, args)], cwd=cwd, env=environment(), timeout=timeout,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8")


def main(capfd, *argv):
    """09's own main: (status, stdout, lines of stderr). argparse leaves by SystemExit."""
    try:
        status = sample.main([str(word) for word in argv])
    except SystemExit as end:
        status = end.code
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return status, out, err.splitlines()


def same(a, b):
    """Whether two nests of dictionaries, lists and tensors hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def one_line(message):
    text = str(message)
    assert text.strip() and "\n" not in text.strip("\n"), f"a refusal is one line, not {text!r}"
    return text


def refused(argv, capfd):
    """The lines with which 08's command line refuses this."""
    try:
        train.main([str(word) for word in argv])
    except SystemExit as end:
        assert end.code == 2, "what cannot be done ends with status 2"
        return capfd.readouterr().err.strip().splitlines()
    raise AssertionError(f"{argv} was not refused")
