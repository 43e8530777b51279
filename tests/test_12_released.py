"""OpenAI's weights: names, sizes and layouts, there and back; files fetched from a server that misbehaves."""
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import formula

released = import_module("lessons.12_released")
tokenizer, transformer, unet = (import_module(name) for name in ("01_tokenizer", "02_transformer", "03_unet"))
diffusion, guidance = import_module("04_diffusion"), import_module("05_guidance")

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "lessons" / "12_released.py"
LAYOUTS = json.loads((formula.GOLDEN / "layouts_small.json").read_text())
UNETS = ["base", "upsampler", "inpaint", "inpaint-upsampler"]
GOLDEN_NAMES = {"base": "base", "upsampler": "upsample", "inpaint": "base-inpaint",
                "inpaint-upsampler": "upsample-inpaint"}
T = torch.tensor([0, 500, 999])
each_kind = pytest.mark.parametrize("kind", UNETS)


def small_config(kind):
    """A model of that kind with the smallest sizes that a released file can say: 64 channels, 64 a head."""
    if kind == "clip":
        text = transformer.TextConfig(96, 8, 64, 1, 1)
        return guidance.CLIPConfig(8, 4, 128, 2, 2, text, 32, 10)
    channels = {"base": 3, "upsampler": 6, "inpaint": 7, "inpaint-upsampler": 10}[kind]
    return unet.UNetConfig(64, (1, 1), 1, (1,), channels, text=transformer.TextConfig(96, 8, 64, 1, 1))


def filled(config, seed=0):
    """A model of these sizes with random weights, in eval mode."""
    model, g = released.blank(config).to_empty(device="cpu").eval(), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=g)
    return model


def states_of(model):
    """A model's state dicts as OpenAI would have published them, one a file."""
    return [released.export_openai(part) for part in released.parts_of(model)]


def load(states):
    """The model of one or two state dicts."""
    return released.load_openai_clip(*states) if len(states) == 2 else released.assemble(
        "a U-Net", released.unet_config, *states)


