r"""
12 · Someone else's weights, in our network.

OpenAI published GLIDE (filtered) as plain dictionaries, {name: tensor}. A name says where a layer stood in OpenAI's
code, and nothing says how large the network is. Reading such a file means answering three questions:

    base.pt                               how large? ─────────► the shapes tell: UNetConfig(192, (1, 2, 3, 4), 3, …)
    "input_blocks.5.1.qkv.weight": […] ─► called what here? ──► a table: down.1.blocks.0.attention.qkv.weight
                                          laid out how? ──────► [out, in, 1] becomes [out, in]
                                                                    │
    ~/.cache/glide-readable/filtered/base.pt ◄─ our weight file ◄───┘   which 09 draws with and 08 fine-tunes

The table works both ways, so a model that was fine-tuned here can be exported and then runs wherever the released
files run. It adds to 09: weights that no laptop could have trained. It leaves out every other publisher's format. Every
key must be used and every shape must fit: a weight that is skipped leaves a network that draws, only worse than it
should, and nobody finds out why.

Sources: GLIDE, Nichol et al. 2021, arXiv 2112.10741, and its code, github.com/openai/glide-text2im; resuming a
transfer: RFC 9110, section 14.

    python lessons/12_released.py                  about four seconds, no network: the released base model part by part,
                                                   what shapes tell, what is refused, there and back;
                                                   outputs/12_released.png: both sets of names
    python lessons/12_released.py fetch            base model and upsampler: 3.1 GB to fetch, then 1.6 GB of weight
                                                   files; also: fetch inpaint, fetch clip, fetch all; --dry-run
    python lessons/12_released.py convert FROM TO  the same for files that you have already: about a minute
    python lessons/12_released.py export FROM TO   the way back
    python lessons/12_released.py random FOLDER    random weights of the released size: would it run on this machine?
"""
import argparse
import hashlib
import os
import re
import sys
import urllib.request
import zipfile
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # the numbered files, wherever this one is started
tokenizer = import_module("01_tokenizer")
unet = import_module("03_unet")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")
upsample = import_module("07_upsample")


# --- What was released -------------------------------------------------------------------------------

# Our weight file KIND.pt is made of these files of OpenAI's: the merge list of its tokenizer, then its weights.
KINDS = {"base": ("vocab.bpe", "base.pt"), "upsampler": ("vocab.bpe", "upsample.pt"),
         "inpaint": ("vocab.bpe", "base_inpaint.pt"), "inpaint-upsampler": ("vocab.bpe", "upsample_inpaint.pt"),
         "clip": ("bpe_simple_vocab_16e6.txt.gz", "clip_image_enc.pt", "clip_text_enc.pt")}
GROUPS = {"base": ("base", "upsampler"), "inpaint": ("inpaint", "inpaint-upsampler"), "clip": ("clip",), "all": KINDS}

AZURE = "https://openaipublic.blob.core.windows.net"
ADDRESSES = {name: f"{AZURE}/diffusion/dec-2021/{name}" for names in KINDS.values() for name in names} | {
    "vocab.bpe": f"{AZURE}/gpt-2/encodings/main/vocab.bpe",
    "bpe_simple_vocab_16e6.txt.gz": "https://openaipublic.azureedge.net/clip/bpe_simple_vocab_16e6.txt.gz"}
# Nobody published hashes of the weights: of those, `read_released` checks the keys, the shapes and the checksums.
SHA256 = {"vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
          "bpe_simple_vocab_16e6.txt.gz": "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"}

# Fetched files are kept in CACHE and may be deleted once they are converted. `09_sample.py --preset filtered` looks for
# weight files in its folder "filtered".
CACHE = Path(os.environ.get("GLIDE_CACHE") or "~/.cache/glide-readable").expanduser()


def of_kind(table, kind, preset="filtered"):
    """A kind's entry in a table of named sizes: upsamplers have rows of their own."""
    return table[f"{preset}-upsampler" if "upsampler" in kind else preset]


def config_of(kind, preset="filtered"):
    """The sizes of a kind of model. Those for inpainting have four more input channels (06)."""
    config = of_kind(guidance.CLIP if kind == "clip" else unet.UNET, kind, preset)
    return replace(config, in_channels=config.in_channels + 4) if kind.startswith("inpaint") else config


