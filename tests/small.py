"""Networks far too small to draw anything, for tests that are about everything but quality."""
import io
import os
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import torch
from PIL import Image

tokenizer, unet, train, sample = (import_module(m) for m in ("01_tokenizer", "03_unet", "08_train", "09_sample"))
ROOT = Path(__file__).parent.parent


def preset(kind="base", **training):
    """The tiny preset made smaller still: 32 channels, one text layer, eight images a step."""
    if kind == "clip":
        return clip_preset(**training)
    tiny = train.PRESETS["tiny"][kind]
    text = replace(tiny.network.text, width=32, layers=1, heads=1)
    network = replace(tiny.network, channels=32, head_channels=32, text=text)
    return replace(tiny, network=network, train=replace(tiny.train, **{"steps": 4, "batch": 8, "warmup": 2} | training))


def clip_preset(**training):
    """The tiny CLIP made smaller still, as `preset` does."""
    tiny = train.PRESETS["tiny"]["clip"]
    text = replace(tiny.network.text, width=32, layers=1, heads=1)
    network = replace(tiny.network, width=32, layers=1, heads=1, embedding=32, text=text)
    return replace(tiny, network=network, train=replace(tiny.train, **{"steps": 4, "batch": 8, "warmup": 2} | training))


def randomize(network):
    """A fresh network answers zero, whatever it is asked; one with random weights does not."""
    torch.manual_seed(0)
    for p in network.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.7 / p[0].numel() ** 0.5)
        else:
            p.data += 0.1 * torch.randn_like(p)
    return network


def save_model(path, like, **metadata):
    """One weight file as 08 leaves it, of the Preset `like` and with random weights. metadata replaces what 08 says."""
    torch.manual_seed(0)                     # the same weights each time
    facts = {"size": like.size, "diffusion": asdict(like.diffusion), "tokenizer": tokenizer.world_tokenizer().merges,
             "world": "full", "made": {"command": "python 08_train.py", "steps": 1}}
    unet.save_weights(path, randomize(train.build_network(like.network)), **facts | metadata)


def save_models(folder, kinds=("base", "upsampler"), world="full", **metadata):
    """base.pt and upsampler.pt, or others of 08's kinds: complete weight files with random weights. -> folder"""
    for kind in kinds:
        save_model(Path(folder) / f"{kind}.pt", preset(kind), world=world, **metadata)
    return folder


def run(script, *args, timeout=600, cwd=ROOT, **environment):
    """A script as a reader runs it: CompletedProcess, its output as text. No window opens."""
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"} | environment
    return subprocess.run([sys.executable, script, *map(str, args)], cwd=cwd, env=environment, timeout=timeout,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", errors="replace")


def main(capfd, *argv, script=sample):
    """A script's own main, 09's by default: (status, stdout, lines of stderr). argparse leaves by SystemExit."""
    try:
        status = script.main([str(word) for word in argv])
    except SystemExit as end:
        status = end.code
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return status, out, err.splitlines()


def refused(capfd, *argv, script=sample):
    """The one line with which a script refuses these arguments. (argparse prints its usage in front of it.)"""
    status, _, err = main(capfd, *argv, script=script)
    assert status == 2, f"what cannot be done ends with status 2, not {status}: {err}"
    assert len(err) == 1 or err[0].startswith("usage:"), f"a refusal is one line, not {err}"
    return one_line(err[-1])


def one_line(message):
    """The text of a refusal, which is one line."""
    text = str(message).strip("\n")
    assert text.strip() and "\n" not in text, f"a refusal is one line, not {text!r}"
    return text


def same(a, b):
    """Whether two nests of dictionaries, lists and tensors hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def encoded(image, kind="PNG", **options):
    """A PIL image as a file's bytes."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def flat(grey, size=(11, 8)):
    """A file's bytes of an image of one grey."""
    return encoded(Image.new("RGB", size, (grey, grey, grey)))


def pair(i, name=None):
    """The two files of an example: an image of the grey that its caption says."""
    name = name or f"{i:04}"
    return [(f"{name}.png", flat(i % 256)), (f"{name}.txt", str(i).encode())]


def folder_of(path, n):
    """A folder of n such examples."""
    path.mkdir(exist_ok=True)
    for i in range(n):
        for name, data in pair(i):
            (path / name).write_bytes(data)
    return path
