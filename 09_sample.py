r"""
09 · A prompt becomes a picture.

Everything is there; this file puts it in a row. The words are checked and become tokens, noise becomes a small
picture under guidance, the small picture becomes a large one:

    "a red heart" ─► tokens, mask ─┬─► 25 steps, guidance 3 ─► 16×16 ─► 8 bits ─┐
                                   └─────────────────────────► 27 steps ◄───────┘ ─► 64×64 ─► a PNG file

It adds to 08: use. `generate` is the pipeline, ten lines long. Beside it stand the measures (how many
captions came out right, and how many could have: the judge's own ceiling on real pictures), and the table
that renames OpenAI's released weights to ours and back, so that the same U-Net runs them.

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4: base and upsampler; section 5: guidance
3); the steps of the upsampler: the released notebooks; score intervals: Wilson 1927, J. Am. Stat. Assoc. 22.

    python 09_sample.py "a red heart above a blue umbrella"     about five seconds
    python 09_sample.py "a small green star" --n 8 --seed 3 --scale 5 --steps 50 --sampler ddpm
    python 09_sample.py --measure                               some minutes: caption accuracy, with intervals
"""
import argparse
import itertools
import math
import random
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

tokenizer = import_module("01_tokenizer")
transformer = import_module("02_transformer")
unet = import_module("03_unet")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")
upsample = import_module("07_upsample")
train = import_module("08_train")

OUTPUTS, WEIGHTS = Path(__file__).parent / "outputs", unet.WEIGHTS


# --- The pipeline ------------------------------------------------------------------------------------

@dataclass
class Model:
    """A network with what its weight file says about it."""

    denoiser: object
    config: unet.UNetConfig
    process: diffusion.DiffusionConfig
    size: int             # of its pictures
    device: str
    tokenizer: object
    difficulty: str       # what it was trained on: "single" or "full"
    made: dict            # how: command, steps, minutes, seed

    @classmethod
    def load(cls, path, device="cpu"):
        """A model of a file that 08 wrote. Raises FileNotFoundError or ValueError, one line each."""
        network, saved = unet.UNet.load(path).to(device), unet.read_weights(path)
        try:
            process = diffusion.DiffusionConfig(**saved["diffusion"])
            return cls(upsample.denoiser_of(network, network.config, process), network.config, process,
                       saved["size"], device, tokenizer.BPETokenizer(saved["tokenizer"]), saved["difficulty"], saved["made"])
        except (KeyError, TypeError) as e:
            raise ValueError(f"{path} lacks what sampling needs ({e})") from None

    def encode(self, prompts):
        """Tokens and mask, [B, K] each, by name."""
        return guidance.encode(prompts, self.tokenizer, self.config.text.context, self.device)


def draw_small(base, prompts, *, generator, scale=3.0, steps="25", sampler="ddim", watch=None):
    """The base model's pictures [B, 3, S, S] in [-1, 1]. watch(x0, left) sees each predicted picture."""
    process = diffusion.Diffusion.of(base.process, steps)
    noise = diffusion.gaussian(torch.empty(len(prompts), 3, base.size, base.size, device=base.device), generator)
    walk = {"ddim": process.ddim_sample, "ddpm": process.ddpm_sample}[sampler]
    return walk(guidance.classifier_free(base.denoiser, scale), noise, generator=generator,
                x0_fn=watching(watch, len(process.timesteps)), **base.encode(prompts))


def enlarge(upsampler, low_res, prompts, *, generator, steps="fast27", watch=None):
    """[B, 3, S, S] -> [B, 3, 4S, 4S], guided by nothing but the small picture and the prompt."""
    process = diffusion.Diffusion.of(upsampler.process, steps)
    return upsample.upsample(upsampler.denoiser, low_res, process=process, generator=generator,
                             x0_fn=watching(watch, len(process.timesteps)), **upsampler.encode(prompts))


def generate(prompt, *, base, upsampler, n=1, seed=0, watch=None, **options):
    """A prompt becomes pictures: uint8 [n, 3, H, W]. The same seed gives the same pictures again.

    base, upsampler  Models;  options  of draw_small: scale, steps, sampler
    watch(stage, x0, left)  is told of every step: "base" or "upsampler", the predicted picture, steps left
    """
    generator = torch.Generator().manual_seed(seed)
    tell = (lambda stage: lambda x0, left: watch(stage, x0, left)) if watch else lambda stage: None
    small = draw_small(base, [prompt] * n, generator=generator, watch=tell("base"), **options)
    large = enlarge(upsampler, small, [prompt] * n, generator=generator, watch=tell("upsampler"))
    return train.to_bytes(large).cpu()