def blank(config):
    """The U-Net or noised CLIP of a config on the meta device: names and shapes that take no memory."""
    with torch.device("meta"):
        return guidance.NoisedCLIP(config) if isinstance(config, guidance.CLIPConfig) else unet.UNet(config)


def parts_of(model):
    """What OpenAI keeps in one file each: a U-Net, or the two encoders of a noised CLIP."""
    return (model.image_encoder, model.caption_encoder) if isinstance(model, guidance.NoisedCLIP) else (model,)


# --- One table of names, both ways -------------------------------------------------------------------

# Ours on the left, OpenAI's on the right. LAYERS is what a network has once: first a U-Net's, then those of CLIP's
# encoders. The other tables are what is inside a block; where the blocks stand depends on the sizes, and `blocks_of`
# counts it out. A U-Net's weights and biases are called what torch calls them. CLIP's encoders were written in another
# style: w and b, or g and b in a norm. They keep q, k and v in tensors of their own, which are one of ours (see
# `to_ours`); keys have no bias (02).
LAYERS = {"time.0": "time_embed.0", "text.tokens": "token_embedding", "pool": "transformer_proj", "output.0": "out.0",
          "text.norm": "final_ln", "time.2": "time_embed.2", "output.2": "out.2", "input_conv": "input_blocks.0.0",
          "text.padding": "padding_embedding", "text.positions": "positional_embedding", "project": "blocks.output.f",
          "time.weight": "blocks.input.w_t", "tokens.weight": "blocks.input.w_voc", "positions": "blocks.input.w_pos",
          "input_norm": "blocks.input.ln", "norm": "blocks.output.ln", "patch_embed.weight": "blocks.input.patch_proj"}
IN_UNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "scale_shift": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "skip": "skip_connection",                                   # in a residual block
           "norm": "norm", "qkv": "qkv", "text_kv": "encoder_kv", "out": "proj_out"}             # in attention
