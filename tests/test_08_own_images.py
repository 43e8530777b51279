"""Images of one's own: whatever is in a file the run continues, and in each epoch every example comes exactly once."""
import io
import os
import random
import tarfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from small import encoded, flat, folder_of, one_line, pair, same
from test_08_train import EXACT, little, quick, run  # noqa: F401  (quick is a fixture)

train = import_module("08_train")
CASES = Path(__file__).parent / "cases"


# --- Stand-ins ---------------------------------------------------------------------------------------

def write_tar(path, members, **options):
    """A tar of (name, bytes), or of TarInfos as they are."""
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def shards_of(path, lengths):
    """Tars of so many examples each, numbered through."""
    path.mkdir(exist_ok=True)
    ends = np.cumsum(lengths)
    for k, (length, end) in enumerate(zip(lengths, ends)):
        write_tar(path / f"{k:05}.tar", sum((pair(i) for i in range(end - length, end)), []))
    return path


@pytest.fixture
def own(tmp_path):
    """own(paths…, size=8) -> OwnImages, with its index out of the way."""
    def make(*paths, size=8, **options):
        return train.OwnImages(paths, size, index=tmp_path / "run" / "index", **options)
    return make


def numbers(data, positions):
    """Which examples lie at these positions; image and caption must agree about that."""
    found = []
    for position in positions:
        image, caption, shown, _ = data[position]
        assert caption == shown and image[0, 0, 0] == int(caption) % 256, "an image came with another one's caption"
        found.append(int(caption))
    return found


def captions(data):
    """All captions of an epoch, sorted."""
    return sorted(data[i][1] for i in range(len(data)))


@pytest.mark.parametrize("case, words", [
    ("csv-comma", ["row 1", "['a.jpg', 'a cat', ['black']]", "['file', 'caption'",  "quotes round commas"]),
    ("csv-open-quote", ["row 1"]), ("csv-semicolon", ["row 1", "['file;caption']", "need file, caption"])])
def test_a_table_that_was_not_meant_so_is_refused(own, case, words):
    with pytest.raises(ValueError) as refusal:
        own(CASES / case)
    said = one_line(refusal.value)
    for word in ["captions.csv", *words]:
        assert word in said, f"the table, its row and its columns are to be named: {said}"


@pytest.mark.parametrize("case, expected", [
    ("csv-header-space", ["a cat", "a dog"]), ("metadata-jsonl", ["a cat", "a dog"])])
def test_usual_tables_are_read(own, case, expected):
    data = own(CASES / case)
    assert captions(data) == expected and not data.left_out


def test_keys_of_laions_files_are_read(own):
    data = own(CASES / "laion-keys.tar")
    assert len(data) == 2 and "" not in captions(data) and not data[0][3] and not data[1][3], "TEXT is a caption too"


def test_nothing_vanishes_uncounted(own):
    data = own(CASES / "formats")
    assert len(data) == 1, "one .jpg"
    assert data.left_out == {f"a .{suffix} file": 1 for suffix in ("gif", "bmp", "heic", "tiff")}, \
        "what lies beside it is counted, each with its reason"
    data = own(CASES / "dots-in-names.tar")
    assert len(data) + data.left_out.total() == 4, "a name ends at its first dot; what does not fit is counted"
    assert "3 × b, 1 × a" == train.counted(Counter("abbb")), "the most frequent first"


@pytest.mark.parametrize("name, text, expected", [
    ("captions.csv", 'caption,file,width\n"one, or\nmore",0001.png,3\nzero,./0000.png,3\nagain,0001.png,3\n'
                     'x,gone.png,3\n', ["again", "one, or more", "zero"]),
    ("captions.jsonl", '{"file": "0000.png", "caption": "a", "license": null}\n\n{"file": "gone.png", "text": "x"}\n',
     ["1", "a"]),
    ("captions.csv", "\ufefffile,caption\n0000.png,ä\n../../etc/x.png,no\n/etc/y.png,no\n", ["1", "ä"])])
