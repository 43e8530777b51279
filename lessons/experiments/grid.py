"""The grid at the head of the README: twelve captions, one drawing each, nothing chosen by hand.

    python lessons/grid.py [OUT.png]     default outputs/grid.png; about twenty seconds
"""
import random
import sys
from importlib import import_module
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
sample, train = import_module("09_sample"), import_module("08_train")


def captions(difficulty, n=12):
    """Each easy noun once on its own; or, for weights that know all the language, a third of each kind."""
    if difficulty == "full":
        scenes = [scene for kind in ("single", "pair", "count") for scene in train.exam(kind, n // 3, seed=1)]
        return [scene.caption() for scene in scenes]
    rng, found = random.Random(1), {}
    while len(found) < n:
        scene = train.tokenizer.random_scene(rng, "single")
        found.setdefault(scene.things[0].noun, scene.caption())
    return list(found.values())


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else sample.OUTPUTS / "grid.png"
    base, upsampler = (sample.Model.load(sample.WEIGHTS / f"{name}.pt") for name in ("base", "upsampler"))
    prompts, generator = captions(base.difficulty), torch.Generator().manual_seed(0)
    small = sample.draw_small(base, prompts, generator=generator)
    large = sample.enlarge(upsampler, small, prompts, generator=generator)
    train.save_grid(large, prompts, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