def watching(watch, steps):
    """An x0_fn that changes nothing and counts down, or None."""
    left = itertools.count(steps - 1, -1)

    def x0_fn(x0):
        watch(x0, next(left))
        return x0
    return x0_fn if watch else None


# --- Measures ----------------------------------------------------------------------------------------

def caption_accuracy(base, judge, kind, n, *, seed=0, batch=100, **options):
    """How many of n captions of a kind (08's KINDS) the judge finds entirely right in the picture: (right, n)."""
    right, generator = 0, torch.Generator().manual_seed(seed)
    for scenes in batches(train.exam(kind, n, seed), batch):
        drawn = draw_small(base, [scene.caption() for scene in scenes], generator=generator, **options)
        right += int(train.scores(judge, drawn.cpu(), scenes)["all"].sum())
    return right, n


def batches(items, size):
    return [items[i:i + size] for i in range(0, len(items), size)]


def enlarging(upsampler, judge, kind, n, *, seed=0, batch=50):
    """True small pictures enlarged, by the upsampler and by bicubic interpolation.

    -> {"upsampler": …, "bicubic": …}, each with `colour`: the mean absolute difference, on [0, 1], between
    the result reduced again and the small picture; `psnr` in dB against the true large picture; `right`: how
    often the judge of large pictures names every noun.
    """
    generator, sums = torch.Generator().manual_seed(seed), {}
    for scenes in batches(train.exam(kind, n, seed), batch):
        true = train.real_pictures(scenes, seed)
        large = diffusion.reduce(true, upsampler.size)
        low = upsample.round_to_bytes(diffusion.reduce(true, upsampler.size // upsample.FACTOR))
        results = {"upsampler": enlarge(upsampler, low.to(upsampler.device), [s.caption() for s in scenes],
                                        generator=generator).cpu(),
                   "bicubic": F.interpolate(low, scale_factor=upsample.FACTOR, mode="bicubic").clamp(-1, 1)}
        for name, x in results.items():
            colour = (F.avg_pool2d(x, upsample.FACTOR) - low).abs().flatten(1).mean(1) / 2
            psnr = -10 * ((x - large) / 2).square().flatten(1).mean(1).log10()
            seen = torch.from_numpy(train.scores(judge, x, scenes)["noun"]).double()
            total = torch.stack([colour.sum().double(), psnr.sum().double(), seen.sum()])
            sums[name] = sums.get(name, 0) + total
    return {name: dict(zip(("colour", "psnr", "right"), (total / n).tolist())) for name, total in sums.items()}


# --- Released weights: one table of names, both ways -----------------------------------------------------

# Ours on the left, OpenAI's on the right; {} is a number. The places of blocks are filled in by `released_names`.
INSIDE_BLOCK = {"norm1": "in_layers.0", "conv1": "in_layers.2", "scale_shift": "emb_layers.1",
                "norm2": "out_layers.0", "conv2": "out_layers.3", "skip": "skip_connection"}
INSIDE_ATTENTION = {"norm": "norm", "qkv": "qkv", "text_kv": "encoder_kv", "out": "proj_out"}
INSIDE_TEXT = {"norm1": "ln_1", "attention.qkv": "attn.c_qkv", "attention.out": "attn.c_proj",
               "norm2": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
OUTSIDE = {"text.tokens": "token_embedding", "text.norm": "final_ln", "pool": "transformer_proj",
           "time.0": "time_embed.0", "time.2": "time_embed.2", "enter": "input_blocks.0.0",
           "leave.0": "out.0", "leave.2": "out.2", "middle.0.block": "middle_block.0",
           "middle.0.attention": "middle_block.1", "middle.1.block": "middle_block.2"}

ROW_CONVOLUTIONS = (".qkv.weight", ".encoder_kv.weight", ".proj_out.weight")   # [out, in, 1]: see `joined`


def released_names(config):
    """{our key: OpenAI's key} for a U-Net of these sizes. Their blocks are numbered through, ours by level."""
    places = dict(OUTSIDE)
    levels, numbers = range(len(config.multipliers)), {"down": itertools.count(1), "up": itertools.count()}
    for way, theirs, steps in ("down", "input_blocks", config.blocks), ("up", "output_blocks", config.blocks + 1):
        for i, level in enumerate(levels if way == "down" else reversed(levels)):
            for j in range(steps):
                n = next(numbers[way])
                places[f"{way}.{i}.steps.{j}.block"] = f"{theirs}.{n}.0"
                places[f"{way}.{i}.steps.{j}.attention"] = f"{theirs}.{n}.1"
            if way == "down" and i < levels[-1]:      # going down, a resampling block has a number of its own
                places[f"down.{i}.resample"] = f"input_blocks.{next(numbers['down'])}.0"
            if way == "up" and level:                 # going up, it comes last in the block before
                places[f"up.{i}.resample"] = f"output_blocks.{n}.{1 + (level in config.attention_levels)}"
    places |= {f"text.blocks.{i}.{ours}": f"transformer.resblocks.{i}.{theirs}"
               for i in range(config.text.layers) for ours, theirs in INSIDE_TEXT.items()}
    places |= {f"{place}.{ours}": f"{there}.{theirs}" for place, there in list(places.items())
               for ours, theirs in (INSIDE_ATTENTION if place.endswith("attention") else INSIDE_BLOCK).items()
               if place.endswith(("attention", "block", "resample"))}
    names = {"text.positions": "positional_embedding", "text.padding": "padding_embedding"}
    with torch.device("meta"):
        ours = unet.UNet(config).state_dict()
    for key in ours:
        place, _, part = key.rpartition(".")
        if key not in names:
            names[key] = f"{places[place]}.{part}"
    return names


def config_from_shapes(shapes):
    """The sizes of a released U-Net, read off its keys and shapes {key: shape}."""
    def numbers(pattern):
        return sorted({int(m[1]) for m in map(re.compile(pattern).match, shapes) if m})

    doubling = numbers(r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight")     # one a level but the last
    steps = len(numbers(r"output_blocks\.(\d+)\.")) // (len(doubling) + 1)      # blocks + 1
    levels, channels = len(doubling) + 1, shapes["input_blocks.0.0.weight"][0]
    widths = [shapes[f"output_blocks.{i * steps}.0.in_layers.2.weight"][0] for i in reversed(range(levels))]
    attending = {levels - 1 - n // steps for n in numbers(r"output_blocks\.(\d+)\.1\.qkv\.weight")}
    vocab, width = shapes["token_embedding.weight"]
    text = unet.TextConfig(vocab, shapes["positional_embedding"][0], width,
                           len(numbers(r"transformer\.resblocks\.(\d+)\.")), max(1, width // 64))
    return unet.UNetConfig(channels, tuple(w // channels for w in widths), steps - 1, tuple(sorted(attending)),
                           shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0], text=text)


def load_openai(state_dict):
    """A released checkpoint's weights as a denoiser, in eval mode.

    state_dict  of base.pt, upsample.pt, base_inpaint.pt or upsample_inpaint.pt, in 32 or 16 bits
    returns     a denoiser taking tokens, mask and, by kind, low_res, inpaint_image, inpaint_mask
    Every key must be used and every shape must fit: ValueError otherwise.
    """
    with refusing("a released GLIDE U-Net"):
        config = config_from_shapes({key: tuple(value.shape) for key, value in state_dict.items()})
    model = unet.UNet(config)
    take_over(model, state_dict, released_names(config), "a released GLIDE U-Net")
    return upsample.denoiser_of(model.eval(), config)


@contextmanager
def refusing(what):
    """Reading sizes off the shapes of another model fails in many ways; to the user they are all one."""
    try:
        yield
    except (LookupError, ValueError, ZeroDivisionError, AttributeError, TypeError, RuntimeError) as e:
        raise ValueError(f"these are not the weights of {what} ({e!r})"[:300]) from None


def take_over(model, state_dict, names, what, heads=1):
    """Give a model the released weights: {our key: theirs, or several of theirs}. All or ValueError."""
    names = {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in names.items()}
    if odd := sorted({part for parts in names.values() for part in parts} ^ set(state_dict)):
        raise ValueError(f"{len(odd)} keys do not fit {what}, {odd[0]!r} for one")
    own, weights = model.state_dict(), {}
    for ours, parts in names.items():
        with refusing(what):
            weights[ours] = joined([state_dict[part] for part in parts], heads)
        if not weights[ours].is_floating_point() or weights[ours].shape != own[ours].shape:
            raise ValueError(f"{' and '.join(parts)}: {weights[ours].dtype} {list(weights[ours].shape)} where "
                             f"{list(own[ours].shape)} was expected")
    model.load_state_dict(weights)


def joined(parts, heads):
    """Their tensors as one of ours. Their U-Net's attention uses 1×1 convolutions over a row, [out, in, 1], where
    ours are linear layers; their CLIP keeps q, k and v apart, which lie together head by head in ours."""
    if len(parts) == 1:
        return parts[0].squeeze(-1) if parts[0].dim() == 3 else parts[0]
    return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)


def apart(value, theirs, heads):
    """The way back: {their key: tensor} of one of our tensors."""
    if isinstance(theirs, str):
        return {theirs: value[..., None] if theirs.endswith(ROW_CONVOLUTIONS) else value}
    parts = value.unflatten(0, (heads, len(theirs), -1)).unbind(1)
    return {key: part.flatten(0, 1) for key, part in zip(theirs, parts)}


def export_openai(model):
    """A U-Net's weights under the released names and in their shapes: what `load_openai` takes."""
    names = released_names(model.config)
    return {key: value for ours, ten in model.state_dict().items() for key, value in apart(ten, names[ours], 1).items()}


# Their CLIP is two files, one a tower. The first lines of the table are a tower's own, the rest both have.
INSIDE_TOWER = {
    "norm.weight": "output.ln.g", "norm.bias": "output.ln.b", "project.weight": "output.f.w", "positions": "input.w_pos"}
INSIDE_PICTURE_TOWER = {
    "time.weight": "input.w_t", "cut.weight": "input.patch_proj", "enter.weight": "input.ln.g", "enter.bias": "input.ln.b"}
INSIDE_CAPTION_TOWER = {"tokens.weight": "input.w_voc"}
INSIDE_TOWER_BLOCK = {
    "norm1.weight": "f_attn.ln.g", "norm1.bias": "f_attn.ln.b",
    "attention.qkv.weight": ("f_attn.f_q.w", "f_attn.f_k.w", "f_attn.f_v.w"),
    "attention.qkv.query_value_bias": ("f_attn.f_q.b", "f_attn.f_v.b"),
    "attention.out.weight": "f_attn.f_c.w", "attention.out.bias": "f_attn.f_c.b",
    "norm2.weight": "f_mlp.ln.g", "norm2.bias": "f_mlp.ln.b",
    "mlp.up.weight": "f_mlp.f_1.w", "mlp.up.bias": "f_mlp.f_1.b",
    "mlp.down.weight": "f_mlp.f_2.w", "mlp.down.bias": "f_mlp.f_2.b"}


def released_tower_names(tower):
    """{our key: OpenAI's, or a tuple of them} for one tower of a NoisedCLIP."""
    own = INSIDE_PICTURE_TOWER if isinstance(tower, guidance.PictureTower) else INSIDE_CAPTION_TOWER
    names = {ours: f"blocks.{theirs}" for ours, theirs in (INSIDE_TOWER | own).items()}
    for i in range(len(tower.blocks)):
        for ours, theirs in INSIDE_TOWER_BLOCK.items():
            here = f"blocks.block_{i}."
            names[f"blocks.{i}.{ours}"] = here + theirs if isinstance(theirs, str) else tuple(here + part for part in theirs)
    return names


def clip_config_from_shapes(image, text):
    """The sizes of a released noised CLIP, read off both towers' keys and shapes. A head has 64 channels."""
    layers = [len({key.split(".")[1] for key in tower if key.startswith("blocks.block_")}) for tower in (image, text)]
    (vocab, width), (timesteps, wide) = text["blocks.input.w_voc"], image["blocks.input.w_t"]
    patch, places = image["blocks.input.patch_proj"][-1], image["blocks.input.w_pos"][0] - 1
    return guidance.CLIPConfig(math.isqrt(places) * patch, patch, wide, layers[0], wide // 64,
                               transformer.TextConfig(vocab, text["blocks.input.w_pos"][0], width, layers[1], width // 64),
                               text["blocks.output.f.w"][0], timesteps)


def load_openai_clip(image_sd, text_sd):
    """The released noised CLIP, in eval mode, from the state dicts of clip_image_enc.pt and clip_text_enc.pt.

    Every key must be used and every shape must fit: ValueError otherwise.
    """
    what = "the released noised CLIP"
    with refusing(what):
        shapes = ({key: tuple(value.shape) for key, value in tower.items()} for tower in (image_sd, text_sd))
        config = clip_config_from_shapes(*shapes)
        clip = guidance.NoisedCLIP(config)
    for tower, state_dict, heads in (clip.picture, image_sd, config.heads), (clip.caption, text_sd, config.text.heads):
        take_over(tower, state_dict, released_tower_names(tower), what, heads)
    return clip.eval()


def export_openai_clip(clip):
    """A NoisedCLIP's two state dicts, picture's and text's, under the released names."""
    towers = (clip.picture, clip.config.heads), (clip.caption, clip.config.text.heads)
    return tuple({key: value for ours, ten in tower.state_dict().items()
                  for key, value in apart(ten, released_tower_names(tower)[ours], heads).items()}
                 for tower, heads in towers)


# ======================================================================================================
# The method ends here. Below: the command line.
# ======================================================================================================

def check_prompt(prompt, difficulty):
    """Raises ValueError, one line, for a prompt that these weights cannot know how to draw."""
    if not prompt.strip():
        raise ValueError('the prompt is empty; try "a red heart above a blue umbrella"')
    scene = tokenizer.Scene.parse(prompt)
    strange = [thing.noun for thing in scene.things if thing.noun not in tokenizer.EASY_NOUNS]
    if difficulty == "single" and (scene.kind != "single" or strange):
        raise ValueError(f"these weights were trained on single things only ({', '.join(tokenizer.EASY_NOUNS)}); "
                         f"{prompt!r} asks for more")


def sheet(pictures, *, width=512, gap=8):
    """Pictures uint8 [n, 3, H, W] side by side, enlarged so that pixels show as squares: a PIL image."""
    n, _, H, W = pictures.shape
    columns = min(n, 4)
    zoom = max(1, width // (W * min(columns, 2)))
    rows = -(-n // columns)
    page = Image.new("RGB", (columns * (zoom * W + gap) - gap, rows * (zoom * H + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        tile = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((zoom * W, zoom * H), Image.NEAREST)
        page.paste(tile, ((i % columns) * (zoom * W + gap), (i // columns) * (zoom * H + gap)))
    return page


def save_picture(image, path):
    """Write a PNG, whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    try:
        image.save(partial, format="PNG")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class Watch:
    """The progress line, and the predicted pictures that become the strip."""

    def __init__(self):
        self.start, self.total, self.frames = time.time(), {}, {"base": [], "upsampler": []}

    def __call__(self, stage, x0, left):
        total = self.total.setdefault(stage, left + 1)
        self.frames[stage].append(train.to_bytes(x0[0].detach().clamp(-1, 1)).cpu())
        size = "×".join(map(str, x0.shape[2:]))
        if sys.stderr.isatty():
            done = (total - left) * 24 // total
            print(f"\r{stage:<10}{size:>8}  [{'█' * done}{'·' * (24 - done)}] {total - left:>3}/{total}"
                  f"  {time.time() - self.start:5.1f} s", end="" if left else "\n", file=sys.stderr, flush=True)
        elif not left:
            print(f"{stage}: {total} steps at {size}, {time.time() - self.start:.1f} s", file=sys.stderr)

    def strip(self, count=8):
        """The first picture on its way: predicted x̂_0 of the base model, then of the upsampler."""
        frames = []
        for stage in self.frames.values():
            places = torch.linspace(0, len(stage) - 1, min(count, len(stage))).round().long().tolist()
            frames += [F.interpolate(stage[i][None].float(), size=128)[0].to(torch.uint8) for i in places]
        page = Image.new("RGB", (count * 132 - 4, 2 * 132 - 4), "white")
        for i, frame in enumerate(frames):
            row, column = divmod(i, count) if len(frames) > count else (0, i)
            page.paste(Image.fromarray(frame.permute(1, 2, 0).numpy()), (column * 132, row * 132))
        return page


def arguments(argv=None):
    parser = argparse.ArgumentParser(description="A prompt becomes a picture.", allow_abbrev=False,
                                     epilog=f"Its language: {tokenizer.vocabulary()}")
    add = parser.add_argument
    add("prompt", nargs="?", help='such as "a red heart above a blue umbrella"')
    add("--n", type=train.positive, help="how many pictures (default 1; with --measure captions of each kind, 300)")
    add("--seed", type=train.seed, help="the same seed gives the same pictures (default: another one each time)")
    add("--scale", type=finite, default=3.0, help="guidance: 1 is the model as trained, more insists (default 3)")
    add("--steps", default="25", help="of the base model: 25, 100, 10,10,3,2,2, ddim50 (default 25)")
    add("--sampler", default="ddim", choices=("ddim", "ddpm"))
    add("--out", type=Path, help="where the picture goes (default: outputs/PROMPT-SEED.png)")
    add("--weights", type=Path, default=WEIGHTS, help="folder of base.pt, upsampler.pt and judges")
    add("--measure", action="store_true", help="no picture: how many captions come out right")
    add("--device", type=train.device, default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def finite(text):
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return float(text)


def target(args):
    """Where the picture goes; refuses early what could not be written, and what would overwrite."""
    name = re.sub(r"[^a-z0-9]+", "-", args.prompt.lower()).strip("-")[:80]
    out = args.out or OUTPUTS / f"{name}-{args.seed}.png"
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} must end in .png")
    for path in (out, strip_of(out)):
        if args.out and path.exists():
            raise ValueError(f"{path} exists already; give another --out, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    probe = out.with_name(out.name + ".tmp")
    probe.touch()   # raises OSError where the folder cannot be written
    probe.unlink()
    return out


def strip_of(out):
    """Where the steps on the way to a picture go."""
    return out.with_name(out.stem + "-steps.png")


def load_both(folder, device):
    """The base model and the upsampler of a folder; ValueError for one in the other's place."""
    models = []
    for name, channels in ("base", 3), ("upsampler", 6):
        models.append(Model.load(folder / f"{name}.pt", device))
        if (got := models[-1].config.in_channels) != channels:
            raise ValueError(f"{folder / name}.pt takes {got} input channels; the {name}'s are {channels}")
    return models


def sample(args):
    base, upsampler = load_both(args.weights, args.device)
    check_prompt(args.prompt, base.difficulty)
    diffusion.respace(base.process.steps, args.steps)   # an impossible walk is refused before any work
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(10 ** 6)
    out, watch = target(args), Watch()
    print(f"{args.prompt!r}, seed {args.seed}, scale {args.scale:g}, {args.sampler} {args.steps}")
    pictures = generate(args.prompt, base=base, upsampler=upsampler, n=args.n or 1, seed=args.seed, watch=watch,
                        scale=args.scale, steps=args.steps, sampler=args.sampler)
    save_picture(sheet(pictures), out)
    save_picture(watch.strip(), strip_of(out))
    print(f"wrote {out}\n      {strip_of(out)}: what the model believed on the way")


def measure(args):
    """Caption accuracy by kind beside the judge's ceiling, and the upsampler beside bicubic interpolation."""
    base, upsampler = load_both(args.weights, args.device)
    judges = {size: train.load_judge(args.weights / f"judge-{size}.pt") for size in (base.size, upsampler.size)}
    n, seed = args.n or 300, args.seed or 0
    kinds = ("easy single", "held out") if base.difficulty == "single" else train.KINDS
    print(f"base model, {base.size} pixels: scale {args.scale:g}, {args.sampler} {args.steps}, seed {seed}, n {n} a kind")
    print(f"{'kind':<13}{'right':>7}   {'95% interval':<17}{'ceiling':>8}{'share of it':>13}")
    for kind in kinds:
        right, n = caption_accuracy(base, judges[base.size], kind, n, seed=seed, scale=args.scale,
                                    steps=args.steps, sampler=args.sampler)
        (low, high), (real, of) = train.wilson(right, n), judges[base.size].ceiling[kind]
        print(f"{kind:<13}{right / n:7.1%}   {low:.1%} to {high:<7.1%}  {real / of:8.1%}{right / n / (real / of):13.1%}")
    kind, count = kinds[0], min(n, 200)
    print(f"\nupsampler, {upsampler.size} pixels, true small pictures of kind {kind!r}, n {count}")
    for name, r in enlarging(upsampler, judges[upsampler.size], kind, count, seed=seed).items():
        low, high = train.wilson(r["right"] * count, count)
        print(f"{name:<10} colour off by {r['colour']:.4f}, PSNR {r['psnr']:.1f} dB, nouns read right"
              f" {r['right']:.1%} ({low:.1%} to {high:.1%})")


def main(argv=None):
    args = arguments(argv)
    try:
        if args.prompt is None and not args.measure:
            raise ValueError('what shall it draw? python 09_sample.py "a red heart above a blue umbrella"')
        measure(args) if args.measure else sample(args)
    except (OSError, ValueError) as e:
        print(f"09_sample.py: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