def test_tables_of_captions(own, tmp_path, name, text, expected):
    """An image with two captions is two examples; one that the table leaves out has its caption next to it."""
    (folder_of(tmp_path / "in", 2) / name).write_text(text, encoding="utf-8")
    data = own(tmp_path / "in")
    assert captions(data) == expected and set(data.left_out) == {"a listed file that is not there"}, \
        "a file that is not in the folder is counted; no path leads out of it"


@pytest.mark.parametrize("name, text", [
    ("captions.jsonl", '{"file": "0000.png", "caption": "a"}\n{"file": '),
    ("captions.jsonl", '{"file": "0000.png"}\n3'), ("captions.csv", "file,caption\n0000.png\n"),
    ("captions.jsonl", '{"file": "0000.png", "text": "a"}\n' + "[" * 100_000),
    ("captions.csv", f"file,caption\n0000.png,a\n0000.png,{'x' * 200_000}"), ("captions.csv", "file,caption\n,b")])
def test_a_table_with_a_broken_row_is_refused(own, tmp_path, name, text):
    (folder_of(tmp_path / "in", 1) / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}, row [12] or the one after it: ") as refusal:
        own(tmp_path / "in")
    one_line(refusal.value)


def test_a_table_of_many_rows_takes_no_time(tmp_path):
    (tmp_path / "captions.csv").write_text("file,caption\n" + "".join(f"{i}.png,a cat\n" for i in range(3000)))
    for i in range(3000):
        (tmp_path / f"{i}.png").touch()
    start = time.process_time()
    entries, _ = train.folder_examples(tmp_path)
    assert len(entries) == 3000 and time.process_time() - start < 2, "a look at each row, not at each pair of rows"


@pytest.mark.parametrize("suffix, data, expected", [
    (".txt", b"  a\r\nred\n\n\theart\xc2\xa0\x1b ", "a red heart \x1b"), (".txt", b"\xef\xbb\xbfa heart", "a heart"),
    (".txt", "日本 – é".encode(), "日本 – é"), (".txt", b"word " * 100_000, ("word " * 200).strip()),
    (".json", b'{"caption": "a\\nheart", "text": "no"}', "a heart"), (".json", b'{"TEXT": "a heart"}', "a heart"),
    (".json", b'{"caption": "", "text": "a heart"}', "a heart"), (".json", rb'{"text": "\ud83d\ude00"}', "😀"),
    (".json", rb'{"caption": "\ud83d"}', ""), (".json", b'["caption"]', ""), (".json", b'{"caption": 7}', ""),
    (".json", b"[" * 100_000, ""), (".json", b"{'caption': 1", ""), (".txt", "Mädchen".encode("latin-1"), "")])
def test_captions_are_one_tidy_line_or_none(tmp_path, suffix, data, expected):
    (tmp_path / "file").write_bytes(data)
    assert train.read_caption(suffix, (str(tmp_path / "file"), 0, train.MAX_BYTES)) == expected


def test_suffixes_hidden_files_and_what_comes_in_pairs(own, tmp_path):
    for name, data in [*pair(1, "A"), *pair(2, "B"), *pair(3, "sub/C"), *pair(4, ".hidden"), *pair(5, ".trash/D"),
                       ("E.png", flat(6)), ("E.jpg", flat(6)), ("E.txt", b"6"), ("F.txt", b"7"), ("G.jpeg", flat(8)),
                       ("B.json", b'{"caption": "no"}'), ("notes", b"x"), ("H.JSON", b'{"text": "9"}'),
                       ("H.WebP", flat(9))]:
        path = tmp_path / "in" / name.replace("A.png", "A.PNG").replace("B.txt", "B.TXT")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    os.mkfifo(tmp_path / "in" / "pipe.png") if hasattr(os, "mkfifo") else None      # one would wait for it for ever
    data = own(tmp_path / "in")
    assert sorted(numbers(data, range(4))) == [1, 2, 3, 9] and len(data) == 4, \
        "suffixes in any case, folders below, a .txt before a .json, nothing that begins with a dot"
    assert data.left_out == {"images without a caption, or several of one name": 2, "a caption without an image": 1,
                             "a suffixless file": 1}


