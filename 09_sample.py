import itertools
import re
from importlib import import_module
import torch
unet = import_module("03_unet")
upsample = import_module("07_upsample")

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

    state_dict  of base.pt, upsample.pt, base_inpaint.pt or upsample_inpaint.pt
    returns     a denoiser taking tokens, mask and, by kind, low_res, inpaint_image, inpaint_mask
    Every key must be used and every shape must fit: ValueError otherwise.
    """
    try:
        config = config_from_shapes({key: tuple(value.shape) for key, value in state_dict.items()})
    except (KeyError, ValueError, ZeroDivisionError, AttributeError, TypeError) as e:
        raise ValueError(f"these are not the weights of a released GLIDE U-Net ({e!r})") from None
    names = released_names(config)
    if set(names.values()) != set(state_dict):
        odd = sorted(set(names.values()) ^ set(state_dict))
        raise ValueError(f"{len(odd)} keys do not fit a released GLIDE U-Net, {odd[0]!r} for one")
    model = unet.UNet(config)
    own = model.state_dict()
    # OpenAI's attention uses 1×1 convolutions over a row: [out, in, 1]; ours are linear layers: [out, in].
    weights = {ours: state_dict[theirs].squeeze(-1) if state_dict[theirs].dim() == 3 else state_dict[theirs]
               for ours, theirs in names.items()}
    for ours, value in weights.items():
        if value.shape != own[ours].shape:
            raise ValueError(f"{names[ours]} is {list(value.shape)} where {list(own[ours].shape)} was expected")
    model.load_state_dict(weights)
    return upsample.denoiser_of(model.eval(), config)