def shapes_of(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def refused(call, *args):
    """The sentence with which a call refuses its arguments."""
    with pytest.raises(ValueError) as caught:
        call(*args)
    sentence = str(caught.value)
    assert sentence.strip() and "\n" not in sentence and len(sentence) < 900, f"one sentence, not {sentence!r}"
    return sentence


# --- Names ---

CONFIGS = {f"{preset} {kind}": released.config_of(kind, preset)
           for preset in guidance.CLIP for kind in released.KINDS}


@pytest.mark.parametrize("name", CONFIGS)
def test_names_are_a_bijection(name):
    """Any size, any kind: each of our keys has names there, and no name belongs to two keys."""
    for part in released.parts_of(released.blank(CONFIGS[name])):
        names = released.names_of(part)
        theirs = list(itertools.chain(*names.values()))
        assert names.keys() == part.state_dict().keys(), "every weight has a name"
        assert len(theirs) == len(set(theirs)), "a name that two weights share would lose one of them"
        assert not any("None" in key or key.endswith(".") for key in theirs), "a name that was not in the table"


@each_kind
@pytest.mark.parametrize("size", "ab")
def test_names_and_shapes_are_those_of_the_released_code(kind, size):
    """The layouts were written by OpenAI's own code, for networks of two and three levels."""
    layout = {key: torch.empty(shape, device="meta") for key, shape in LAYOUTS[f"{GOLDEN_NAMES[kind]}.{size}"].items()}
    network = released.blank(released.unet_config(layout))
    assert shapes_of(released.export_openai(network)) == shapes_of(layout)


def test_clip_names_and_shapes_are_those_of_the_released_code():
    image, text = ({key: torch.empty(shape, device="meta") for key, shape in LAYOUTS[f"clip/{tower}-enc.a"].items()}
                   for tower in ("image", "text"))
    clip = released.blank(released.clip_config(image, text))
    assert [shapes_of(state) for state in released.export_openai_clip(clip)] == [shapes_of(image), shapes_of(text)]


def test_known_names():
    """A few that anyone can look up in OpenAI's code; a shift by one block would change them all."""
    names = released.names_of(released.blank(released.config_of("base")))
    for ours, theirs in {
            "text.tokens.weight": "token_embedding.weight", "text.padding": "padding_embedding",
            "input_conv.weight": "input_blocks.0.0.weight",
            "down.0.blocks.0.res.conv1.bias": "input_blocks.1.0.in_layers.2.bias",
            "down.0.resample.conv2.weight": "input_blocks.4.0.out_layers.3.weight",
            "down.1.blocks.0.attention.qkv.weight": "input_blocks.5.1.qkv.weight",
            "middle.0.attention.text_kv.bias": "middle_block.1.encoder_kv.bias",
            "up.0.resample.norm1.weight": "output_blocks.3.2.in_layers.0.weight",
            "up.3.blocks.3.res.skip.weight": "output_blocks.15.0.skip_connection.weight",
            "output.2.weight": "out.2.weight"}.items():
        assert names[ours] == [theirs], f"{ours} is called {theirs} there"


@each_kind
def test_sizes_are_read_off_the_shapes(kind):
    for preset in ("tiny", "filtered", "paper"):
        config = released.config_of(kind, preset)
        read = released.unet_config(released.export_openai(released.blank(config)))
        assert read.groups == 32, "released networks have 32 groups, and no shape tells"
        hidden = {"dropout": config.dropout, "groups": config.groups}
        assert replace(read, **hidden) == config, f"{preset}: these two have no weights, all else shows"


def test_clip_sizes_are_read_off_the_shapes():
    for config in guidance.CLIP["filtered"], small_config("clip"):
        assert released.clip_config(*states_of(released.blank(config))) == config


def test_parameter_counts_are_the_released_ones():
    counts = {kind: unet.parameters(released.blank(released.config_of(kind))) for kind in released.KINDS}
    assert counts == {"base": 385_030_726, "upsampler": 398_361_286, "inpaint": 385_037_638,
                      "inpaint-upsampler": 398_368_198, "clip": 86_443_776 + 71_679_488}


# --- Layouts ---

def test_heads_lie_together_in_ours_and_apart_in_theirs():
    """Row r of their q is row r of head r // 64; in ours each head's 64 rows of q, k and v follow one another."""
    q, k, v = (1000 * which + torch.arange(128.)[:, None] for which in (1, 2, 3))
    rows = released.to_ours([q, k, v])[:, 0]
    expected = torch.cat([part[head * 64:head * 64 + 64, 0] for head in (0, 1) for part in (q, k, v)])
    assert torch.equal(rows, expected), "64 of q, 64 of k, 64 of v, head by head"
    back = released.to_openai(rows[:, None], ["q", "k", "v"])
    assert all(torch.equal(back[name], part) for name, part in zip("qkv", (q, k, v)))


def test_their_queries_keys_and_values_meet_in_our_attention():
    """Their formula, written out with their tensors, is our layer with the converted ones; keys have no bias."""
    g = torch.Generator().manual_seed(0)
    clip = filled(small_config("clip"))
    theirs, layer = states_of(clip)[0], clip.image_encoder.blocks[0].attention
    x, at = torch.randn(1, 5, 128, generator=g), "blocks.block_0.f_attn."

    def project(name, bias):
        return (x @ theirs[f"{at}{name}.w"].T + bias).unflatten(-1, (2, 64)).transpose(1, 2)      # [1, heads, 5, 64]
    q, k, v = project("f_q", theirs[f"{at}f_q.b"]), project("f_k", 0), project("f_v", theirs[f"{at}f_v.b"])
    seen = ((q @ k.mT / 8).softmax(-1) @ v).transpose(1, 2).flatten(2)
    with torch.no_grad():
        assert torch.allclose(layer(x), seen @ theirs[f"{at}f_c.w"].T + theirs[f"{at}f_c.b"], atol=1e-5)


def test_their_attention_is_a_convolution_over_a_row():
    state = states_of(filled(small_config("base")))[0]
    for name in "qkv", "encoder_kv", "proj_out":
        assert state[f"middle_block.1.{name}.weight"].dim() == 3, f"{name} is [out, in, 1] there"
    assert state["transformer.resblocks.0.attn.c_qkv.weight"].dim() == 2, "in the text encoder it is a linear layer"


@pytest.mark.parametrize("kind", [*UNETS, "clip"])
def test_export_is_the_inverse_of_loading(kind):
    states = states_of(filled(small_config(kind)))
    model = load(states)
    assert not model.training, "loaded for use, not for training"
    assert model.config == small_config(kind)
    for state, back in zip(states, states_of(model)):
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state), "the same numbers under the same names"


@pytest.mark.parametrize("kind", ["base", "clip"])
def test_files_in_16_bits_become_float32(kind):
    states = [{key: value.half() for key, value in state.items()} for state in states_of(filled(small_config(kind)))]
    assert {p.dtype for p in load(states).parameters()} == {torch.float32}, "and can be used on any CPU"


