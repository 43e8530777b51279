"""One's own pictures: whatever is in a file, the run goes on; and in each epoch everything is seen exactly once."""
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections import Counter
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import small

train = import_module("08_train")
CONFIG = train.DataConfig(size=8, batch=3, bad_share=0.99)


def encoded(image, kind="PNG", **options):
    """A file's bytes."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def flat(grey, size=(11, 8)):
    return Image.new("RGB", size, (grey, grey, grey))


def noise(*size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def folder(path, n):
    """Pictures 0 … n-1, grey of that number, captioned by it."""
    path.mkdir(exist_ok=True)
    for i in range(n):
        (path / f"{i:03}.png").write_bytes(encoded(flat(i)))
        (path / f"{i:03}.txt").write_text(str(i))
    return path


def pair(i, name=None):
    return [(f"{name or i}.png", encoded(flat(i))), (f"{name or i}.txt", str(i).encode())]


def write_tar(path, members, **options):
    """A tar of (name, bytes), or of TarInfos as they are."""
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def shards(path, lengths):
    """Tars of so many examples each, numbered through."""
    path.mkdir(exist_ok=True)
    start = 0
    for k, length in enumerate(lengths):
        write_tar(path / f"{k:05}.tar", sum((pair(i) for i in range(start, start + length)), []))
        start += length
    return path


def read(pictures, batches):
    """What so many batches hold: a list of numbers, which picture and caption must agree about."""
    found = []
    for _ in range(batches):
        x, captions = pictures.next()
        assert x.dtype == torch.uint8 and x.shape == (CONFIG.batch, 3, CONFIG.size, CONFIG.size)
        assert x[:, 0, 0, 0].tolist() == [int(c) for c in captions], "a picture came with another one's caption"
        found += [int(c) for c in captions]
    return found


def one_line(message):
    text = str(message)
    assert text.strip() and "\n" not in text, f"a refusal is one line, not {text!r}"
    return text


# --- One picture ---

@pytest.mark.parametrize("shape, wanted", [((6, 4), np.s_[:, 1:5]), ((7, 4), np.s_[:, 1:5]), ((4, 7), np.s_[1:5, :]),
                                           ((4, 4), np.s_[:, :])])
def test_the_middle_square_is_cut_out(shape, wanted):
    """A picture whose shorter side is as wanted is only cut: 6 columns lose one on each side, 7 lose one and two."""
    image = noise(*shape)
    got = train.square(image, 4).permute(1, 2, 0).numpy()
    assert np.array_equal(got, np.asarray(image)[wanted]), "these pixels stand in the middle, and nothing was resampled"


def test_a_random_square_is_any_of_them_and_the_same_for_the_same_dice():
    image = noise(9, 4)
    squares = {bytes(np.asarray(image)[:, k:k + 4].transpose(2, 0, 1).tobytes()): k for k in range(6)}
    found = [squares.get(train.square(image, 4, random.Random(i)).numpy().tobytes()) for i in range(100)]
    assert set(found) == set(range(6)), f"6 squares fit, pixel for pixel; found {set(found)}"
    assert found[3] == squares[train.square(image, 4, random.Random(3)).numpy().tobytes()]


@pytest.mark.parametrize("side", [20, 24, 64, 200])
def test_what_is_too_fine_becomes_grey(side):
    """A chessboard of single pixels has no picture at half the size or less but its mean: 127.5. Picking every nth
    pixel would make it black, white or striped, and the model would learn to draw stripes."""
    board = (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)
    got = train.square(Image.fromarray(board).convert("RGB"), 8)[:, 1:-1, 1:-1].float()
    assert (got - 127.5).abs().max() <= 3, f"{got.min()} to {got.max()} instead of 127.5"


def test_a_slope_gets_no_steps():
    """A ramp of 8 grey values a pixel, reduced from 30 to 25: a new pixel's middle lies at 1.2·(j + ½) in old pixels,
    where the ramp is 8·(1.2·(j + ½) - ½). Counting whole pixels (Pillow's BOX) is off by up to half of one.
    """
    ramp = np.tile((np.arange(30) * 8).astype(np.uint8), (30, 1))
    got = train.square(Image.fromarray(ramp).convert("RGB"), 25)[0, 12].double()
    wanted = 8 * (1.2 * (torch.arange(25) + 0.5) - 0.5)
    off = (got - wanted).abs()[3:-3].max()
    assert off <= 1, f"off by {off:.1f} grey values: a slanted line would get steps"


def test_a_large_jpeg_is_reduced_while_it_is_decoded():
    """What is left off at decoding was not needed: nearly the pixels that full decoding gives, from a smaller image."""
    x, y = np.meshgrid(np.linspace(0, 9, 600), np.linspace(0, 7, 488))
    picture = Image.fromarray((np.stack([np.sin(x), np.cos(y), np.sin(x + y)], 2) * 100 + 128).astype(np.uint8))
    data = encoded(picture, "JPEG", quality=95)
    quick, whole = train.open_picture(io.BytesIO(data), size=16), train.open_picture(io.BytesIO(data))
    assert whole.size == (600, 488) and 3 * 16 <= min(quick.size) < 488
    off = (train.square(quick, 16).int() - train.square(whole, 16).int()).abs().max()
    assert off <= 4, f"off by {off} of 255"


def ycck(inks, black):
    """Photoshop's JPEG: luminance and chroma of three inks, and the black one. Pillow writes CMYK, each byte turned
    round; the mark that says how the first three are meant, byte 11 of the Adobe segment, is set by hand."""
    data = bytearray(encoded(Image.new("CMYK", (16, 16), (255 - inks, 127, 127, black)), "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def frames():
    pages = [flat(grey, (16, 16)) for grey in (10, 200, 250)]
    return encoded(pages[0], "WEBP", save_all=True, append_images=pages[1:], lossless=True)


def clear_palette():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([9, 9, 9, 70, 80, 90])
    return encoded(image, transparency=1)


# A file of 16 × 16 pixels, all of one colour -> (suffix, bytes, that colour, how far off it may be)
ONE_COLOR = {
    "RGB": (".png", encoded(Image.new("RGB", (16, 16), (10, 20, 30))), (10, 20, 30), 0),
    "grey": (".png", encoded(Image.new("L", (16, 16), 77)), (77, 77, 77), 0),
    "black and white": (".png", encoded(Image.new("1", (16, 16), 1)), (255, 255, 255), 0),
    "a CMYK JPEG": (".jpg", encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 51)), "JPEG"), (0, 204, 204), 2),
    # Without chroma the three inks are all 200, which leaves 55 of 255; black ink of 51 leaves 4/5 of that
    "a YCCK JPEG": (".jpg", ycck(200, 51), (44, 44, 44), 2),
    "half transparent": (".png", encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 51))), (204, 204, 204), 1),
    "grey and transparent": (".png", encoded(Image.new("LA", (16, 16), (0, 0))), (255, 255, 255), 0),
    "a palette's clear colour": (".png", clear_palette(), (255, 255, 255), 0),
    "animated": (".webp", frames(), (10, 10, 10), 1),
    "misnamed": (".jpg", encoded(Image.new("RGB", (16, 16), (10, 20, 30))), (10, 20, 30), 0),
}


@pytest.mark.parametrize("case", ONE_COLOR)
def test_every_kind_of_picture_comes_out_as_one_sees_it(case):
    suffix, data, color, tolerance = ONE_COLOR[case]
    image, caption = train.example([(suffix, data), (".txt", b"a thing")], 8)
    assert image.mode == "RGB" and caption == "a thing"
    off = (train.square(image, 8).float() - torch.tensor(color).view(3, 1, 1)).abs().max()
    assert off <= tolerance, f"{train.square(image, 8)[:, 0, 0].tolist()} instead of {color}"


def test_16_bits_become_8_and_not_white():
    """65,535 is 255 · 257, so a value is divided by 257. Pillow's own conversion would clip: 256 and more are white."""
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    image, _ = train.example([(".png", encoded(Image.fromarray(ramp))), (".txt", b"a ramp")], 8)
    assert np.array_equal(np.asarray(image)[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("orientation, turn", [
    (1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (4, np.flipud),
    (5, lambda a: a.transpose(1, 0, 2)), (6, lambda a: np.rot90(a, -1)),
    (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)), (8, lambda a: np.rot90(a, 1))])
def test_a_photograph_stands_upright(orientation, turn):
    """A camera saves what its sensor saw, and in EXIF how it was held: 6 is to be turned clockwise."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8], pixels[:8, 8:16], pixels[8:, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=95, subsampling=0)
    image, _ = train.example([(".jpg", data), (".txt", b"corners")], 8)
    wanted = turn(pixels)
    assert image.size == wanted.shape[1::-1], f"{image.size} pixels; a picture held upright is higher than wide"
    assert np.abs(np.asarray(image).astype(int) - wanted).max() < 60, "a corner has another corner's colour"


def claims(width, height):
    """A PNG of 60 bytes whose header says that it has so many pixels."""
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GOOD, WORDS = (".png", encoded(noise(16, 16))), (".txt", b"words")
# What lies under one name -> why it is passed over
UNUSABLE = {
    "truncated": ([(".jpg", encoded(noise(64, 64), "JPEG")[:2000]), WORDS], "broken"),
    "half a PNG": ([(".png", GOOD[1][:300]), WORDS], "broken"),
    "no bytes": ([(".png", b""), WORDS], "broken"),
    "text": ([(".jpg", b"<html>404</html>"), WORDS], "broken"),
    "a decoder that is not opened": ([(".png", encoded(noise(16, 16), "GIF")), WORDS], "broken"),
    "one that claims 50,000 × 50,000 pixels": ([(".png", claims(50_000, 50_000)), WORDS], "million pixels"),
    "one that claims a few too many": ([(".png", claims(2 ** 14, 2 ** 13 + 1)), WORDS], "million pixels"),
    "one pixel": ([(".png", encoded(flat(0, (1, 1)))), WORDS], "fewer than 8 pixels"),
    "a strip": ([(".png", encoded(flat(0, (400, 7)))), WORDS], "fewer than 8 pixels"),
    "no caption": ([GOOD], "no caption"),
    "empty": ([GOOD, (".txt", b"")], "no caption"),
    "only white space": ([GOOD, (".txt", b" \n\t\0 ")], "no caption"),
    "JSON without one": ([GOOD, (".json", b'{"width": 3}')], "no caption"),
    "JSON that is no object": ([GOOD, (".json", b'["caption"]')], "no caption"),
    "JSON with a number": ([GOOD, (".json", b'{"caption": 7}')], "no caption"),
    "no JSON": ([GOOD, (".json", b"{'caption': 1")], "damaged caption"),
    "deep JSON": ([GOOD, (".json", b"[" * 100_000)], "damaged caption"),
    "Latin-1": ([GOOD, (".txt", "ein Mädchen".encode("latin-1"))], "not UTF-8"),
    "half a character": ([GOOD, (".json", rb'{"caption": "\ud83d"}')], "not UTF-8"),
    "a caption alone": ([WORDS], "no picture"),
    "two pictures": ([GOOD, GOOD, WORDS], "twice"),
    "two captions": ([GOOD, WORDS, WORDS], "twice"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_passed_over_for_a_reason(case):
    files, why = UNUSABLE[case]
    with pytest.raises(train.Unusable, match=why) as caught:
        train.example(files, 8)
    assert not set(one_line(caught.value)) & set("\\/"), "reasons are counted, so they name no single file"


def test_no_pixel_is_decoded_before_the_header_was_judged(monkeypatch):
    """134 million pixels of a bomb take seconds and 400 MB; of a picture that is too small, a decoding for nothing."""
    from PIL import ImageFile
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for case in ("one that claims 50,000 × 50,000 pixels", "one that claims a few too many", "a strip"):
        with pytest.raises(train.Unusable):
            train.example(UNUSABLE[case][0], 8)


@pytest.mark.parametrize("suffix, data, wanted", [
    (".txt", b"a red heart", "a red heart"), (".txt", b"  a\r\nred\n\n\theart\x00\x1b ", "a red heart"),
    (".txt", b"\xef\xbb\xbfa red heart", "a red heart"), (".txt", "日本 – é".encode(), "日本 – é"),
    (".txt", b"word " * 100_000, ("word " * 200).strip()), (".txt", b"x" * 5000, "x" * 1000),
    (".json", b'{"caption": "a\\nheart", "text": "no"}', "a heart"), (".json", b'{"text": "a heart"}', "a heart"),
    (".json", b'{"caption": "", "text": "a heart"}', "a heart"), (".json", rb'{"text": "\ud83d\ude00"}', "😀")])
def test_captions_are_tidied(suffix, data, wanted):
    assert train.read_caption(suffix, data) == wanted


def test_a_text_goes_before_a_json_unless_it_is_empty():
    found = [train.example([GOOD, (".json", b'{"text": "json"}'), (".txt", text)], 8)[1] for text in (b"text", b"")]
    assert found == ["text", "json"]


# --- Folders ---

@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_table_of_captions(form, tmp_path):
    """A picture with two captions is two examples; one that the table leaves out has its caption beside it."""
    folder(tmp_path / "in", 3)
    folder(tmp_path, 1)
    rows = [{"file": "in/001.png", "caption": "one, or\nmore"}, {"file": "./in/000.png", "caption": "zero"},
            {"file": "in/001.png", "caption": "again"}, {"file": "gone.png", "caption": "x"}]
    if form == "jsonl":
        text = "\n".join(json.dumps(dict(zip(("file_name", "text"), row.values()))) for row in rows) + "\n\n"
    else:
        text = "caption,file,width\n" + "".join('"{caption}",{file},3\n'.format(**row) for row in rows)
    (tmp_path / f"captions.{form}").write_text(text)
    pictures = train.Pictures(tmp_path, train.DataConfig(size=8, batch=5, bad_share=0.5))
    assert sorted(pictures.next()[1]) == ["0", "2", "again", "one, or more", "zero"]
    pictures.next()
    assert pictures.bad["a file that is not there"] >= 1, "a row whose picture is missing is counted"


def test_a_tables_caption_that_is_not_utf8_costs_one_example(tmp_path):
    folder(tmp_path, 2)
    (tmp_path / "captions.csv").write_bytes("file,caption\n000.png,Mädchen\n001.png,girl\n".encode("latin-1"))
    pictures = train.Pictures(tmp_path, train.DataConfig(size=8, batch=2, bad_share=0.9))
    assert pictures.next()[1] == ["girl", "girl"] and set(pictures.bad) == {"a caption that is not UTF-8"}


@pytest.mark.parametrize("name, text", [
    ("captions.jsonl", '{"file": "000.png", "caption": "a"}\n{"file": "../x.png", "caption": "a"}'),
    ("captions.jsonl", '{"file": "000.png", "caption": "a"}\n{"file": "/etc/x.png", "caption": "a"}'),
    ("captions.jsonl", '{"file": "000.png", "caption": "a"}\n{"file": '), ("captions.jsonl", '{"file": "000.png"}\n3'),
    ("captions.jsonl", '{"file": "000.png"}\n' + "[" * 100_000), ("captions.csv", "file,caption\n000.png,a\n,b"),
    ("captions.csv", f"file,caption\n000.png,a\n000.png,{'x' * 200_000}")])
def test_a_table_that_cannot_be_meant_is_refused_at_once(name, text, tmp_path):
    (folder(tmp_path, 1) / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}, entry 2") as caught:
        train.Pictures(tmp_path, CONFIG)
    one_line(caught.value)


def test_hidden_files_and_pipes_are_not_read(tmp_path):
    """An archive made on a Mac has a ._NAME.jpg beside each picture, which is none; at a pipe one waits for ever."""
    folder(tmp_path, 3)
    (tmp_path / "._000.png").write_bytes(b"Mac")
    folder(tmp_path / ".trash", 2)
    os.mkfifo(tmp_path / "pipe.png") if hasattr(os, "mkfifo") else (tmp_path / "pipe.png").mkdir()
    pictures = train.Pictures(tmp_path, CONFIG)
    assert sorted(read(pictures, 1)) == [0, 1, 2]
    read(pictures, 2)
    assert set(pictures.bad) <= {"a file that is not there"}


def test_a_file_that_vanishes_is_counted_and_the_run_goes_on(tmp_path):
    pictures = train.Pictures(folder(tmp_path, 12), CONFIG)
    for i in range(4):
        (tmp_path / f"{i:03}.png").unlink()
    assert Counter(read(pictures, 8)) == Counter(list(range(4, 12)) * 3), "three epochs of what is left"
    assert pictures.bad == Counter({"a file that is not there": pictures.seen - 24}) and pictures.bad.total() >= 8


def test_a_file_is_never_read_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "MAX_BYTES", 1000)
    pictures = train.Pictures(folder(tmp_path, 3), CONFIG)
    (tmp_path / "001.txt").write_text("x" * 1001)
    assert set(read(pictures, 2)) == {0, 2} and sum(pictures.bad.values()) >= 1


@pytest.mark.parametrize("make, word", [
    (lambda path: path / "none", "neither a folder nor a .tar"), (lambda path: path, "holds no pictures"),
    (lambda path: shards(folder(path, 1), [1]), "both"), (lambda path: path / "*.tar", "neither"),
    (lambda path: folder(path / "a", 1) / "000.png", "neither"),
    (lambda path: shards(path, [1, 1]) / "{00000..00002}.tar", "00002.tar.*of 3"),
    (lambda path: path / "{3..1}.tar", "neither")])
def test_where_there_is_nothing_to_read_one_line_says_so(make, word, tmp_path):
    with pytest.raises(ValueError, match=word) as caught:
        train.Pictures(make(tmp_path), CONFIG)
    assert str(tmp_path) in one_line(caught.value)


# --- Shards ---

@pytest.mark.parametrize("pattern", ["", "00000.tar", "*.tar", "{00000..00002}.tar", "{0000..0000}[0-2].tar"])
def test_shards_are_found_by_folder_name_and_pattern(pattern, tmp_path):
    shards(tmp_path, [6] if pattern == "00000.tar" else [2, 3, 1])
    found = read(train.Pictures(f"{tmp_path}/{pattern}", CONFIG), 4)
    assert Counter(found) == Counter(list(range(6)) * 2), "two epochs: everything twice"


def test_braces_count_as_a_shell_does():
    assert train.expand("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert train.expand("{0..1}/{1..2}") == ["0/1", "0/2", "1/1", "1/2"]


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def huge(name, size):
    """A member whose header claims what is not there."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def test_a_hostile_archive_leads_nowhere(tmp_path):
    """Names that lead out of any folder are only names; links and devices are not followed; nothing is written."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(flat(99)))
    inside = tmp_path / "data"
    inside.mkdir()
    write_tar(inside / "a.tar", pair(1, "/etc/one") + pair(2, "../../two") + pair(3, "a/../../three")
              + [special("x.png", tarfile.SYMTYPE, str(secret)), ("x.txt", b"99")]
              + [special("y.png", tarfile.LNKTYPE, "/etc/one.png"), ("y.txt", b"1")]
              + [special("z.png", tarfile.CHRTYPE), ("z.txt", b"0"), special("d.png", tarfile.DIRTYPE)]
              + [special("p.png", tarfile.FIFOTYPE)] + pair(4, "x" * 300) + [("._5.png", b"Mac"), ("5.cls", b"7")])
    before = sorted(tmp_path.rglob("*"))
    pictures = train.Pictures(inside, CONFIG)
    assert read(pictures, 4) == [1, 2, 3, 4] * 3, "in the archive's order"
    assert set(pictures.bad) == {"no picture beside a caption"}, "what a link would have been is missing"
    assert sorted(tmp_path.rglob("*")) == before


def test_what_does_not_belong_together_is_not_joined(tmp_path):
    """One example's files are neighbours; to join others, the archive would have to be held in memory."""
    (a, a_words), (b, b_words) = pair(1), pair(2)
    write_tar(tmp_path / "a.tar", [a, b, a_words, b_words] + pair(3) + [("orphan.png", a[1]), ("lone.txt", b"9")]
              + pair(4) + pair(4) + pair(5, "5.first")   # its suffix is ".first.png"
              + [("6.png", a[1]), ("6.jpg", b[1]), ("6.txt", b"1")] + pair(7))
    pictures = train.Pictures(tmp_path, train.DataConfig(8, 1, bad_share=0.99))
    assert [pictures.next()[1] for _ in range(2)] == [["3"], ["7"]]
    assert pictures.bad == {"no picture beside a caption": 3, "no caption": 3, "one name used twice": 2}, \
        "of two pictures of one name nobody knows which is described"


def cut(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[:keep] if isinstance(keep, int) else keep(data))


# A small member takes a block of 512 bytes for its header and one for what it holds: an example has four
DAMAGE = {
    "in a picture": 4 * 512 + 600, "in a caption": 7 * 512, "in a header": 4 * 512 + 100, "between": 4 * 512,
    "noise in the middle": lambda data: data[:4 * 512] + random.Random(0).randbytes(512) + data[5 * 512:],
}


@pytest.mark.parametrize("case", DAMAGE)
def test_of_a_shard_that_is_cut_off_what_is_whole_is_used(case, tmp_path):
    """Three examples of two members each; the damage is in the second one, and costs the rest."""
    write_tar(tmp_path / "a.tar", pair(1) + pair(2) + pair(3))
    assert len(pair(1)[0][1]) < 512
    cut(tmp_path / "a.tar", DAMAGE[case])
    pictures = train.Pictures(tmp_path, CONFIG)
    assert read(pictures, 2) == [1] * 6
    assert pictures.bad["a shard that is damaged or cut off"] >= 5, "once an epoch"


def test_the_other_shards_do_not_suffer(tmp_path):
    write_tar(tmp_path / "a.tar", pair(1) + pair(2))
    cut(tmp_path / "a.tar", 100)
    (tmp_path / "b.tar").write_bytes(gzip.compress(bytes(10 ** 7)))       # 10 kB that would become 10 MB
    (tmp_path / "c.tar").write_bytes(b"")
    write_tar(tmp_path / "d.tar", [])
    write_tar(tmp_path / "e.tar", pair(5) + pair(6) + pair(7))
    write_tar(tmp_path / "f.tar", pair(1))
    pictures = train.Pictures(tmp_path, CONFIG)
    (tmp_path / "f.tar").unlink()
    assert sorted(read(pictures, 1)) == [5, 6, 7]
    read(pictures, 3)
    assert set(pictures.bad) == {"a shard that is damaged or cut off", "an empty shard", "a shard that is gone"}


@pytest.mark.parametrize("size", [10 ** 15, 10 ** 6, -512, -10 ** 6])
def test_a_size_is_not_believed(size, tmp_path):
    """Neither one beyond the file's end nor one below zero, which would lead tarfile round in circles for ever."""
    info = huge("2.png", max(size, 0))
    info.pax_headers = {"size": str(size)}
    write_tar(tmp_path / "a.tar", pair(1) + [info] + pair(3), format=tarfile.PAX_FORMAT)
    pictures = train.Pictures(tmp_path, CONFIG)
    assert set(read(pictures, 2)) == {1}
    assert set(pictures.bad) == {"a shard that is damaged or cut off"}, "not even looked at"


def test_a_file_that_is_too_large_costs_one_example(tmp_path, monkeypatch):
    """It is passed over, not read; its neighbours are used. The limit holds for tarfile's own reading too: long names
    and extended headers go through memory."""
    monkeypatch.setattr(train, "MAX_BYTES", 4000)
    write_tar(tmp_path / "a.tar", pair(1) + [("2.png", bytes(4001)), ("2.txt", b"2")] + pair(3))
    pictures = train.Pictures(tmp_path, CONFIG)
    assert read(pictures, 2) == [1, 3] * 3 and set(pictures.bad) == {"a file of more than 0 MB"}
    write_tar(tmp_path / "a.tar", pair(1) + [("x" * 5000 + ".png", b"")] + pair(3), format=tarfile.GNU_FORMAT)
    assert read(train.Pictures(tmp_path, CONFIG), 1) == [1, 1, 1], "what comes after such a name is lost"


# --- Whose turn it is ---

class Told(train.Reader):
    """A reader of nothing: it tells which place and which example of it would have been read."""

    def take(self, files, dice):
        self.seen += 1
        return tuple(map(int, dice.split()[1:]))


class Lengths:
    def __init__(self, lengths):
        self.units = lengths

    def examples(self, unit, skip):
        return range(skip, self.units[unit])


def test_nothing_is_lost_and_nothing_comes_twice_however_many_read():
    """By brute force: units of any length, stopped anywhere, dealt out to any number of readers, three times."""
    for trial in range(300):
        rng = random.Random(trial)
        source = Lengths([rng.randint(1, 4) for _ in range(rng.randint(1, 7))])
        n, end, found, marks = len(source.units), 3 * len(source.units), Counter(), None
        for phase in range(4):
            count = rng.randint(1, 5)
            marks = train.deal(marks, count) if marks else [{"begun": [], "next": k} for k in range(count)]
            readers = [Told(source, CONFIG, mark, count) for mark in marks]
            for reader in readers:
                for i, (place, example) in enumerate(reader):
                    found[place, example] += 1
                    if place >= end if phase == 3 else i >= rng.randint(0, 6):
                        break
            marks = json.loads(json.dumps([reader.bookmark() for reader in readers]))
        order = [unit for epoch in range(3) for unit in train.permutation(n, 0, epoch)]
        wanted = {(place, k + 1) for place, unit in enumerate(order) for k in range(source.units[unit])}
        got = Counter({where: times for where, times in found.items() if where[0] < end})
        assert got == Counter(wanted), f"trial {trial}: three epochs, and each example of each once"


def test_readers_of_the_same_number_keep_their_places():
    marks = [{"begun": [[7, 2]], "next": 12}, {"begun": [], "next": 3}]
    assert train.deal(marks, 2) == marks


def test_the_rest_is_dealt_out_by_hand():
    """Of two readers one is at 12, with 10 begun, and one at 3: 3, 5, 7, 9 and 11 have been left out."""
    marks = [{"begun": [[10, 2]], "next": 12}, {"begun": [], "next": 3}]
    assert train.deal(marks, 3) == [{"begun": [[3, 0], [9, 0]], "next": 11}, {"begun": [[5, 0], [10, 2]], "next": 12},
                                    {"begun": [[7, 0]], "next": 13}], "11 was the first that nobody had begun"


def test_readers_in_step_keep_the_order():
    """Two readers after twelve places each: three go on at 24, 25 and 26, as one would at 24."""
    marks = [{"begun": [[22, 1]], "next": 24}, {"begun": [[23, 1]], "next": 25}]
    assert [mark["next"] for mark in train.deal(marks, 3)] == [24, 25, 26]


SETS = {"folder": lambda path: folder(path, 12), "shards": lambda path: shards(path, [3, 4, 2, 3])}


@pytest.fixture(params=SETS)
def data(request, tmp_path):
    """Twelve pictures."""
    return SETS[request.param](tmp_path / "data")


def twice(pictures):
    first, second = read(pictures, 4), read(pictures, 4)
    assert sorted(first) == sorted(second) == list(range(12)) and first != second, "each epoch has its own order"
    assert pictures.seen == 24 and not pictures.bad


def test_in_two_epochs_every_picture_comes_exactly_twice(data):
    twice(train.Pictures(data, CONFIG))


def test_workers_share_an_epoch_out(tmp_path):
    """A folder: of shards one worker may be in the next epoch while another is at the last shard of this one."""
    twice(train.Pictures(folder(tmp_path, 12), CONFIG, workers=2))


def test_together_the_ranks_see_what_one_process_would(tmp_path):
    """Three ranks with batches of 3, and one with batches of 9: the same pictures at every step."""
    folder(tmp_path, 20)
    ranks = [train.Pictures(tmp_path, CONFIG, reader=(k, 3)) for k in range(3)]
    one = train.Pictures(tmp_path, train.DataConfig(size=8, batch=9, seed=CONFIG.seed))
    for _ in range(5):
        apart = sorted(i for rank in ranks for i in read(rank, 1))
        assert apart == sorted(map(int, one.next()[1])), "a global batch does not depend on who reads it"


def test_two_readers_of_the_same_shards_agree(tmp_path):
    """Each shard is read by one of them alone, and together they miss nothing."""
    shards(tmp_path, [3] * 6)
    ranks = [read(train.Pictures(tmp_path, CONFIG, reader=(k, 2)), 3) for k in range(2)]
    assert not set(ranks[0]) & set(ranks[1]), "read twice"
    assert sorted(ranks[0] + ranks[1]) == sorted(read(train.Pictures(tmp_path, CONFIG), 6)) == list(range(18))


def stored(state, path):
    """A state as a checkpoint keeps it, and as JSON could."""
    torch.save(state, path)
    loaded = torch.load(path, weights_only=True)
    assert loaded == state == json.loads(json.dumps(state))
    return loaded


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_reads_on_as_if_nothing_had_been(workers, tmp_path):
    """Bit for bit, random crops too, wherever it was stopped: what workers had made ahead is made again."""
    config = train.DataConfig(size=8, batch=3, seed=5, crop="random", bad_share=0.5)
    for kind in SETS:
        where = SETS[kind](tmp_path / kind)
        for k in range(3):   # wide ones, so that there is something to crop, and a bad one
            (tmp_path / "wide.png").write_bytes(encoded(noise(30, 8, seed=k)))
            if kind == "folder":
                (where / f"{k:03}.png").write_bytes(encoded(noise(30, 8, seed=k)))
                (where / "bad.png").write_bytes(b"")
            else:
                write_tar(where / f"{k:05}.tar", [("w.png", encoded(noise(30, 8, seed=k))), ("w.txt", b"w")] + pair(k)
                          + [("bad.txt", b"")] + pair(7))
        undisturbed = train.Pictures(where, config, workers=workers)
        batches, states = [], [undisturbed.state()]
        for _ in range(9):
            batches.append(undisturbed.next())
            states.append(undisturbed.state())
        for stop in (0, 1, 4):
            resumed = train.Pictures(where, config, workers=workers, state=stored(states[stop], tmp_path / "state"))
            for x, captions in batches[stop:stop + 4]:
                got, said = resumed.next()
                assert said == captions and torch.equal(got, x), f"{kind}, stopped after {stop} batches"
            assert resumed.state() == states[stop + 4]


@pytest.mark.parametrize("before, after", [((1, 0), (3, 0)), ((3, 0), (2, 0)), ((2, 2), (3, 0)), ((2, 0), (1, 2))])
def test_a_run_goes_on_with_other_processes(before, after, tmp_path):
    """(ranks, workers) before and after. Units of one example, so that one can stop at an epoch's end: what was read
    before and after is every picture twice."""
    folder(tmp_path, 36)
    runs = [train.Pictures(tmp_path, CONFIG, reader=(k, before[0]), workers=before[1]) for k in range(before[0])]
    found = sum((read(run, 2 + k) for k, run in enumerate(runs)), [])   # not in step
    state = train.Pictures.merge([run.state() for run in runs])
    ranks, readers = after[0], after[0] * max(1, after[1])
    runs = [train.Pictures(tmp_path, CONFIG, reader=(k, ranks), workers=after[1], state=state) for k in range(ranks)]
    # Read on until two epochs are over for all; what came of the third is taken away by its place
    marks, order = [], [unit for epoch in range(2) for unit in train.permutation(36, 0, epoch)]
    found += sum((read(run, 24) for run in runs), [])
    marks = train.Pictures.merge([run.state() for run in runs])["readers"]
    assert len(marks) == readers and min(mark["next"] for mark in marks) >= 72, "two epochs are over"
    beyond = [p for mark in marks for p in range(72, mark["next"]) if p % readers == mark["next"] % readers]
    third = [int(train.permutation(36, 0, p // 36)[p % 36]) for p in beyond]
    assert Counter(found) == Counter(order) + Counter(third), "nothing lost, nothing twice"


def test_a_state_of_other_files_is_refused(tmp_path):
    state = train.Pictures(folder(tmp_path, 4), CONFIG).state()
    folder(tmp_path, 5)
    with pytest.raises(ValueError, match="other files") as caught:
        train.Pictures(tmp_path, CONFIG, state=state)
    one_line(caught.value)


# --- When to stop ---

@pytest.mark.parametrize("workers", [0, 2])
def test_too_much_that_is_bad_stops_the_run(workers, tmp_path):
    """One in five; a share of 0.3 bears it and 0.1 does not. A worker's error comes without its traceback."""
    folder(tmp_path, 50)
    for i in range(10):
        (tmp_path / f"{i:03}.png").write_bytes(b"" if i < 7 else encoded(flat(0, (1, 1))))
    calm = train.Pictures(tmp_path, train.DataConfig(8, 10, bad_share=0.3), workers=workers)
    for _ in range(12):
        calm.next()
    assert calm.seen >= 120 and set(calm.bad) == {"a broken picture", "fewer than 8 pixels a side"}
    calm.close()
    strict = train.Pictures(tmp_path, train.DataConfig(8, 10, bad_share=0.1), workers=workers)
    with pytest.raises(ValueError, match="more than 10%.*× a broken picture.*× fewer than 8 pixels") as caught:
        for _ in range(100):
            strict.next()
    assert str(tmp_path) in one_line(caught.value)


def test_a_few_bad_ones_at_the_beginning_stop_nothing(tmp_path):
    """Of fewer than 100 a share says little: with seven good ones in ten, ten may well be all bad."""
    folder(tmp_path, 40)
    for i in range(20):
        (tmp_path / f"{i:03}.txt").unlink()
    pictures = train.Pictures(tmp_path, train.DataConfig(8, 3, bad_share=0.0))
    while pictures.seen < 90:
        pictures.next()
    with pytest.raises(ValueError, match="of 100 examples"):
        while True:
            pictures.next()


@pytest.mark.parametrize("workers", [0, 2])
def test_where_nothing_is_usable_the_run_does_not_search_for_ever(workers, tmp_path):
    folder(tmp_path / "small", 3)
    pictures = train.Pictures(tmp_path / "small", train.DataConfig(16, 3, bad_share=0.99), workers=workers)
    with pytest.raises(ValueError, match="nothing here can be used: .* × fewer than 16 pixels") as caught:
        pictures.next()
    one_line(caught.value)
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "empty" / "a.tar", [("readme.md", b"hello")])
    with pytest.raises(ValueError, match="an empty shard"):
        train.Pictures(tmp_path / "empty", CONFIG, workers=workers).next()


def test_a_crop_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="centre or random"):
        train.Pictures(folder(tmp_path, 1), train.DataConfig(8, 1, crop="center"))


# --- Workers ---

def test_workers_leave_the_trainings_dice_alone(tmp_path):
    """Dropout draws from torch's global generator; so would a DataLoader, once, for its workers."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train.Pictures(folder(tmp_path, 3), CONFIG, workers=2).next()
    assert torch.equal(torch.get_rng_state(), before)


READS = """
import importlib, multiprocessing, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)   # who was started in the background inherits deafness to it
sys.path[:0] = [{root!r}]
train = importlib.import_module("08_train")
pictures = train.Pictures({where!r}, train.DataConfig(8, 3), workers=2)
pictures.next(), pictures.next()   # one from each: both have begun
print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
sys.stdin.read()
"""


def alive(pid):
    """Whether a process runs: one that ended and whose parent does not care for it counts as ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("stop", ["Ctrl-C", "signal 9", "the end"])
def test_workers_end_with_their_parent_and_say_nothing(stop, tmp_path):
    """Ctrl-C goes to all processes of a terminal: one traceback, the parent's. Signal 9 tells nobody but the parent."""
    code = READS.format(root=str(small.ROOT), where=str(folder(tmp_path, 3)))
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], start_new_session=True, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2 and all(map(alive, workers))
    if stop == "Ctrl-C":
        os.kill(workers[0], signal.SIGTERM)   # a job's end is told to its workers too
        os.kill(workers[1], signal.SIGINT)
        time.sleep(0.3)
        assert all(map(alive, workers)), "the parent may need one more batch to finish its step"
        os.killpg(parent.pid, signal.SIGINT)
    elif stop == "signal 9":
        parent.kill()
    _, errors = parent.communicate(timeout=20)
    assert errors.count("Traceback") == (stop == "Ctrl-C"), errors
    until = time.time() + 10
    while any(map(alive, workers)) and time.time() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers)), "nobody would ever stop them"
