"""The U-Net: released answers, its wiring with random weights, parameter counts on the meta device."""
import itertools
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import formula

unet, diffusion, train = (import_module(name) for name in ("03_unet", "04_diffusion", "08_train"))
KINDS = ["base", "upsample", "base-inpaint", "upsample-inpaint"]
T = torch.tensor([0, 500, 999])


def random_unet(config=unet.UNET["tiny"]):
    torch.manual_seed(0)
    network = unet.UNet(config).eval()
    for p in network.parameters():   # a fresh network answers zero, whatever its wiring
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5)
        else:
            p.data += 0.1 * torch.randn_like(p)
    return network


def captions(batch=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(20)[None] < torch.tensor([20, 5, 0])[:batch, None]
    return {"tokens": torch.randint(0, 500, (batch, 20), generator=g), "mask": mask}


@pytest.mark.parametrize("kind, model", list(itertools.product(KINDS, "ab")))
def test_all_four_kinds_give_the_released_answers(kind, model):
    with torch.no_grad():
        answer = formula.denoiser(kind, model)(formula.inp("x", 3, 3, 16, 16), T, **formula.conditioning(kind, model))
    formula.agree(answer, formula.golden(f"unet.{kind}.{model}"), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_prompt_gives_the_same_answer(kind):
    model, cond, x = formula.denoiser(kind), formula.conditioning(kind, "a"), formula.inp("x", 3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(x, T, **cond), model(x, T, **diffusion.prepare(model, **cond)))


def test_timestep_embedding_gives_the_released_values():
    answer = unet.timestep_embedding(torch.tensor([0, 1, 17, 500, 999]), 192)
    formula.agree(answer, formula.golden("timestep_embedding"), 1e-4)


def test_timestep_embedding_is_cosines_then_sines():
    row = unet.timestep_embedding(torch.tensor([3]), 8)[0]
    expected = torch.tensor([3 * 10000 ** (-i / 4) for i in range(4)])
    assert torch.allclose(row, torch.cat([expected.cos(), expected.sin()]), atol=1e-6)


def test_a_fresh_network_answers_zero():
    network = unet.UNet(unet.UNET["tiny"])
    assert network(torch.randn(3, 3, 16, 16), T, **captions()).abs().max() == 0, "the last convolution starts at 0"


def test_a_fresh_block_is_the_identity():
    block = unet.ResBlock(64, 64, 32)
    x = torch.randn(3, 64, 6, 10)
    assert torch.equal(block(x, torch.randn(3, 32)), x), "conv2 starts at zero, so a new block adds nothing"


def test_adagn_is_one_plus_scale_times_norm_plus_shift():
    """The block written out in float64, the released code's order of operations."""
    torch.manual_seed(0)
    block = unet.ResBlock(64, 96, 32).double()
    torch.nn.init.normal_(block.conv2.weight, std=0.05)
    x, emb = torch.randn(3, 64, 6, 10).double(), torch.randn(3, 32).double()
    h = F.conv2d(F.silu(F.group_norm(x, 32, eps=1e-5)), block.conv1.weight, block.conv1.bias, padding=1)
    scale, shift = (emb @ block.scale_shift.weight.T + block.scale_shift.bias)[..., None, None].chunk(2, dim=1)
    h = F.silu((1 + scale) * F.group_norm(h, 32, eps=1e-5) + shift)
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    expected = F.conv2d(x, block.skip.weight, block.skip.bias) + h
    assert torch.allclose(block(x, emb), expected, atol=1e-10)


def test_resampling_halves_by_means_and_doubles_by_repetition():
    x = torch.arange(16.0).view(1, 1, 4, 4).repeat(1, 32, 1, 1)
    down, up = unet.ResBlock(32, 32, 8, resample="down"), unet.ResBlock(32, 32, 8, resample="up")
    emb = torch.zeros(1, 8)
    assert torch.equal(down(x, emb)[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]])), "each 2×2 square's mean"
    assert torch.equal(up(x, emb)[0, 0], x[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize("what", ["x", "t", "tokens", "mask"])
def test_every_input_reaches_the_answer(what):
    network, x, t, cond = random_unet(), torch.randn(3, 3, 16, 16), T.clone(), captions()
    before = network(x, t, **cond)
    if what == "x":
        x = x + 0.1
    elif what == "t":
        t = t + 1
    elif what == "tokens":
        cond["tokens"] = (cond["tokens"] + 1) % 500
    else:
        cond["mask"] = ~cond["mask"]
    changed = (network(x, t, **cond) - before).abs().flatten(1).amax(1) > 1e-5
    expected = torch.tensor([True, True, what != "tokens"])   # the third caption is empty: its tokens are padding
    assert torch.equal(changed, expected), f"changing {what} changed the answers {changed.tolist()}"


def test_text_reaches_attention_too_not_only_the_timestep():
    network, cond = random_unet(), captions()
    prepared = network.prepare(**cond)
    before = network(torch.zeros(3, 3, 16, 16), T, **prepared)
    other = {"pooled": prepared["pooled"], "text_kv": [(k, v + 1) for k, v in prepared["text_kv"]]}
    assert (network(torch.zeros(3, 3, 16, 16), T, **other) - before).abs().max() > 1e-4


def test_pictures_need_not_be_square_and_do_not_meet():
    network, x, cond = random_unet(), torch.randn(3, 3, 12, 20), captions()
    together = network(x, T, **cond)
    assert together.shape == (3, 6, 12, 20)
    alone = torch.cat([network(x[i:i + 1], T[i:i + 1], **{k: v[i:i + 1] for k, v in cond.items()}) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-4), "an example's answer depends on its neighbours"


def test_gradients_reach_every_parameter():
    network = random_unet()
    network(torch.randn(3, 3, 16, 16), T, **captions()).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == [], f"no gradient reaches {silent[:3]}"


COUNTS = {("filtered", "base"): 385_030_726, ("filtered", "upsampler"): 398_361_286,
          ("filtered", "inpaint"): 385_037_638, ("filtered", "inpaint-upsampler"): 398_368_198,
          ("paper", "base"): 3_554_414_086, ("paper", "upsampler"): 1_641_702_790,
          # four more input channels of a 3×3 convolution to 512 and to 384 channels
          ("paper", "inpaint"): 3_554_414_086 + 4 * 9 * 512, ("paper", "inpaint-upsampler"): 1_641_702_790 + 4 * 9 * 384}


@pytest.mark.parametrize("preset, kind", COUNTS)
def test_released_and_paper_sizes_to_the_last_parameter(preset, kind):
    with torch.device("meta"):   # shapes without memory
        network = unet.UNet(train.PRESETS[preset][kind].network)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[preset, kind]


# --- Weight files ---

def test_a_weight_file_comes_back_as_it_went(tmp_path):
    network = random_unet()
    unet.save_weights(tmp_path / "w.pt", network, note="hello")
    again = unet.UNet.load(tmp_path / "w.pt")
    assert again.config == network.config and not again.training
    assert all(torch.equal(a.half().float(), b) for a, b in zip(network.state_dict().values(), again.state_dict().values()))
    assert unet.read_weights(tmp_path / "w.pt")["note"] == "hello"
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"], "the temporary file must be gone"


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    network = random_unet()
    unet.save_weights(tmp_path / "w.pt", network)
    before = (tmp_path / "w.pt").read_bytes()

    def full_disk(value, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError):
        unet.save_weights(tmp_path / "w.pt", network)
    assert (tmp_path / "w.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


@pytest.fixture
def two_files(tmp_path):
    """A network, and another that differs from it in one part only, each in its file: (the other, the two paths)."""
    network, first, second = random_unet(), tmp_path / "first.pt", tmp_path / "second.pt"
    unet.save_weights(first, network, note="first")
    torch.nn.init.normal_(network.middle[0].block.conv1.weight)
    unet.save_weights(second, network, beside=first, note="second")
    return network, first, second


def test_a_file_beside_another_holds_only_what_is_its_own(two_files):
    network, first, second = two_files
    again = unet.UNet.load(second).state_dict()
    assert all(torch.equal(value.half().float(), again[name]) for name, value in network.state_dict().items())
    assert unet.read_weights(second)["note"] == "second", "of the other file only tensors are taken"
    assert list(unet.read_file(second)["weights"]) == ["middle.0.block.conv1.weight"], "the rest is not said twice"
    assert second.stat().st_size < 0.5 * first.stat().st_size


def test_a_file_read_is_whole_and_can_be_written_elsewhere(two_files, tmp_path):
    saved = unet.read_weights(two_files[2])
    unet.save_weights(tmp_path / "new" / "third.pt", unet.UNet.from_saved(saved, "second.pt"), note=saved["note"])
    assert saved.keys() == unet.read_weights(tmp_path / "new" / "third.pt").keys() == {"config", "weights", "note"}


@pytest.mark.parametrize("change", ["missing", "trained further", "another size", "cut", "borrows itself"])
def test_a_file_without_what_it_was_made_beside_is_refused_in_one_line(two_files, change):
    """Half of its weights would be another model's: it would draw nonsense, and nobody would know why."""
    network, first, second = two_files
    if change == "missing":
        first.unlink()
    elif change == "trained further":
        torch.nn.init.normal_(network.input_conv.weight)
        unet.save_weights(first, network)
    elif change == "another size":
        torch.save({"config": {}, "weights": {"input_conv.weight": torch.zeros(2).half()}}, first)
    elif change == "cut":
        first.write_bytes(first.read_bytes()[:1000])
    else:
        first.write_bytes(second.read_bytes())
    with pytest.raises((FileNotFoundError, ValueError), match="first.pt") as refusal:
        unet.read_weights(second)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("beside", [7, {}, {"file": "..", "names": [], "fingerprint": ""}, {"file": 3, "names": 4},
                                    {"file": "../first.pt", "names": 5, "fingerprint": ""},
                                    {"file": "first.pt", "names": [["input_conv.weight"]], "fingerprint": ""}])
def test_what_a_hostile_file_says_of_its_neighbour_is_refused_in_one_line(two_files, beside):
    _, _, second = two_files
    torch.save({**unet.read_file(second), "beside": beside}, second)
    with pytest.raises((FileNotFoundError, ValueError)) as refusal:
        unet.read_weights(second)
    assert "\n" not in str(refusal.value)


def test_a_file_never_reads_outside_its_folder(two_files):
    """A weight file comes from strangers: it may name a neighbour, and nothing else on the machine."""
    _, first, second = two_files
    (first.parent / "inner").mkdir()
    saved = unet.read_file(second)
    saved["beside"]["file"] = "../first.pt"
    torch.save(saved, first.parent / "inner" / "second.pt")
    with pytest.raises(FileNotFoundError, match="must lie beside it"):
        unet.read_weights(first.parent / "inner" / "second.pt")


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "empty", "foreign", "numbers"])
def test_what_is_no_weight_file_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "w.pt"
    unet.save_weights(path, random_unet())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100_000])
    elif damage == "foreign":
        torch.save({"epoch": 3}, path)
    elif damage == "numbers":
        torch.save({**unet.read_file(path), "weights": {"input_conv.weight": 3}}, path)
    else:
        path.write_text("<html>not found</html>" if damage == "text" else "")
    with pytest.raises((FileNotFoundError, ValueError)) as refusal:
        unet.UNet.load(path)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


def test_a_weight_file_cannot_run_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'owned')!r}, 'w')",))
    torch.save({"config": Hostile(), "weights": {}}, tmp_path / "w.pt")
    with pytest.raises(ValueError):
        unet.UNet.load(tmp_path / "w.pt")
    assert not (tmp_path / "owned").exists()