# What lies in a file -> why it is not used
UNUSABLE = {
    "truncated": (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:1000], "an image that cannot be read"),
    "empty": (b"", "an image that cannot be read"), "text": (b"<html>404</html>", "an image that cannot be read"),
    "another format": (encoded(Image.new("RGB", (9, 9)), "GIF"), "an image that cannot be read"),
    "one pixel": (flat(0, (1, 1)), "too small an image"), "a strip": (flat(0, (400, 7)), "too small an image")}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_replaced_by_the_next_and_counted(own, tmp_path, case):
    bad, why = UNUSABLE[case]
    data = own(folder_of(tmp_path / "in", 4))
    (tmp_path / "in" / "0002.png").write_bytes(bad)
    positions = range(40)
    replaced = {position: data[position][3] for position in positions if data[position][3]}
    assert len(replaced) >= 10 and all(set(reasons) == {(why, "0002")} for reasons in replaced.values()), \
        "once in each epoch, with its reason and its name"
    assert all(numbers(data, [p]) == numbers(data, [p + 1]) for p in replaced if p + 1 not in replaced), "the next one"


def test_a_single_good_example_among_bad_ones_is_found(own, tmp_path):
    data = own(folder_of(tmp_path / "in", 3))
    for name in ("0000.png", "0002.png"):
        (tmp_path / "in" / name).unlink()
    assert set(numbers(data, range(60))) == {1}, "files may vanish; wherever an epoch ends, one that is there is found"
    (tmp_path / "in" / "0001.txt").write_text(" ")
    with pytest.raises(ValueError, match="none can be used: .*an image that cannot be read, .*a caption that is empty"):
        data[0]


def test_too_many_bad_examples_stop_the_run(own, tmp_path, quick):
    data = own(folder_of(tmp_path / "in", 40), size=16)            # 8 pixels are too few
    good = own(folder_of(tmp_path / "good", 10), size=8)
    with pytest.raises(ValueError, match="of 80 examples none can be used: 80 × too small an image"):
        run(tmp_path / "run", data=data)

    class Mixed:
        def __len__(self):
            return 100

        def __getitem__(self, position):
            image, *rest, _ = good[position]
            return image.repeat_interleave(2, 1).repeat_interleave(2, 2), *rest, [("odd", "x")] * (position % 5 == 0)
    with pytest.raises(ValueError, match=r"of 12\d examples are bad \(--max-bad\): 2\d × odd"):
        run(tmp_path / "mixed", data=Mixed(), training={"steps": 100, "batch": 20}, save_every=1000)
    run(tmp_path / "patient", data=Mixed(), training={"steps": 7, "batch": 20}, save_every=1000, max_bad=0.3)


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_hostile_archive_leads_nowhere(own, tmp_path):
    """Names that lead out of any folder are only names; links and devices are not followed; nothing is written."""
    (tmp_path / "secret.png").write_bytes(flat(99))
    write_tar(tmp_path / "a.tar", pair(1, "/etc/one") + pair(2, "../../two") + pair(3, "a/../../three")
              + [special("x.png", tarfile.SYMTYPE, str(tmp_path / "secret.png")), ("x.txt", b"99")]
              + [special("y.png", tarfile.LNKTYPE, "/etc/one.png"), ("y.txt", b"1")]
              + [special("z.png", tarfile.CHRTYPE), ("z.txt", b"0"), special("d.png", tarfile.DIRTYPE)]
              + [special("p.png", tarfile.FIFOTYPE)] + pair(4, "x" * 300) + [("._5.png", b"Mac"), ("6.cls", b"7")])
    data = own(tmp_path / "a.tar")
    assert sorted(numbers(data, range(len(data)))) == [1, 2, 3, 4]
    assert data.left_out == {"a caption without an image": 3, "a .cls file": 1}, "what is a link is missing"
    assert not (tmp_path / "two.png").exists() and not Path("/etc/one.png").exists()