@each_kind
def test_the_denoiser_takes_what_its_kind_needs(kind):
    denoiser = released.load_openai(states_of(filled(small_config(kind)))[0])
    cond = {"tokens": torch.zeros(1, 8, dtype=torch.long), "mask": torch.ones(1, 8, dtype=torch.bool)}
    if "upsampler" in kind:
        cond["low_res"] = torch.zeros(1, 3, 2, 2)
    if "inpaint" in kind:
        cond |= {"inpaint_image": torch.zeros(1, 3, 8, 8), "inpaint_mask": torch.ones(1, 1, 8, 8)}
    with torch.no_grad():
        assert denoiser(torch.zeros(1, 3, 8, 8), torch.tensor([5]), **cond).shape == (1, 6, 8, 8)


# --- What is refused ---

def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def but(**changes):
    return lambda state: state | {name.replace("__", "."): value for name, value in changes.items()}


CHANGES = {   # what is wrong with a U-Net's state dict; what the sentence names
    "a key is missing": (without("middle_block.1.encoder_kv.bias"), "middle_block.1.encoder_kv.bias"),
    "a key that sizes are read off is missing": (without("out.2.weight"), "out.2.weight"),
    "a key too many": (but(label_emb__weight=torch.zeros(2)), "label_emb.weight"),
    "a wrong shape": (but(out__0__bias=torch.zeros(65)), "output.0.bias"),
    "another width": (but(transformer_proj__weight=torch.zeros(256, 63)), "pool.weight"),
    "no tensor": (but(out__0__bias="zero"), ""),
    "nothing": (lambda state: {}, ""),
    "no dictionary": (lambda state: list(state), ""),
    "ours": (lambda state: unet.UNet(small_config("base")).state_dict(), "input_blocks.0.0.weight"),
    "CLIP's": (lambda state: states_of(filled(small_config("clip")))[0], ""),
    "a prefix": (lambda state: {f"module.{key}": value for key, value in state.items()}, ""),
}


@pytest.mark.parametrize("case", CHANGES)
def test_every_key_must_be_used_and_every_shape_must_fit(case):
    """A weight that is skipped leaves a network that draws, only worse than it should."""
    change, named = CHANGES[case]
    sentence = refused(released.load_openai, change(states_of(filled(small_config("base")))[0]))
    assert "not the weights of a released GLIDE U-Net" in sentence and named in sentence, sentence


def test_clip_is_refused_in_the_same_way():
    image, text = states_of(filled(small_config("clip")))
    assert "'extra'" in refused(released.load_openai_clip, image, text | {"extra": torch.zeros(1)})
    assert "w_voc" in refused(released.load_openai_clip, text, image), "the two files exchanged"
    del image["blocks.block_1.f_attn.f_k.w"]
    assert "f_k.w" in refused(released.load_openai_clip, image, text)


# --- A server and its manners ---

LIST = "#version: 0.2\n" + "\n".join(f"{a} {b}" for a in tokenizer.SYMBOLS[:10] for b in tokenizer.SYMBOLS[:10]) + "\n"
CLIP_LIST = gzip.compress(LIST.replace("#version", '"bpe_simple_vocab_16e6.txt#version').encode())


def saved(state, **options):
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def published():
    """{name: bytes} of small stand-ins for everything that OpenAI published."""
    files = {"vocab.bpe": LIST.encode(), "bpe_simple_vocab_16e6.txt.gz": CLIP_LIST}
    for kind, (_, *names) in released.KINDS.items():
        files |= dict(zip(names, map(saved, states_of(filled(small_config(kind))))))
    return files


@pytest.fixture
def stand_ins(published, monkeypatch, tmp_path):
    """The tables say what the stand-ins are, and the cache is a folder of this test's."""
    monkeypatch.setattr(released, "config_of", lambda kind, preset="filtered": small_config(kind))
    monkeypatch.setattr(released, "SHA256", {
        name: hashlib.sha256(published[name]).hexdigest() for name in released.SHA256})
    monkeypatch.setattr(released, "CACHE", tmp_path / "cache")
    read = tokenizer.read_merges                                            # the stand-ins hold a hundred merges
    monkeypatch.setattr(tokenizer, "read_merges", lambda *args: read(*args[:3], 100))
    return released


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.asked.append((name, self.headers["Range"]))
        self.server.manners.get(name, well)(self, self.server.files.get(name))

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", length=None, **headers):
        """Status, headers (Content_Type=…) and body; `length` is announced in place of the true one, "" for none."""
        self.send_response(status)
        for name, value in {"Content_Length": len(body) if length is None else length, **headers}.items():
            if value != "":
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def well(handler, body):
    """Sends what is asked for: the rest from a byte on."""
    begin = int(re.sub(r"\D", "", handler.headers["Range"] or "0"))
    if body is None:
        handler.reply(404)
    elif begin >= len(body):
        handler.reply(416, Content_Range=f"bytes */{len(body)}")
    else:
        handler.reply(206, body[begin:], Content_Range=f"bytes {begin}-{len(body) - 1}/{len(body)}")


