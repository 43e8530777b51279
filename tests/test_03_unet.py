"""The U-Net: its pieces by hand, its wiring with random weights, sizes, weight files, and the released answers."""
from dataclasses import replace
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import formula
import small

unet, diffusion = import_module("03_unet"), import_module("04_diffusion")
T = torch.tensor([0, 500, 999])


def random_unet(name="tiny", **changes):
    """A network of a named size in eval mode, with random weights: a fresh one answers zero, whatever its wiring."""
    return small.randomize(unet.UNet(replace(unet.UNET[name], **changes))).eval()


def captions(batch=3):
    """Random tokens: a full caption, one of five tokens, an empty one."""
    g = torch.Generator().manual_seed(1)
    mask = torch.arange(20)[None] < torch.tensor([20, 5, 0])[:batch, None]
    return {"tokens": torch.randint(0, 500, (batch, 20), generator=g), "mask": mask}


# --- Pieces ---

def test_timestep_embedding_is_cosines_then_sines():
    row = unet.timestep_embedding(torch.tensor([3]), 8)[0]
    expected = torch.tensor([3 * 10000 ** (-i / 4) for i in range(4)])
    assert torch.allclose(row, torch.cat([expected.cos(), expected.sin()]), atol=1e-6), "cos, then sin, of all angles"


def test_a_fresh_network_answers_zero():
    network = unet.UNet(unet.UNET["tiny"])
    assert network(torch.randn(3, 3, 16, 16), T, **captions()).abs().max() == 0, "the last convolution starts at 0"


def test_a_fresh_block_is_the_identity():
    x = torch.randn(3, 64, 6, 10)
    assert torch.equal(unet.ResBlock(64, 64, 32)(x, torch.randn(3, 32)), x), "conv2 starts at zero: x + 0 is x"


def test_adagn_is_one_plus_scale_times_norm_plus_shift():
    """The block written out in float64."""
    torch.manual_seed(0)
    block = unet.ResBlock(64, 96, 32).double()
    torch.nn.init.normal_(block.conv2.weight, std=0.05)
    x, emb = torch.randn(3, 64, 6, 10).double(), torch.randn(3, 32).double()
    h = F.conv2d(F.silu(F.group_norm(x, 32, eps=1e-5)), block.conv1.weight, block.conv1.bias, padding=1)
    scale, shift = (emb @ block.scale_shift.weight.T + block.scale_shift.bias)[..., None, None].chunk(2, dim=1)
    h = F.silu((1 + scale) * F.group_norm(h, 32, eps=1e-5) + shift)
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    expected = F.conv2d(x, block.skip.weight, block.skip.bias) + h
    assert torch.allclose(block(x, emb), expected, atol=1e-10), "time and caption scale by 1 + s, and shift, the norm"


def test_resampling_halves_by_means_and_doubles_by_repetition():
    x, emb = torch.arange(16.0).view(1, 1, 4, 4).repeat(1, 32, 1, 1), torch.zeros(1, 8)
    down, up = (unet.ResBlock(32, 32, 8, resample=way)(x, emb)[0, 0] for way in ("down", "up"))
    assert torch.equal(down, torch.tensor([[2.5, 4.5], [10.5, 12.5]])), "each 2×2 square becomes its mean"
    assert torch.equal(up, x[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1)), "each pixel becomes four"


# --- Wiring ---

@pytest.mark.parametrize("what", ["x", "t", "tokens", "mask"])
def test_every_input_reaches_the_answer(what):
    network, x, t, cond = random_unet(), torch.randn(3, 3, 16, 16), T.clone(), captions()
    with torch.no_grad():
        before = network(x, t, **cond)
        x, t = x + 0.1 * (what == "x"), t + (what == "t")
        cond["tokens"] = (cond["tokens"] + (what == "tokens")) % 500
        cond["mask"] = ~cond["mask"] if what == "mask" else cond["mask"]
        changed = (network(x, t, **cond) - before).abs().flatten(1).amax(1) > 1e-5
    expected = [True, True, what != "tokens"]
    assert changed.tolist() == expected, f"changing {what} must change all answers, but for tokens under padding"


def test_text_reaches_attention_too_and_not_only_the_timestep():
    network, x = random_unet(), torch.zeros(3, 3, 16, 16)
    with torch.no_grad():
        prepared = network.prepare(**captions())
        other = {"pooled": prepared["pooled"], "text_kv": [(k, v + 1) for k, v in prepared["text_kv"]]}
        change = (network(x, T, **other) - network(x, T, **prepared)).abs().max()
    assert change > 1e-4, "each attention layer attends to all K vectors of the caption [GLIDE section 4]"


def test_a_prepared_prompt_gives_the_same_answer():
    network, x, cond = random_unet(), torch.randn(3, 3, 16, 16), captions()
    with torch.no_grad():
        assert torch.equal(network(x, T, **cond), network(x, T, **network.prepare(**cond))), "prepare saves time only"


def test_images_need_not_be_square_and_do_not_affect_each_other():
    network, x, cond = random_unet(), torch.randn(3, 3, 12, 20), captions()
    with torch.no_grad():
        together = network(x, T, **cond)
        alone = [network(x[i:i + 1], T[i:i + 1], **{k: v[i:i + 1] for k, v in cond.items()}) for i in range(3)]
    assert together.shape == (3, 6, 12, 20)
    off = (together - torch.cat(alone)).abs().max() / together.abs().max()
    assert off < 1e-4, "group norm and attention stay within one image, so its neighbours in the batch do not matter"


def test_gradients_reach_every_parameter():
    network = random_unet()
    network(torch.randn(3, 3, 16, 16), T, **captions()).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == [], f"no gradient reaches {silent[:3]}: these could never learn"