# A small member takes a block of 512 bytes for its header and one for what it holds: an example has four blocks
DAMAGE = {"in an image": lambda data: data[:4 * 512 + 600], "in a caption": lambda data: data[:7 * 512 + 1],
          "in a header": lambda data: data[:4 * 512 + 100], "between": lambda data: data[:4 * 512],
          "noise": lambda data: data[:4 * 512] + random.Random(0).randbytes(512) + data[5 * 512:]}


@pytest.mark.parametrize("case", DAMAGE)
def test_of_a_damaged_shard_what_is_whole_is_used(own, tmp_path, case):
    """Three examples of two members each; the damage is in the second, and costs the rest."""
    path = write_tar(tmp_path / "a.tar", pair(1) + [("2.png", flat(2)), ("2.txt", b"22")] + pair(3))
    path.write_bytes(DAMAGE[case](path.read_bytes()))
    data = own(path)
    assert numbers(data, [0, 1]) == [1, 1] and len(data) == 1, "neither half an image nor half a caption"
    assert data.left_out["a shard that is damaged or cut off"] == 1


@pytest.mark.parametrize("size", [10 ** 15, 10 ** 6, -512, -10 ** 6])
def test_a_size_is_not_believed(own, tmp_path, size):
    """Neither one beyond the file's end nor one below zero, which would lead a reader round in circles for ever."""
    info = special("2.png", tarfile.REGTYPE)
    info.size, info.pax_headers = 0, {"size": str(size)}
    data = own(write_tar(tmp_path / "a.tar", pair(1) + [info] + pair(3), format=tarfile.PAX_FORMAT))
    assert set(numbers(data, range(4))) <= {1, 3} and data.left_out


def test_bad_shards_do_not_harm_the_others(own, tmp_path):
    shards_of(tmp_path / "in", [3, 2])
    (tmp_path / "in" / "a.tar").write_bytes(b"")
    (tmp_path / "in" / "b.tar").write_bytes(b"\x1f\x8b compressed")
    write_tar(tmp_path / "in" / "c.tar", [])
    data = own(tmp_path / "in")
    assert sorted(numbers(data, range(5))) == [0, 1, 2, 3, 4]
    assert data.left_out == {"a shard that is damaged or cut off": 2}