def says(body=None, status=200, **options):
    """Answers with these bytes, or with the right ones, whatever part was asked for."""
    return lambda handler, right: handler.reply(status, right if body is None else body, **options)


def cut(handler, body):
    """Announces all of it and hangs up in the middle."""
    handler.reply(200, body[:len(body) // 2], length=len(body))


def silent(handler, body):
    cut(handler, body)
    handler.wfile.flush()
    handler.server.over.wait(10)


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, request, address):
        if not isinstance(sys.exc_info()[1], ConnectionError):              # a client may hang up: it has seen enough
            super().handle_error(request, address)


@pytest.fixture
def server(published, stand_ins, monkeypatch):
    """A server on loopback with .files and .manners {name: how}, which notes what it was .asked."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.manners, server.asked, server.over = dict(published), {}, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/copies/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(server, tmp_path):
    """fetch() brings base.pt into a folder of this test's."""
    return lambda name="base.pt", timeout=5: released.fetch(name, tmp_path / "cache", server.url, timeout)


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


# --- Fetching ---

@pytest.mark.parametrize("name", ["vocab.bpe", "base.pt", "clip_text_enc.pt", "bpe_simple_vocab_16e6.txt.gz"])
def test_a_file_is_fetched_whole(name, fetch, cache, published):
    fetch(name)
    assert listing(cache) == [name], "this file and nothing else: no part is left"
    assert (cache / name).read_bytes() == published[name]


def test_a_cut_transfer_is_never_taken_for_a_whole_one_and_goes_on(fetch, server, cache, published):
    """A connection that ends looks like a file that ends: only the announced size tells them apart."""
    server.manners["base.pt"] = cut
    assert "announced bytes came" in refused(fetch)
    have = len(published["base.pt"]) // 2
    assert listing(cache) == ["base.pt.part"], "half a file must not have the name of the whole"
    assert (cache / "base.pt.part").read_bytes() == published["base.pt"][:have]
    server.manners.clear()
    fetch()
    assert server.asked[-1] == ("base.pt", f"bytes={have}-"), "only the rest is asked for"
    assert listing(cache) == ["base.pt"] and (cache / "base.pt").read_bytes() == published["base.pt"]


def test_a_cut_of_the_rest_goes_on_too(fetch, server, cache, published):
    body = published["base.pt"]
    (cache / "base.pt.part").write_bytes(body[:1000])
    server.manners["base.pt"] = lambda handler, _: handler.reply(
        206, body[1000:3000], Content_Range=f"bytes 1000-2999/{len(body)}")
    assert "3,000 of" in refused(fetch), "the size of the whole file counts, not that of this reply"
    server.manners.clear()
    fetch()
    assert server.asked[-1][1] == "bytes=3000-" and (cache / "base.pt").read_bytes() == body


@pytest.mark.parametrize("manner", [says(), says(status=206), says(status=206, Content_Range="bytes 0-9/10")],
                         ids=["200", "no range", "elsewhere"])
def test_where_a_server_does_not_send_the_rest_it_is_begun_again(manner, fetch, server, cache, published):
    (cache / "base.pt.part").write_bytes(b"x" * 5000)
    server.manners["base.pt"] = manner
    fetch()
    assert (cache / "base.pt").read_bytes() == published["base.pt"], "not a byte of the old part may stay"


def test_a_part_of_another_version_is_noticed(fetch, cache, published):
    """Right keys, right shapes, wrong numbers: only the checksums in the file can tell."""
    body = bytearray(published["base.pt"])
    body[len(body) // 3] ^= 1
    (cache / "base.pt.part").write_bytes(body[:len(body) // 2])
    assert "checksum" in refused(fetch)
    assert listing(cache) == [], "more bytes would not mend it"
    fetch()
    assert (cache / "base.pt").read_bytes() == published["base.pt"]


@pytest.mark.parametrize("more", [0, 7])
def test_a_part_with_nothing_after_it_is_begun_again(more, fetch, cache, published):
    (cache / "base.pt.part").write_bytes(published["base.pt"] + b"x" * more)
    assert "416" in refused(fetch)
    fetch()
    assert (cache / "base.pt").read_bytes() == published["base.pt"]


PAGE = b"<!DOCTYPE html><p>Welcome to the airport, please log in"
REPLIES = {   # how the server answers; what the sentence says
    "not there": (says(b"no", 404), "404"),
    "forbidden": (says(b"no", 403), "403"),
    "broken": (says(b"no", 500), "500"),
    "a page": (says(PAGE, Content_Type="text/html; charset=utf-8"), "is a web page"),
    "a page in disguise": (says(PAGE), "not OpenAI's base.pt"),
    "no size": (says(length=""), "of 0 announced bytes"),
    "a size that is none": (says(length="many"), "base.pt"),
    "too small a size": (says(length=1000), "not OpenAI's base.pt"),
    "too large a size": (says(length=10 ** 9), "of 1,000,000,000 announced bytes"),
    "no bytes": (says(b""), "of 0 announced bytes|not OpenAI's base.pt"),
    "noise": (says(b"\0\xff" * 50_000), "not OpenAI's base.pt"),
    "no HTTP": (lambda handler, body: handler.wfile.write(b"hello\r\n\r\n"), "BadStatus|hello"),
    "no answer": (lambda handler, body: None, "closed connection"),
    "a redirect to itself": (says(b"", 302, Location="base.pt"), "302"),
    "a redirect to a file": (says(b"", 302, Location="file:///etc/hostname"), "not allowed|302"),
    "an older torch's file": (lambda handler, body: handler.reply(200, saved({}, _use_new_zipfile_serialization=False)),
                              "not OpenAI's base.pt"),
}


@pytest.mark.parametrize("case", REPLIES)
def test_what_is_not_the_file_is_refused(case, fetch, server, cache):
    server.manners["base.pt"], words = REPLIES[case]
    sentence = refused(fetch)
    assert any(word in sentence for word in words.split("|")), f"{words!r} is not said in: {sentence}"
    assert "base.pt" in sentence and "http://127.0.0.1" in sentence, "it says what could not be had, and from where"
    assert not (cache / "base.pt").exists()


@pytest.mark.parametrize("name", ["upsample.pt", "base_inpaint.pt", "clip_text_enc.pt"])
def test_another_model_is_refused(name, fetch, server, cache, published):
    """An inpainting model differs from its base in one shape: 7 channels of input, not 3."""
    server.files["base.pt"] = published[name]
    assert "not OpenAI's base.pt" in refused(fetch)
    assert listing(cache) == []


def test_another_merge_list_is_refused(fetch, server, cache):
    server.files["vocab.bpe"] = LIST.encode()[:-5] + b"z z\n\n"
    assert "SHA-256" in refused(fetch, "vocab.bpe")
    assert listing(cache) == []


class Bomb:
    """Pickled, a call of os.mkdir: whoever unpickles it has run it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_fetched_file_runs_nothing(fetch, server, cache, tmp_path):
    server.files["base.pt"] = saved({"weights": Bomb(tmp_path / "exploded")})
    sentence = refused(fetch)
    assert not (tmp_path / "exploded").exists()
    assert "weights_only" not in sentence, "nobody must be told how to run it all the same"


def test_a_silent_server_is_given_up(fetch, server, cache, published):
    server.manners["base.pt"] = silent
    assert "timed out" in refused(fetch, "base.pt", 0.3)
    assert listing(cache) == ["base.pt.part"], "what has come is kept"


def test_no_server_and_no_network_are_said(stand_ins, cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    assert "refused" in refused(released.fetch, "base.pt", cache, "http://127.0.0.1:9")

    def no_names(*args, **options):
        raise OSError(-3, "Temporary failure in name resolution")
    monkeypatch.setattr("socket.getaddrinfo", no_names)
    assert "name resolution" in refused(released.fetch, "base.pt", cache)
    assert listing(cache) == []


def test_https_is_not_left(stand_ins, cache, monkeypatch):
    """What follows a redirect to http could come from anyone on the way."""
    class Reply(io.BytesIO):
        url, headers = "http://elsewhere.example/base.pt", Message()
    Reply.headers["Content-Length"] = "10"
    (cache / "base.pt.part").write_bytes(b"12345")
    monkeypatch.setattr(released.urllib.request, "urlopen", lambda *args, **options: Reply(b"x" * 10))
    assert "not encrypted" in refused(released.fetch, "base.pt", cache, "https://secure.example")
    assert (cache / "base.pt.part").read_bytes() == b"12345", "not a byte of it was written"


def test_all_addresses_are_encrypted_ones():
    assert released.ADDRESSES.keys() == {name for names in released.KINDS.values() for name in names}
    assert all(url.startswith("https://") and url.endswith(name) for name, url in released.ADDRESSES.items())


def test_a_full_disk_is_said_and_what_has_come_is_kept(fetch, server, cache, published, monkeypatch):
    def full(path, mode):
        file = open(path, mode)

        class Full(io.BufferedWriter):
            def write(self, piece):
                super().write(piece[:1000])
                raise OSError(28, "No space left on device")
        return Full(file.detach())
    with monkeypatch.context() as patch:
        patch.setattr(released, "open", full, raising=False)
        assert "No space left" in refused(fetch)
    assert listing(cache) == ["base.pt.part"]
    fetch()
    assert (cache / "base.pt").read_bytes() == published["base.pt"]


# --- Converting ---

@pytest.fixture
def files(stand_ins, published, tmp_path):
    """A folder of OpenAI's files."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, body in published.items():
        (folder / name).write_bytes(body)
    return folder


def run(*argv):
    """The command line, in this process. -> its exit status, 0 for None"""
    return released.main([str(word) for word in argv]) or 0


def failure(capsys, *argv):
    """The one line with which a command refuses; progress that was rewritten stands before it."""
    assert run(*argv) == 2, "a refusal ends with status 2"
    lines = capsys.readouterr().err.replace("\r", "\n").rstrip("\n").split("\n")
    assert lines[-1].startswith("12_released.py: ") and "Traceback" not in str(lines)
    return lines[-1]


def test_converted_files_say_what_drawing_needs(files, tmp_path):
    assert run("convert", files, tmp_path / "ours") == 0
    assert listing(tmp_path / "ours") == sorted(f"{kind}.pt" for kind in released.KINDS)
    for kind, size in {"base": 64, "upsampler": 256, "inpaint": 64, "inpaint-upsampler": 256, "clip": 64}.items():
        path = tmp_path / "ours" / f"{kind}.pt"
        file = unet.read_weights(path)
        schedule = "linear" if "upsampler" in kind else "cosine"
        assert file["diffusion"] == {"schedule": schedule, "steps": 1000, "prediction_type": "eps"}
        assert (file["size"], file["world"], file["verbatim"]) == (size, "", True), "captions are taken as they are"
        assert file["made"]["from"] == [released.ADDRESSES[name] for name in released.KINDS[kind]]
        words = tokenizer.load_tokenizer(file)
        assert isinstance(words, tokenizer.CLIPTokenizer) == (kind == "clip")
        assert words.vocab_size == (512 + 100 + 2 if kind == "clip" else 256 + 100 + 1)
        model = (guidance.NoisedCLIP if kind == "clip" else unet.UNet).load(path)
        for name, state in zip(released.KINDS[kind][1:], states_of(model)):
            theirs = torch.load(files / name, weights_only=True)
            assert all(torch.allclose(state[key], theirs[key], rtol=1e-3, atol=1e-6) for key in theirs), "in 16 bits"


def test_what_is_there_is_left_alone(files, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "base.pt").write_text("mine")
    for command in ("convert", files, tmp_path / "ours"), ("random", tmp_path / "ours", "--preset", "tiny"):
        assert run(*command) == 0
        assert (tmp_path / "ours" / "base.pt").read_text() == "mine"


def test_only_what_a_folder_holds_is_converted(files, tmp_path):
    for name in listing(files):
        if name not in ("upsample.pt", "vocab.bpe"):
            (files / name).unlink()
    assert run("convert", files, tmp_path / "ours") == 0
    assert listing(tmp_path / "ours") == ["upsampler.pt"]


def test_what_cannot_be_converted_is_said(files, tmp_path, capsys):
    (files / "vocab.bpe").unlink()
    assert "vocab.bpe" in failure(capsys, "convert", files, tmp_path / "ours"), "the merge list is missing"
    (files / "vocab.bpe").write_text("mine")
    assert "SHA-256" in failure(capsys, "convert", files, tmp_path / "ours")
    assert "holds none of" in failure(capsys, "convert", tmp_path, tmp_path / "ours")
    assert not (tmp_path / "ours").exists(), "nothing half-written"


def test_exporting_brings_their_files_back(files, tmp_path):
    run("convert", files, tmp_path / "ours")
    assert run("export", tmp_path / "ours", tmp_path / "back") == 0
    weights = [name for _, *names in released.KINDS.values() for name in names]
    assert listing(tmp_path / "back") == sorted(weights)
    for name in weights:
        theirs, back = (torch.load(folder / name, weights_only=True) for folder in (files, tmp_path / "back"))
        assert shapes_of(back) == shapes_of(theirs), f"{name}: the same keys and shapes"
        assert all(torch.equal(back[key], theirs[key].half().float()) for key in theirs), "the same numbers, in 16 bits"


def test_exporting_refuses_what_the_released_code_could_not_draw_with(files, tmp_path, capsys):
    """Their files have no word for another schedule or for v: the network would run there, and draw noise."""
    run("convert", files, tmp_path / "ours")
    path = tmp_path / "ours" / "upsampler.pt"
    for change in {"prediction_type": "v"}, {"schedule": "cosine"}, {"steps": 500}:
        file = unet.read_weights(path)
        torch.save(file | {"diffusion": file["diffusion"] | change}, tmp_path / "changed.pt")
        (tmp_path / "changed").mkdir(exist_ok=True)
        (tmp_path / "changed.pt").replace(tmp_path / "changed" / "upsampler.pt")
        assert "upsampler.pt" in failure(capsys, "export", tmp_path / "changed", tmp_path / "back"), change
    assert not (tmp_path / "back").exists()


def test_exporting_overwrites_nothing(files, tmp_path, capsys):
    run("convert", files, tmp_path / "ours")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "clip_text_enc.pt").write_text("mine")
    assert "clip_text_enc.pt" in failure(capsys, "export", tmp_path / "ours", tmp_path / "back")
    assert listing(tmp_path / "back") == ["clip_text_enc.pt"], "looked at before the first is written"
    assert "holds no base.pt" in failure(capsys, "export", tmp_path / "back", tmp_path / "else")


def test_random_weights_are_of_their_preset(tmp_path):
    assert run("random", tmp_path, "--preset", "tiny", "--kind", "base", "upsampler", "clip") == 0
    network = unet.UNet.load(tmp_path / "base.pt")
    assert network.config == unet.UNET["tiny"]
    for key, value in network.state_dict().items():
        assert value.any(), f"{key}: a fresh network's zeros would answer zero"
    numbers = torch.cat([p.flatten() for p in network.parameters()])
    assert abs(numbers.std() - 0.02) < 1e-4 and abs(numbers.mean()) < 1e-4
    assert guidance.NoisedCLIP.load(tmp_path / "clip.pt").config == guidance.CLIP["tiny"]
    for name, size in {"base": 16, "upsampler": 64}.items():
        file = unet.read_weights(tmp_path / f"{name}.pt")
        assert file["size"] == size and not file["verbatim"] and file["world"] == ""
        assert diffusion.DiffusionConfig(**file["diffusion"]).prediction_type == "v"
        assert tokenizer.load_tokenizer(file).encode("hi") == [71, 72], "bytes only"


# --- The command line ---

def test_fetching_a_group_ends_with_weight_files(server, cache, capsys):
    assert run("fetch", "inpaint", "--mirror", server.url) == 0
    out = capsys.readouterr().out
    assert out.index("base_inpaint.pt") < out.index("parameters"), "what it will bring is said before it comes"
    assert listing(cache / "filtered") == ["inpaint-upsampler.pt", "inpaint.pt"], "where 09 looks for them"
    assert [name for name, _ in server.asked] == ["vocab.bpe", "base_inpaint.pt", "upsample_inpaint.pt"], "once each"
    server.asked.clear()
    (cache / "base_inpaint.pt").unlink()
    assert run("fetch", "inpaint", "--mirror", server.url) == 0 and not server.asked, "nothing is lacking"


def test_a_fetch_goes_on_after_a_failure(server, cache, tmp_path, capsys):
    server.manners["upsample.pt"] = says(b"no", 503)
    assert "upsample.pt" in failure(capsys, "fetch", "--mirror", server.url, "--folder", tmp_path / "ours")
    assert listing(cache) == ["base.pt", "vocab.bpe"], "what came whole before it stays"
    server.manners.clear()
    server.asked.clear()
    assert run("fetch", "--mirror", server.url, "--folder", tmp_path / "ours") == 0
    assert [name for name, _ in server.asked] == ["upsample.pt"]
    assert listing(tmp_path / "ours") == ["base.pt", "upsampler.pt"]


def test_a_dry_run_only_says_what_would_come(monkeypatch, tmp_path, capsys):
    """With the true table: the released sizes, 4 bytes a parameter."""
    monkeypatch.setattr(released, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(released, "fetch", lambda *args: pytest.fail("nothing may be fetched"))
    assert run("fetch", "all", "--dry-run", "--folder", tmp_path / "ours") == 0
    out = capsys.readouterr().out
    assert "1,540 MB  vocab.bpe, base.pt" in out and "1,593 MB  vocab.bpe, upsample.pt" in out and "632 MB" in out
    assert not list(tmp_path.iterdir()), "and leaves nothing behind"


def test_ctrl_c_keeps_what_has_come(server, cache, monkeypatch, capsys):
    def stop(path):
        raise KeyboardInterrupt
    monkeypatch.setattr(released, "read_released", stop)
    assert run("fetch", "--mirror", server.url) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert listing(cache) == ["vocab.bpe.part"]


@pytest.mark.parametrize("mirror", ["nowhere", "ftp:/x", "https://"])
def test_an_address_that_is_none_is_refused_and_costs_no_part(mirror, stand_ins, cache, capsys):
    (cache / "vocab.bpe.part").write_text("half")
    failure(capsys, "fetch", "--mirror", mirror)
    assert (cache / "vocab.bpe.part").read_text() == "half"


def test_paths_may_begin_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert run("random", "~/mine", "--preset", "tiny", "--kind", "clip") == 0
    assert (tmp_path / "mine" / "clip.pt").is_file()


def test_a_folder_that_cannot_be_written_is_said(files, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert "file" in failure(capsys, "convert", files, tmp_path / "file" / "below")


def test_the_demonstration_leaves_a_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(released.unet, "OUTPUTS", tmp_path / "outputs")
    assert run() == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\d)\. ", out, re.M) == ["1", "2", "3", "4"]
    assert "195 of 195" in out or "of 195 tensors, 195" in out, "there and back, nothing is lost"
    assert (tmp_path / "outputs" / "12_released.png").stat().st_size > 10_000


def test_it_runs_from_anywhere(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "GLIDE_CACHE": str(tmp_path / "♥"), "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, SCRIPT, "fetch", "clip", "--dry-run"], cwd=tmp_path, env=environment,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert b"632 MB" in done.stdout and b"?" in done.stdout, "a console without a heart shows a question mark"


# --- Released answers ---

@each_kind
@pytest.mark.parametrize("model", "ab")
def test_small_unets_give_the_released_answers(kind, model):
    kind = GOLDEN_NAMES[kind]
    with torch.no_grad():
        answer = formula.denoiser(kind, model)(formula.inp("x", 3, 3, 16, 16), T, **formula.conditioning(kind, model))
    formula.agree(answer, formula.golden(f"unet.{kind}.{model}"), 1e-4)


def test_a_small_clip_gives_the_released_answers():
    clip = released.load_openai_clip(*(formula.state_dict(f"clip/{tower}-enc", "a") for tower in ("image", "text")))
    with torch.no_grad():
        text = clip.text(formula.toks("clip_tokens", 3, 16, 96), torch.tensor([16, 7, 2]))
        image = clip.image(formula.inp("x", 3, 3, 16, 16), T)
    formula.agree(text, formula.golden("clip.text"), 1e-4)
    formula.agree(image, formula.golden("clip.image"), 1e-4)


def formula_weights(kind):
    """Formula weights of a released size, one dictionary a file. numpy lets go of the interpreter: two threads help."""
    for state in states_of(released.blank(released.config_of(kind))):
        shapes = shapes_of(state)
        with ThreadPoolExecutor() as pool:
            yield dict(zip(shapes, pool.map(formula.weight, shapes, shapes.values())))


@pytest.fixture(scope="module", params=["base", "upsampler"])
def real(request):
    """(kind, weights) of the base model and of the upsampler; of an inpainting variant one tensor is another."""
    return request.param, next(formula_weights(request.param))


@pytest.mark.parametrize("inpaint", [False, True], ids=["plain", "inpaint"])
def test_released_unets_give_the_released_answers(real, inpaint):
    kind, weights = real
    if inpaint:
        key, channels = "input_blocks.0.0.weight", {"base": 7, "upsampler": 10}[kind]
        weights = weights | {key: formula.weight(key, (192, channels, 3, 3))}
    size = {"base": 64, "upsampler": 256}[kind]
    cond = {"tokens": formula.toks("tokens", 1, 128, 50257), "mask": torch.arange(128)[None] < 9}
    if kind == "upsampler":
        cond["low_res"] = formula.inp("low_res", 1, 3, 64, 64).clamp(-1, 1)
    if inpaint:
        known = torch.ones(1, 1, size, size)
        known[:, :, size // 4:size // 2, size // 4:] = 0
        cond |= {"inpaint_image": formula.inp("inpaint_image", 1, 3, size, size).clamp(-1, 1), "inpaint_mask": known}
    with torch.no_grad():
        answer = released.load_openai(weights)(formula.inp("x", 1, 3, size, size), torch.tensor([700]), **cond)
    expected = formula.golden(f"released.{GOLDEN_NAMES[kind]}{'-inpaint' * inpaint}", "released.npz").flatten()
    places = np.linspace(0, answer.numel() - 1, 256).astype(np.int64)
    answer = torch.cat([answer.flatten()[places], answer.mean()[None], answer.std()[None]])
    formula.agree(answer[None], expected[None], 5e-4)


def test_the_released_clip_gives_the_released_answers():
    clip = released.load_openai_clip(*formula_weights("clip"))
    with torch.no_grad():
        text = clip.text(formula.toks("clip_tokens", 2, 77, 65536), torch.tensor([77, 9]))
        image = clip.image(formula.inp("x", 2, 3, 64, 64), torch.tensor([10, 700]))
    formula.agree(text, formula.golden("released.clip.text", "released.npz"), 5e-4)
    formula.agree(image, formula.golden("released.clip.image", "released.npz"), 5e-4)