def test_every_norm_has_the_configured_groups():
    network = random_unet(groups=8)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert norms and {m.num_groups for m in norms} == {8}, "UNetConfig.groups is the number of groups of all norms"


# Four more input channels of the first 3×3 convolution make an inpainting model.
COUNTS = {("filtered", 0): 385_030_726, ("filtered-upsampler", 0): 398_361_286,
          ("filtered", 4): 385_037_638, ("filtered-upsampler", 4): 398_368_198,
          ("paper", 0): 3_554_414_086, ("paper-upsampler", 0): 1_641_702_790}


@pytest.mark.parametrize("name, more", COUNTS)
def test_released_and_paper_sizes_to_the_last_parameter(name, more):
    config = replace(unet.UNET[name], in_channels=unet.UNET[name].in_channels + more)
    with torch.device("meta"):   # shapes without memory
        count = unet.parameters(unet.UNet(config))
    assert count == COUNTS[name, more], f"{name} has {count:,} parameters"


# --- Weight files ---

@pytest.fixture(scope="module")
def network():
    """A network that only these tests of files use, so small that writing it takes no time."""
    text = replace(unet.TEXT["tiny"], width=32, layers=1, heads=1)
    return random_unet(channels=32, head_channels=32, multipliers=(1,), attention_levels=(), text=text)


def test_a_weight_file_comes_back_as_it_went(tmp_path, network):
    unet.save_weights(tmp_path / "new folder" / "w.pt", network, size=16)
    again = unet.UNet.load(tmp_path / "new folder" / "w.pt")
    assert again.config == network.config and not again.training
    for (name, value), back in zip(network.state_dict().items(), again.state_dict().values()):
        assert torch.equal(value.half().float(), back), f"{name}: a weight file holds the weights rounded to 16 bits"
    assert unet.read_weights(tmp_path / "new folder" / "w.pt")["size"] == 16, "the metadata comes back too"


def write_all(path, network):
    """One file of each wrong kind: {kind: (path, a word that only its refusal has)}."""
    def file(name, content=None):
        if content is not None:
            torch.save(content, path / name)
        return path / name

    good, other = path / "good.pt", path / "other.pt"
    unet.save_weights(good, network)
    torch.save({**unet.read_weights(good), "config": {**unet.read_weights(good)["config"], "channels": 64}}, other)
    (path / "half.pt").write_bytes(good.read_bytes()[:5000])
    (path / "text.pt").write_text("<html>not found</html>")
    (path / "empty.pt").write_bytes(b"")
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    return {"missing": (file("nothing.pt"), "no weights at"), "folder": (path, "is a folder"),
            "half": (file("half.pt"), "damaged"), "text": (file("text.pt"), "damaged"),
            "empty": (file("empty.pt"), "damaged"), "bare": (file("bare.pt", weights), "bare weights"),
            "released": (file("base.pt", {"input_blocks.0.0.weight": torch.zeros(1)}), "12_released.py convert"),
            "released clip": (file("clip.pt", {"blocks.input.w_t": torch.zeros(1)}), "12_released.py convert"),
            "checkpoint": (file("c.pt", {"model": weights, "optimizer": {}, "step": 3}), "checkpoint"),
            "foreign": (file("f.pt", {"epoch": 3}), "not one of our weight files"),
            "numbers": (file("n.pt", {"config": {}, "weights": {"input_conv.weight": 3}}), "another network"),
            "other sizes": (other, "another network")}


KINDS = ["missing", "folder", "half", "text", "empty", "bare", "released", "released clip", "checkpoint", "foreign",
         "numbers", "other sizes"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_wrong_file_has_its_own_sentence(tmp_path, network, kind):
    path, word = write_all(tmp_path, network)[kind]
    with pytest.raises((FileNotFoundError, ValueError), match=word) as refusal:
        unet.UNet.load(path)
    assert str(path) in small.one_line(refusal.value), "a refusal is one line that names the file"


def test_a_weight_file_cannot_run_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'owned')!r}, 'w')",))
    torch.save({"config": Hostile(), "weights": {}}, tmp_path / "w.pt")
    with pytest.raises(ValueError):
        unet.UNet.load(tmp_path / "w.pt")
    assert not (tmp_path / "owned").exists(), "weights_only=True refuses anything but tensors and plain values"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("iostream error"),
                                   KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "w.pt"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError):
        with unet.atomic_write(path) as partial:
            partial.write_bytes(b"half")
            raise error
    assert path.read_bytes() == b"old", "the new file takes the old one's place only when it is complete"
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"], "no temporary file stays behind"


def test_a_failed_first_write_leaves_no_file(tmp_path):
    with pytest.raises(OSError):
        with unet.atomic_write(tmp_path / "w.pt"):
            raise OSError("unplugged")
    assert not list(tmp_path.iterdir()), "neither half a file nor a temporary one"


# --- Released answers ---

def test_timestep_embedding_gives_the_released_values():
    answer = unet.timestep_embedding(torch.tensor([0, 1, 17, 500, 999]), 192)
    formula.agree(answer, formula.golden("timestep_embedding"), 1e-4)


@pytest.mark.parametrize("model", ["a", "b"])
@pytest.mark.parametrize("kind", ["base", "upsample", "base-inpaint", "upsample-inpaint"])
def test_all_four_kinds_give_the_released_answers(kind, model):
    denoiser, cond, x = formula.denoiser(kind, model), formula.conditioning(kind, model), formula.inp("x", 3, 3, 16, 16)
    with torch.no_grad():
        answer = denoiser(x, T, **cond)
        assert torch.equal(answer, denoiser(x, T, **diffusion.prepare(denoiser, **cond))), "prepare saves time only"
    formula.agree(answer, formula.golden(f"unet.{kind}.{model}"), 1e-4)