def test_folders_and_shards_may_be_mixed(own, tmp_path):
    """Whatever is named is read: a folder of shards, a single shard, a folder of images."""
    shards_of(tmp_path / "shards", [2, 1])
    single = write_tar(tmp_path / "one.TAR", pair(3))
    for name, data in pair(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(data)
    assert sorted(numbers(own(tmp_path / "shards", single, tmp_path / "images"), range(5))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("make, words", [
    (lambda path: path / "none", "neither a folder nor a .tar file"), (lambda path: path, "holds no captioned image"),
    (lambda path: folder_of(path / "a", 1) / "0000.png", "neither a folder"),
    (lambda path: write_tar(path / "a.tar", [("readme.md", b"x")]), "holds no captioned image.*1 × a .md file")])
def test_where_there_is_nothing_to_read_it_is_said(own, tmp_path, make, words):
    with pytest.raises(ValueError, match=words) as refusal:
        own(make(tmp_path))
    assert str(tmp_path) in one_line(refusal.value)


@pytest.mark.parametrize("make", [lambda path: folder_of(path, 30), lambda path: shards_of(path, [7, 11, 2, 10])])
def test_every_example_comes_once_an_epoch_in_another_order_each_time(own, tmp_path, make):
    data = own(make(tmp_path / "in"))
    epochs = [numbers(data, range(30 * k, 30 * k + 30)) for k in range(4)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs), "each exactly once"
    assert len(set(map(tuple, epochs))) == 4, "and each epoch has an order of its own"
    again, other = own(tmp_path / "in"), own(tmp_path / "in", seed=1)
    assert numbers(again, range(95, 85, -1)) == sum(epochs, [])[95:85:-1], "a position decides alone"
    assert numbers(other, range(30)) != epochs[0], "another seed is another order"


def test_examples_of_one_shard_are_mixed_with_those_of_others(own, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "BLOCK", 4)
    monkeypatch.setattr(train, "MIXED", 3)
    data = own(shards_of(tmp_path / "in", [10] * 5 + [3]))
    for epoch in range(3):
        order = numbers(data, range(53 * epoch, 53 * epoch + 53))
        assert sorted(order) == list(range(53)), "blocks and windows lose nothing, the short block at the end neither"
        shards = [i // 10 for i in order]
        runs = 1 + sum(a != b for a, b in zip(shards, shards[1:]))
        assert runs > 20, f"neighbours come from different shards: {shards}"
        assert len(set(shards[:12])) >= 2, "a window mixes several blocks"


def test_an_order_of_100_million_examples_needs_little_memory():
    """np.random's permutation of all would take 800 MB in each process, and a second."""
    import tracemalloc
    data = train.OwnImages.__new__(train.OwnImages)
    data.seed, data.ends = 0, np.array([10 ** 8])
    tracemalloc.start()
    first, end = data.window(0, 0), data.window(3, 10 ** 8 // (train.BLOCK * train.MIXED))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(first) == train.BLOCK * train.MIXED and 0 < len(end) <= len(first) and peak < 2 ** 23, f"{peak:,} bytes"
    assert max(end) == 10 ** 8 - 1 and len(np.unique(first)) == len(first) and np.ptp(first) > 10 ** 7


def test_an_index_is_made_once_in_the_runs_folder(own, tmp_path, monkeypatch):
    shards, calls = shards_of(tmp_path / "in", [3, 2]), []
    before, real = sorted(shards.rglob("*")), train.shard_examples
    monkeypatch.setattr(train, "shard_examples", lambda path: calls.append(path.name) or real(path))
    own(shards), own(shards)
    assert sorted(calls) == ["00000.tar", "00001.tar"], "each shard's headers are read once"
    assert sorted(shards.rglob("*")) == before, "nothing is written beside what is the user's"
    assert len(list((tmp_path / "run" / "index").glob("*.jsonl"))) == 2
    write_tar(shards / "00001.tar", pair(3) + pair(4) + pair(5) + pair(6))
    assert len(own(shards)) == 7 and calls[2:] == ["00001.tar"], "and again if it has changed"


def test_random_squares_are_the_same_each_time(own, tmp_path):
    folder_of(tmp_path / "in", 1)
    (tmp_path / "in" / "0000.png").write_bytes(encoded(Image.effect_noise((40, 8), 90).convert("RGB")))
    middle, anywhere, again = own(tmp_path / "in"), *(own(tmp_path / "in", random_crop=True) for _ in range(2))
    squares = [anywhere[i][0] for i in range(20)]
    assert torch.equal(middle[0][0], middle[1][0]) and len({bytes(s.numpy().tobytes()) for s in squares}) > 5
    assert all(torch.equal(again[i][0], squares[i]) for i in (13, 2, 19)), "a position's square depends on nothing else"


@pytest.mark.parametrize("ways", [dict(workers=0), dict(workers=2)])
def test_a_run_on_ones_own_images_resumes_at_any_step_with_the_same_bits(own, tmp_path, ways):
    """A fifth of the files is broken; stopped at step 17, its next batches are those of the run that went on."""
    shards_of(tmp_path / "in", [7, 11, 7])
    data = own(folder_of(tmp_path / "files", 25), random_crop=True, size=8)
    for i in range(0, 25, 5):
        (tmp_path / "files" / f"{i:04}.png").write_bytes(b"")
    trainer = train.Trainer(replace(little(batch=4), size=8), data=data, compute=replace(EXACT, **ways))
    expected = [trainer.batch(step) for step in range(17, 20)]
    trainer.step = 17
    with closing(trainer.batches()) as batches:
        for want in expected:
            got = next(batches)
            assert same(got[0], want[0]) and got[1] == want[1]
    assert any(reasons for _, reasons in expected), "some were replaced on the way"