IN_TEXT = {"norm1": "ln_1", "attention.qkv": "attn.c_qkv", "attention.out": "attn.c_proj",
           "norm2": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
IN_CLIP = {"norm1": "f_attn.ln", "attention.qkv.weight": "f_attn.f_q.w f_attn.f_k.w f_attn.f_v.w",
           "attention.qkv.query_value_bias": "f_attn.f_q.b f_attn.f_v.b", "attention.out": "f_attn.f_c",
           "norm2": "f_mlp.ln", "mlp.up": "f_mlp.f_1", "mlp.down": "f_mlp.f_2"}
ROW_CONVOLUTIONS = (".qkv.weight", ".encoder_kv.weight", ".proj_out.weight")   # theirs are [out, in, 1]
HEAD = 64   # channels a head in every released network; no shape tells


def blocks_of(model):
    """Yields (our place, OpenAI's, what is inside) for every block. Theirs are numbered through, ours by level.

    A residual block begins a number. Attention comes behind it in the same one, and so does a doubling block, but not a
    halving one. In the middle each has a number of its own.
    """
    n, m = {"down": 0, "middle": -1, "up": -1}, 0           # input_blocks.0 is our input_conv
    for place, module in model.named_modules():
        way, last = place.split(".")[0], place.split(".")[-1]
        if isinstance(module, unet.transformer.Block):
            theirs, inside = ("transformer.resblocks.", IN_TEXT) if way == "text" else ("blocks.block_", IN_CLIP)
            yield place, f"{theirs}{last}", inside
        elif isinstance(module, (unet.ResBlock, unet.TextAttention)):
            begins = way == "middle" or last == "res" or (way, last) == ("down", "resample")
            n[way], m = (n[way] + 1, 0) if begins else (n[way], m + 1)
            theirs = {"down": "input_blocks.{}.{}", "middle": "middle_block.{}", "up": "output_blocks.{}.{}"}[way]
            yield place, theirs.format(n[way], m), IN_UNET


def names_of(model):
    """{our key: list of OpenAI's keys, mostly of one} for all weights of a U-Net or of an encoder of a noised CLIP."""
    layers, names = dict(LAYERS), {}
    for place, there, inside in blocks_of(model):
        for ours, theirs in inside.items():
            layers[f"{place}.{ours}"] = " ".join(f"{there}.{name}" for name in theirs.split())
    for key in model.state_dict():
        layer, _, last = key.rpartition(".")
        if key not in layers and layers[layer].startswith("blocks."):           # one of CLIP's
            last = "b" if last == "bias" else "g" if layers[layer].endswith("ln") else "w"
        names[key] = layers.get(key, f"{layers.get(layer)}.{last}").split()
    return names


def to_ours(parts):
    """Their tensors as one of ours.

    Their U-Net's attention uses 1×1 convolutions over a row of places, [out, in, 1], where ours are linear layers.
    Where they keep q, k and v apart, ours holds them head by head: the first 64 rows of q, of k, of v, then the next.
    """
    if len(parts) == 1:
        return parts[0].squeeze(-1) if parts[0].dim() == 3 else parts[0]
    return torch.stack([part.unflatten(0, (-1, HEAD)) for part in parts], dim=1).flatten(0, 2)


def to_openai(value, theirs):
    """The way back: {their key: tensor} of one of our tensors."""
    if len(theirs) == 1:
        return {theirs[0]: value[..., None] if theirs[0].endswith(ROW_CONVOLUTIONS) else value}
    # [heads · 3 · 64, …] becomes three times [heads · 64, …]
    return {key: part.flatten(0, 1) for key, part in zip(theirs, value.unflatten(0, (-1, len(theirs), HEAD)).unbind(1))}


# --- Their state dicts -------------------------------------------------------------------------------

# The network is built on the meta device, from sizes that the file's own shapes tell, and then given the file's
# tensors: at no time are there two copies of 400 million numbers in memory.
def count(pattern, weights):
    """How many different strings match in the keys of a state dict."""
    return len(set(re.findall(pattern, "\n".join(weights), re.M)))


def unet_config(weights):
    """The UNetConfig of a released U-Net, read off the keys and shapes of its state dict.

    The way up is read: there each level has the same number of blocks, and all levels but the last end by doubling.
    """
    levels = 1 + count(r"^output_blocks\.\d+\.[12]\.in_layers\.0\.weight", weights)
    steps = count(r"^output_blocks\.\d+", weights) // levels                       # blocks + 1
    firsts = [f"output_blocks.{i * steps}" for i in reversed(range(levels))]       # of each level, finest first
    channels, inputs = weights["input_blocks.0.0.weight"].shape[:2]
    multipliers = tuple(len(weights[f"{first}.0.in_layers.2.weight"]) // channels for first in firsts)
    attending = tuple(i for i, first in enumerate(firsts) if f"{first}.1.qkv.weight" in weights)
    (vocab, width), context = weights["token_embedding.weight"].shape, len(weights["positional_embedding"])
    text = unet.TextConfig(vocab, context, width, count(r"^transformer\.resblocks\.\d+", weights), width // HEAD)
    return unet.UNetConfig(channels, multipliers, steps - 1, attending, inputs, len(weights["out.2.weight"]), text=text)


def clip_config(image, text):
    """The CLIPConfig of a released noised CLIP, read off the keys and shapes of its two state dicts."""
    (vocab, narrow), (timesteps, wide) = text["blocks.input.w_voc"].shape, image["blocks.input.w_t"].shape
    patch, places = image["blocks.input.patch_proj"].shape[-1], len(image["blocks.input.w_pos"]) - 1
    words = unet.TextConfig(vocab, len(text["blocks.input.w_pos"]), narrow, count(r"block_\d+", text), narrow // HEAD)
    return guidance.CLIPConfig(round(places ** 0.5) * patch, patch, wide, count(r"block_\d+", image), wide // HEAD,
                               words, len(text["blocks.output.f.w"]), timesteps)


def one_line(error):
    """An error's first sentence: torch may say a page, and advise what is unsafe with a file from strangers."""
    return " ".join(str(error).split()).split(". ")[0][:400]


def load_renamed(part, sd):
    """Give a U-Net or encoder on the meta device the weights of a state dict of OpenAI's, in float32.

    The names cover all of the part's keys, so comparing them with the file's, both ways, is the whole check; torch
    compares the shapes. assign=True, because there is no memory that could be copied into.
    """
    names = names_of(part)
    if odd := {key for theirs in names.values() for key in theirs} ^ sd.keys():
        raise ValueError(f"{min(odd)!r} is missing or unknown, one of {len(odd)} such keys")
    weights = {ours: to_ours([sd[key] for key in theirs]).float() for ours, theirs in names.items()}
    part.load_state_dict(weights, assign=True)


def assemble(what, read_config, *state_dicts):
    """The model of one or two state dicts of OpenAI's, in eval mode. ValueError if they are not those of `what`.

    Another model fails in many ways here, from a key that no size can be read off to shapes that torch refuses.
    """
    try:
        model = blank(read_config(*state_dicts))
        for part, sd in zip(parts_of(model), state_dicts):
            load_renamed(part, sd)
        return model.eval()
    except Exception as e:
        raise ValueError(f"these are not the weights of {what}: {one_line(e)}") from None


def load_openai(state_dict):
    """A released checkpoint's weights as a denoiser, in eval mode.

    state_dict  of base.pt, upsample.pt, base_inpaint.pt or upsample_inpaint.pt, in 32 or 16 bits
    returns     a denoiser taking tokens, mask and, by kind, low_res, inpaint_image, inpaint_mask
    Every key must be used and every shape must fit: ValueError otherwise.
    """
    network = assemble("a released GLIDE U-Net", unet_config, state_dict)
    return upsample.denoiser_of(network, network.config)


def load_openai_clip(image_sd, text_sd):
    """The released NoisedCLIP, in eval mode, from the state dicts of clip_image_enc.pt and clip_text_enc.pt.

    Every key must be used and every shape must fit: ValueError otherwise.
    """
    return assemble("the released noised CLIP", clip_config, image_sd, text_sd)


def export_openai(model):
    """The weights of a U-Net, or of one encoder of a noised CLIP, under OpenAI's names and in their shapes."""
    names = names_of(model)
    return {key: part for ours, value in model.state_dict().items()
            for key, part in to_openai(value, names[ours]).items()}


def export_openai_clip(clip):
    """A NoisedCLIP's two state dicts, the images' and the captions', as `load_openai_clip` takes them."""
    return tuple(map(export_openai, parts_of(clip)))


# --- Fetching ----------------------------------------------------------------------------------------

# While a file comes it is called NAME.part. It takes its name when all announced bytes are there and have been checked.
# A transfer that was cut leaves its part, and the next one asks for the rest: the server answers 206 and says from
# where on, or 200 and sends all of it.
def read_released(path):
    """What a released file holds: a tokenizer, or a state dict. ValueError unless it is the file of that name.

    torch's files are zip archives with a checksum of each tensor, which torch does not look at. It matters: a part that
    was continued from another version of the file would have the right keys and shapes, and wrong numbers.
    """
    name = path.name.removesuffix(".part")
    kind = next(kind for kind, names in KINDS.items() if name in names)
    try:
        if name in SHA256:
            if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[name]:
                raise ValueError("its SHA-256 is another")
            return (tokenizer.CLIPTokenizer.from_file if kind == "clip" else tokenizer.BPETokenizer.from_gpt2)(path)
        if zipfile.ZipFile(path).testzip():
            raise ValueError("its checksums are wrong")
        sd = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        load_renamed(parts_of(blank(config_of(kind)))[KINDS[kind].index(name) - 1], sd)
        return sd
    except Exception as e:
        raise ValueError(f"{path} is not OpenAI's {name} ({one_line(e)}), which is at {ADDRESSES[name]}") from None


def fetch(name, folder, mirror=None, timeout=30):
    """One released file into a folder. ValueError, a sentence for the user, for whatever goes wrong.

    mirror   the address of another folder that has the file
    timeout  seconds of silence after which a server is given up; a slow one that goes on sending is not
    """
    part, url = folder / f"{name}.part", f"{mirror.rstrip('/')}/{name}" if mirror else ADDRESSES[name]
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            rest = re.fullmatch(rf"bytes {have}-\d+/(\d+)", reply.headers.get("Content-Range", ""))
            total = int(rest[1] if rest else reply.headers.get("Content-Length", 0))
            if "html" in reply.headers.get_content_type() or reply.url[:5] < url[:5]:   # "http:" < "https"
                raise OSError(f"{reply.url} is a web page, or not encrypted")
            with open(part, "ab" if rest else "wb") as file:
                while piece := reply.read(1 << 20):
                    file.write(piece)
                    print(f"{name}: {file.tell() / 1e6:,.0f} of {total / 1e6:,.0f} MB", end="\r", file=sys.stderr)
        if part.stat().st_size != total:                         # a cut looks like an end: only the size tells
            raise OSError(f"{part.stat().st_size:,} of {total:,} announced bytes came")
        read_released(part)
    except Exception as e:
        if isinstance(e, ValueError) or getattr(e, "code", None) == 416:   # something else, or longer than the file
            part.unlink(missing_ok=True)
        raise ValueError(f"no {name} from {url} ({one_line(e)}): check network and disk, and try again") from None
    part.replace(folder / name)                                  # in one step: nobody sees half a file of that name


# --- Between their files and ours --------------------------------------------------------------------

# Theirs hold weights and nothing else; ours also say what is needed to draw with them (03). So converting adds the
# schedule, the size of the images and the tokenizer, and exporting refuses what their files cannot say.
def lacking(kinds, folder):
    """Those kinds whose weight file is not in the folder yet: what is there is left alone."""
    return [kind for kind in kinds if not (folder / f"{kind}.pt").exists()]


def save(path, network, preset, **more):
    """Write a model of a preset's size as our weight file KIND.pt."""
    size = guidance.CLIP[preset].size * (upsample.FACTOR if "upsampler" in path.stem else 1)
    process = asdict(of_kind(diffusion.DIFFUSION, path.stem, preset))
    unet.save_weights(path, network, size=size, diffusion=process, world="", **more)
    print(f"{path}: {unet.parameters(network):,} parameters", flush=True)


def convert(args):
    """Make weight files of those files of OpenAI's that a folder holds."""
    kinds = [kind for kind, names in KINDS.items() if any((args.source / name).exists() for name in names[1:])]
    if not kinds:
        raise ValueError(f"{args.source} holds none of OpenAI's files: base.pt, upsample.pt, base_inpaint.pt, …")
    for kind in lacking(kinds, args.folder):
        words, *states = [read_released(args.source / name) for name in KINDS[kind]]
        network = assemble(f"OpenAI's {kind}", clip_config if kind == "clip" else unet_config, *states)
        save(args.folder / f"{kind}.pt", network, "filtered", tokenizer=words.merges, verbatim=True,
             vocabulary="clip" if kind == "clip" else "gpt2", made={"from": [ADDRESSES[name] for name in KINDS[kind]]})


def fetch_group(args):
    """Fetch what a folder of weight files lacks of a group of models, and convert it."""
    kinds, args.source = lacking(GROUPS[args.group], args.folder), CACHE
    print(f"{args.folder} lacks {', '.join(kinds) or 'nothing'}; from {args.mirror or AZURE} into {CACHE}:")
    for kind in kinds:
        print(f"   {4 * unet.parameters(blank(config_of(kind))) / 1e6:>7,.0f} MB  {', '.join(KINDS[kind])}", flush=True)
    if kinds and not args.dry_run:
        for name in dict.fromkeys(name for kind in kinds for name in KINDS[kind] if not (CACHE / name).exists()):
            fetch(name, CACHE, args.mirror)
        convert(args)


def export(args):
    """Write weight files as files of OpenAI's layout."""
    paths = [args.source / f"{kind}.pt" for kind in KINDS if (args.source / f"{kind}.pt").is_file()]
    there = [name for path in paths for name in KINDS[path.stem][1:] if (args.folder / name).exists()]
    if there or not paths:
        raise ValueError(f"{args.folder} holds {there[0]} already" if there else f"{args.source} holds no base.pt, …")
    for path in paths:                   # all are looked at before the first is written
        if unet.read_weights(path).get("diffusion") != asdict(of_kind(diffusion.DIFFUSION, path.stem)):
            raise ValueError(f"{path} has another schedule, or predicts v, which would be taken for noise there")
    for path in paths:
        model = (guidance.NoisedCLIP if path.stem == "clip" else unet.UNet).load(path)
        for name, part in zip(KINDS[path.stem][1:], parts_of(model)):
            with unet.atomic_write(args.folder / name) as partial:
                torch.save(export_openai(part), partial)


def random_weights(args):
    """Write weight files that know nothing: to see, before gigabytes are fetched, whether a size runs here."""
    for kind in lacking(args.kind, args.folder):
        network = blank(config_of(kind, args.preset)).half().to_empty(device="cpu")
        for p in network.parameters():       # none stays at zero: a fresh network answers zero (03)
            torch.nn.init.normal_(p, std=0.02)
        save(args.folder / f"{kind}.pt", network, args.preset, tokenizer=[], verbatim=False, made={"command": "random"})


# --- The demonstration and the command line ----------------------------------------------------------

def show_names(network, path):
    """A U-Net's table of names, summed up: printed, and as a bar for each part between our name and theirs."""
    import matplotlib.figure                     # here, so that importing this file stays quick
    matplotlib.rcParams["font.size"] = 16
    axes, rows, names = matplotlib.figure.Figure((16, 8), layout="constrained").subplots(), {}, names_of(network)
    for ours, value in network.state_dict().items():
        part, there = re.match(r"(down|up)\.\d|\w+", ours)[0], re.match(r"\w+_blocks\.\d+|\w+", names[ours][0])[0]
        rows.setdefault(part, []).append((there, value.numel()))
    for part, row in rows.items():
        label, count = " … ".join(dict.fromkeys((row[0][0], row[-1][0]))), sum(number for _, number in row)
        print(f"   {part:<12}{count:>13,}   {label}")
        axes.barh(part, count, color="#e67e22" if "_block" in label else "#2980b9")
        axes.text(count + 5e5, part, f"{count:,}   {label}", va="center")
    axes.set(title="Our names … and OpenAI's", xlim=(0, 1.4e8), ylim=(len(rows) - 0.5, -0.5), xticks=[], frame_on=False)
    path.parent.mkdir(exist_ok=True)
    axes.figure.savefig(path, dpi=100)


def demonstrate(args):
    """The four sections and the picture."""
    print("\n1. One network, two sets of names: the released base model, ours on the left")
    show_names(blank(config_of("base")), unet.OUTPUTS / "12_released.png")
    state = {key: torch.randn(value.shape) for key, value in export_openai(blank(unet.UNET["tiny"])).items()}
    print(f"\n2. How large is a network? The file does not say, its shapes do\n   {unet_config(state)}")
    try:
        load_openai(state | {"surprise": torch.zeros(1)})
    except ValueError as e:
        print(f"\n3. What does not fit is refused, here one key too many\n   {e}")
    same = [torch.equal(state[key], value) for key, value in export_openai(load_openai(state)).items()]
    print(f"\n4. There and back: of {len(state)} tensors, {sum(same)} return under the same name with the same bits")
    print("\nThe picture is outputs/12_released.png, the lesson lessons/12_released.ipynb. Next: lessons/13_cost.py")


COMMANDS = {"fetch": fetch_group, "convert": convert, "export": export, "random": random_weights, None: demonstrate}


def main(argv=None):
    """The command line. -> exit status: None, 2 for what a person can mend (one line on stderr), 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="12_released.py", description="OpenAI's weights, there and back")
    add = parser.add_subparsers(dest="command").add_parser
    fetching, converting, exporting, inventing = [add(name, help=COMMANDS[name].__doc__) for name in [*COMMANDS][:4]]
    for command, path in ((fetching, "--folder"), (converting, "source"), (converting, "folder"), (exporting, "source"),
                          (exporting, "folder"), (inventing, "folder")):
        command.add_argument(path, type=lambda text: Path(text).expanduser(), default=CACHE / "filtered")
    fetching.add_argument("group", nargs="?", default="base", choices=GROUPS)
    fetching.add_argument("--mirror", help="address of a folder that holds the same files")
    fetching.add_argument("--dry-run", action="store_true", help="only say what would be fetched")
    inventing.add_argument("--preset", choices=guidance.CLIP, default="filtered")
    inventing.add_argument("--kind", nargs="+", choices=KINDS, default=GROUPS["base"])
    args = parser.parse_args(argv)
    try:
        COMMANDS[args.command](args)
    except (OSError, ValueError, KeyboardInterrupt) as e:
        print(f"12_released.py: {str(e) or 'stopped; the same command goes on from here'}", file=sys.stderr)
        return 130 if isinstance(e, KeyboardInterrupt) else 2


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")     # a console may lack a character of a path or a bar
    sys.exit(main())
