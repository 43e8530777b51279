"""Fetching what was released: from a server on loopback that misbehaves in every way a network, a server or a disk can."""
import errno
import hashlib
import io
import os
import re
import socket
import struct
import sys
import threading
import time
import urllib.request
from collections import namedtuple
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from math import prod

import pytest
import torch

import small

unet, sample = import_module("03_unet"), import_module("09_sample")
CONFIGS = {"base": small.preset().network, "upsampler": small.preset("upsampler").network}
LIST = b"#version: 0.2\ni n\nt h\n" * 1000


# --- Stand-ins for the released files ---

def released(config, **options):
    """A small U-Net with random weights as OpenAI would have published it: the bytes of its file."""
    file = io.BytesIO()
    torch.save(sample.export_openai(small.randomize(unet.UNet(config))), file, **options)
    return file.getvalue()


def small_shapes(part, real=sample.released_shapes):
    """What a stand-in must hold: as `released_shapes`, of the small networks. CLIP has no stand-in."""
    if part not in CONFIGS:
        return real(part)
    with torch.device("meta"):
        return sample.shapes_of(sample.export_openai(unet.UNet(CONFIGS[part])))


@pytest.fixture(scope="module")
def published():
    """{name: bytes} of all that the well-behaved server has."""
    return {"vocab.bpe": LIST, "base.pt": released(CONFIGS["base"]), "upsample.pt": released(CONFIGS["upsampler"])}


# --- A server and its manners ---

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
        headers.setdefault("Content_Length", len(body) if length is None else length)
        for name, value in headers.items():
            if value != "":
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.server.sent += len(body)
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, request, address):
        if not isinstance(sys.exc_info()[1], ConnectionError):              # a client may hang up: it has seen enough
            super().handle_error(request, address)


def well(handler, body, etag='"1"'):
    """Sends what is asked for: all, or the rest from a byte on."""
    begin = int(re.sub(r"\D", "", handler.headers["Range"] or "0"))
    if begin and begin >= len(body):
        return handler.reply(416, Content_Range=f"bytes */{len(body)}")
    span = {"Content_Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"} if begin else {}
    handler.reply(206 if begin else 200, body[begin:], ETag=etag, **span)


def knows_no_parts(handler, body):
    handler.reply(200, body, ETag='"1"')


def cut(handler, body):
    """Announces all of it and hangs up in the middle."""
    handler.reply(200, body[:len(body) // 2], length=len(body), ETag='"1"')


def reset(handler, body):
    """Hangs up with a reset, as a machine that crashes does, once a part of what it sent is on the disk."""
    cut(handler, body)
    end = time.monotonic() + 10
    while sample.size_of(handler.server.part) == 0 and time.monotonic() < end:   # a reset also takes back what is not read
        time.sleep(0.01)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hang_at_once(handler, body):
    handler.server.over.wait(10)


def hang_midway(handler, body):
    cut(handler, body)
    handler.wfile.flush()
    handler.server.over.wait(10)


def status(code, **headers):
    return lambda handler, body: handler.reply(code, b"no", **headers)


def says(body, **options):
    """Answers with other bytes, or with the right ones wrongly announced (body None)."""
    return lambda handler, right: handler.reply(200, right if body is None else body, **options)


def spoiled(change):
    """Answers with the right bytes changed, rightly announced."""
    return lambda handler, body: handler.reply(200, change(body))


@pytest.fixture
def server(published, monkeypatch):
    """A server on loopback with .files, .manners {name: how}, and what it was .asked and has .sent."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.manners, server.asked, server.sent = dict(published), {}, [], 0
    server.url, server.over = f"http://127.0.0.1:{server.server_port}/copies", threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def small_table(published, monkeypatch):
    """The table of what there is, with the stand-ins in it; --fetch means one file, unless a test says otherwise."""
    monkeypatch.setattr(sample, "released_shapes", small_shapes)
    for name in CONFIGS:
        size = len(published[sample.RELEASED[name].file])
        monkeypatch.setitem(sample.RELEASED, name, replace(sample.RELEASED[name], size=size))
    digest = hashlib.sha256(LIST).hexdigest()
    monkeypatch.setitem(sample.RELEASED, "merges", replace(
        sample.RELEASED["merges"], check=partial(sample.check_hash, sha256=digest)))
    monkeypatch.setitem(sample.GROUPS, "base", ("base",))
    monkeypatch.setattr(sample, "TIMEOUT", 0.3)
    monkeypatch.delenv("GLIDE_CACHE", raising=False)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


Done = namedtuple("Done", "status out err")


@pytest.fixture
def command(server, cache, capfd):
    """The command itself: command(…) -> status, what it printed, lines of stderr."""
    def run(*argv, mirror=server.url):
        argv = ["--preset", "filtered", "--fetch", *argv, "--mirror", mirror]
        code = sample.main(argv if "--cache" in argv else [*argv, "--cache", str(cache)])
        out, err = capfd.readouterr()
        return Done(code, out, err.splitlines())
    return run


def refused(done, *words):
    """That a refusal is one line with these words, and status 2."""
    assert done.status == 2, "a refusal ends with status 2"
    assert len(done.err) == 1 and done.err[0].startswith("09_sample.py: "), f"one line, not {done.err}"
    for word in words:
        assert word in done.err[0], f"{word!r} is not said in: {done.err[0]}"


def whole(cache, published, *names):
    """That the cache holds exactly these files, whole: no parts, no notes."""
    assert sorted(path.name for path in cache.iterdir()) == sorted(names), "files of these names and nothing else"
    for name in names:
        assert (cache / name).read_bytes() == published[name], f"{name} must be what the server has, to the last byte"


# --- What is missing ---

def test_missing_weights_are_named_with_their_size_and_the_command(cache, capfd, monkeypatch):
    monkeypatch.undo()                                                  # the true table
    monkeypatch.setattr(urllib.request, "build_opener", lambda *args: pytest.fail("fetching must be asked for"))
    code = sample.main(["--preset", "filtered", "an oil painting of a corgi", "--cache", str(cache)])
    refused(Done(code, "", capfd.readouterr().err.splitlines()), "vocab.bpe (456 kB)", "base.pt (1.5 GB)",
            "upsample.pt (1.6 GB)", "about 3.1 GB", f"python 09_sample.py --preset filtered --fetch --cache {cache}")
    assert not cache.exists(), "asking what is missing leaves nothing behind"


@pytest.mark.parametrize("names, group", [(("base",), ""), (("merges", "inpaint"), " inpaint"),
                                          (("clip-text",), " clip"), (("base", "clip-image"), " all")])
def test_the_command_fetches_what_is_missing(names, group, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("GLIDE_CACHE", str(tmp_path))
    said = str(sample.missing(names, tmp_path))
    assert said.endswith(f"python 09_sample.py --preset filtered --fetch{group}"), said
    for name in names:
        (tmp_path / sample.RELEASED[name].file).touch()
    assert sample.missing(names, tmp_path) is None, "a file of that name in the cache is the file"


def test_sizes_follow_from_the_parameters(monkeypatch):
    monkeypatch.undo()
    for name in ("base", "upsampler", "inpaint", "inpaint-upsampler", "clip-image", "clip-text"):
        shapes = sample.released_shapes(name)
        assert sample.RELEASED[name].size == 4 * sum(map(prod, shapes.values())), f"{name}: 4 bytes a parameter"


def test_everything_released_has_an_address(monkeypatch):
    monkeypatch.undo()
    assert all(entry.source.startswith("https://") for entry in sample.RELEASED.values()), "nothing comes unprotected"
    assert len({entry.file for entry in sample.RELEASED.values()}) == 8, "six models, two merge lists"
    assert set(sample.GROUPS["all"]) == set(sample.RELEASED) == {n for g in sample.GROUPS.values() for n in g}


@pytest.mark.parametrize("size, text", [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (456_318, "456 kB"),
                                        (1_356_917, "1.4 MB"), (1_540_122_904, "1.5 GB"), (12e12, "12000 GB")])
def test_sizes_are_said_in_short(size, text):
    assert sample.amount(size) == text


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert sample.cache_folder().parts[-2:] == (".cache", "glide-readable") and sample.cache_folder().is_absolute()
    monkeypatch.setenv("GLIDE_CACHE", str(tmp_path))
    assert sample.cache_folder() == tmp_path


# --- A server that behaves ---

def test_a_group_is_fetched(command, cache, published, monkeypatch):
    monkeypatch.setitem(sample.GROUPS, "base", ("merges", "base", "upsampler"))
    done = command()
    assert done.status == 0, done.err
    whole(cache, published, "vocab.bpe", "base.pt", "upsample.pt")
    assert [line.split(": ")[1] for line in done.out.splitlines()] == ["fetched and checked"] * 3


def test_fetched_weights_load(command, cache):
    assert command().status == 0
    weights = torch.load(cache / "base.pt", weights_only=True)
    assert sample.config_from_shapes({key: value.shape for key, value in weights.items()}).channels == 32


def test_a_mirror_may_end_with_a_slash(command, server, cache, published):
    assert command(mirror=server.url + "/").status == 0
    whole(cache, published, "base.pt")


def test_files_of_an_older_torch_are_read(command, server):
    server.files["base.pt"] = released(CONFIGS["base"], _use_new_zipfile_serialization=False)
    assert command().status == 0, "no zip archive: torch saved so before 1.6"


def test_a_redirect_is_followed(command, server, cache, published):
    server.files["moved.pt"] = published["base.pt"]
    server.manners["base.pt"] = status(302, Location="/elsewhere/moved.pt")
    assert command().status == 0
    whole(cache, published, "base.pt")


def test_a_file_that_is_there_is_not_fetched_again(command, server, cache, published):
    command()
    server.asked.clear()
    done = command()
    assert done.status == 0 and "base.pt: was there, whole" in done.out and not server.asked
    whole(cache, published, "base.pt")


def test_a_full_cache_needs_neither_network_nor_permission(command, cache, monkeypatch):
    command()

    def read_only(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(type(cache), "mkdir", read_only)
    assert command(mirror="http://127.0.0.1:9").status == 0, "a teacher fills the cache, a class reads it"


# --- Transfers that were cut ---

@pytest.mark.parametrize("how", [cut, reset])
def test_a_cut_transfer_is_resumed(command, server, cache, published, how):
    server.manners["base.pt"], server.part = how, cache / "base.pt.part"
    refused(command(), "was cut", "base.pt.part keeps the first", "the same command goes on")
    have = (cache / "base.pt.part").stat().st_size
    assert have > 0 and not (cache / "base.pt").exists(), "half a file must not have the name of the whole"
    assert (cache / "base.pt.part").read_bytes() == published["base.pt"][:have]

    server.manners, server.sent = {}, 0
    assert command().status == 0
    assert server.asked[-1] == ("base.pt", f"bytes={have}-"), "the second fetch asks for the rest"
    assert server.sent == len(published["base.pt"]) - have, "and only the rest is sent"
    whole(cache, published, "base.pt")


@pytest.mark.parametrize("how", [hang_midway, hang_at_once])
def test_a_server_that_falls_silent_is_given_up(command, server, cache, published, how):
    server.manners["base.pt"] = how
    refused(command(), "silent for 0.3 seconds", "try again")
    server.manners = {}
    assert command().status == 0
    whole(cache, published, "base.pt")


def part_of(cache, body, note=None):
    """A part as a cut transfer leaves it."""
    cache.mkdir()
    (cache / "base.pt.part").write_bytes(body)
    if note is not None:
        (cache / "base.pt.part.txt").write_text(note)


def test_where_a_server_knows_no_parts_all_is_sent_again(command, server, cache, published):
    part_of(cache, b"x" * 5000, f'{len(published["base.pt"])} "1"')
    server.manners["base.pt"] = knows_no_parts
    assert command().status == 0
    whole(cache, published, "base.pt")


@pytest.mark.parametrize("note", ['{size} "0"', '17 "1"', "", "{size}"])
def test_a_part_of_another_version_is_not_added_to(command, server, cache, published, note):
    note = note.format(size=len(published["base.pt"]))
    part_of(cache, published["base.pt"][:5000] if not note else b"x" * 5000, note)
    assert command().status == 0, "another ETag or another size: another file, of which no byte may stay"
    assert [asked for _, asked in server.asked] == ["bytes=5000-"] + [None] * bool(note)
    whole(cache, published, "base.pt")


def test_a_part_that_someone_else_began_is_used(command, server, cache, published):
    part_of(cache, published["base.pt"][:5000])
    assert command().status == 0 and server.asked == [("base.pt", "bytes=5000-")]
    whole(cache, published, "base.pt")


@pytest.mark.parametrize("said", ["bytes 0-{last}/{size}", "bytes 4000-{last}/{size}", "bytes 5000-6000/{size}",
                                  "bytes 5000-{last}/*", "nonsense", ""])
def test_a_wrong_rest_is_not_appended(command, server, cache, published, said):
    part_of(cache, published["base.pt"][:5000])

    def wrong_rest(handler, body):
        if handler.headers["Range"] is None or said.startswith("bytes 0-"):
            return handler.reply(200, body)
        handler.reply(206, body[4000:], Content_Range=said.format(last=len(body) - 1, size=len(body)))
    server.manners["base.pt"] = wrong_rest
    assert command().status == 0, "what does not begin where the part ends is fetched from the beginning"
    whole(cache, published, "base.pt")


def test_a_part_longer_than_the_file_is_begun_again(command, server, cache, published):
    part_of(cache, b"x" * (len(published["base.pt"]) + 1))
    assert command().status == 0 and [asked for _, asked in server.asked][1:] == [None], "416, then from the beginning"
    whole(cache, published, "base.pt")


def test_a_part_that_is_all_there_is_only_checked(command, server, cache, published):
    part_of(cache, published["base.pt"], f'{len(published["base.pt"])} "1"')
    assert command().status == 0 and not server.asked, "stopped between the last byte and the check"
    whole(cache, published, "base.pt")


def test_ctrl_c_keeps_the_part(command, server, cache, published, monkeypatch):
    def stop_midway(self, have, total):
        if have > 300_000:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(sample.Progress, "__call__", stop_midway)
        done = command()
    assert done.status == 130 and "the same command goes on" in done.err[-1]
    have = (cache / "base.pt.part").stat().st_size
    assert 300_000 < have < len(published["base.pt"])
    assert command().status == 0 and server.asked[-1] == ("base.pt", f"bytes={have}-")
    whole(cache, published, "base.pt")


# --- What is refused ---

class Bomb:
    """Pickled, a call of os.mkdir: whoever unpickles it has run it."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def bomb():
    file = io.BytesIO()
    torch.save({"weights": Bomb()}, file)
    return file.getvalue()


def flipped(body):
    """One bit of one weight is another: the size is right, the keys are, and so are the shapes."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1:]


PAGE = b"\xef\xbb\xbf\n <!DOCTYPE html><p>Welcome to the airport, please log in"
REFUSED = {   # how the server answers; what the line says
    "not there": (status(404), "is not there (status 404)"),
    "gone": (status(410), "is not there (status 410)"),
    "forbidden": (status(403), "status 403"),
    "broken": (status(500), "status 500 Internal Server Error): try again later"),
    "overloaded": (status(503), "status 503"),
    "a page that says so": (says(PAGE, Content_Type="text/html; charset=utf-8"), "is a web page"),
    "a page in disguise": (says(PAGE, Content_Type="application/octet-stream"), "is a web page"),
    "a redirect to a page": (status(302, Location="/login.html"), "login.html is a web page"),
    "a redirect to a file": (status(302, Location="file:///etc/hostname"), "no web address"),
    "a redirect to ftp": (status(302, Location="ftp://127.0.0.1/base.pt"), "not safe"),
    "a redirect to itself": (status(302, Location="base.pt"), "circles"),
    "no length": (says(None, length=""), "without its size"),
    "a length that is none": (says(None, length="many"), "without its size"),
    "too short a length": (says(None, length=100_000), "damaged"),
    "a file cut on the server": (spoiled(lambda body: body[:-1000]), "damaged"),
    "a wrong bit": (spoiled(flipped), "damaged"),
    "nothing": (says(b""), "damaged"),
    "noise": (says(b"\x00\xff" * 50_000), "holds no weights"),
    "something that runs": (says(bomb()), "holds no weights"),
    "another model": (says(released(CONFIGS["upsampler"])), "it holds another model"),
    "no answer in HTTP": (lambda handler, body: handler.wfile.write(b"hello\r\n\r\n"), "was cut"),
    "no answer at all": (lambda handler, body: None, "cannot reach|was cut"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_file_is_refused(case, command, server, cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    server.files["login.html"] = PAGE
    server.manners["base.pt"], words = REFUSED[case]
    server.manners["login.html"] = says(PAGE, Content_Type="text/html")
    done = command()
    refused(done)
    assert any(word in done.err[0] for word in words.split("|")), f"{words!r} is not said in: {done.err[0]}"
    assert not list(cache.iterdir()), "nothing stays that could be taken for the file, and no part that cannot be resumed"
    assert not (tmp_path / "exploded").exists(), "no fetched file may run code"


def test_too_large_a_length_looks_like_a_cut(command, server, cache):
    server.manners["base.pt"] = says(None, length=10_000_000)
    refused(command(), "was cut after", "of 10 MB", "keeps the first")
    assert not (cache / "base.pt").exists()


def test_a_wrong_merge_list_is_refused(command, server, cache, monkeypatch):
    monkeypatch.setitem(sample.GROUPS, "base", ("merges",))
    server.files["vocab.bpe"] = LIST[:-4] + b"h t\n"
    refused(command(), "vocab.bpe", "SHA-256", "nothing of it was kept")
    assert not list(cache.iterdir())


def test_a_unet_is_no_clip(command, server, cache, published, monkeypatch):
    monkeypatch.setitem(sample.GROUPS, "base", ("clip-text",))
    server.files["clip_text_enc.pt"] = published["base.pt"]
    refused(command(), "another model (")
    assert not list(cache.iterdir())


def test_a_login_page_spoils_no_part(command, server, cache, published):
    part_of(cache, published["base.pt"][:5000])
    server.manners["base.pt"] = says(PAGE, Content_Type="text/html")
    refused(command(), "is a web page", "base.pt.part keeps the first 5.0 kB")
    assert (cache / "base.pt.part").read_bytes() == published["base.pt"][:5000]


def test_no_server_is_said(command, cache):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))                                   # a port at which nobody listens
        refused(command(mirror=f"http://127.0.0.1:{unused.getsockname()[1]}"), "cannot reach 127.0.0.1", "online?")
    assert not list(cache.iterdir())


def test_no_network_is_said(command, monkeypatch):
    def no_names(*args, **options):
        raise socket.gaierror(-3, "Temporary failure in name resolution")
    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    refused(command(mirror="https://example.invalid/x"), "cannot reach example.invalid", "online?")


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://127.0.0.1/x", "data:text/plain,x", "/home/me/copies", "https://",
                                    "http://a b/c", "https://bücher.example/x", "http://127.0.0.1/x\nHost: y"])
def test_only_web_addresses_are_fetched_from(command, mirror, cache):
    refused(command(mirror=mirror), "no address to fetch from", "https://")
    assert not cache.exists()


def test_https_is_not_left():
    def redirect(start, target):
        request = urllib.request.Request(start)
        return sample.SafeRedirects().redirect_request(request, None, 302, "Found", {}, target)
    assert redirect("https://a/x", "https://b/y").full_url == "https://b/y"
    assert redirect("http://a/x", "http://b/y").full_url == "http://b/y", "who asked without protection may go on so"
    with pytest.raises(ValueError, match="not safe"):
        redirect("https://a/x", "http://b/y")


def test_the_second_failure_leaves_the_first_file(command, server, cache, published, monkeypatch):
    monkeypatch.setitem(sample.GROUPS, "base", ("merges", "base", "upsampler"))
    server.manners["base.pt"] = status(404)
    done = command()
    assert done.status == 2 and "base.pt is not there" in done.err[-1] and "vocab.bpe: fetched" in done.out
    whole(cache, published, "vocab.bpe")


@pytest.mark.parametrize("damage", [b"", b"mine", flipped])
def test_a_damaged_file_is_named_and_left_alone(command, server, cache, published, damage):
    cache.mkdir()
    mine = damage(published["base.pt"]) if callable(damage) else damage
    (cache / "base.pt").write_bytes(mine)
    refused(command(), str(cache / "base.pt"), "remove it, and the same command fetches it anew")
    assert (cache / "base.pt").read_bytes() == mine and not server.asked, "nothing of the user's is overwritten"


def test_a_folder_of_that_name_is_left_alone(command, cache):
    (cache / "base.pt").mkdir(parents=True)
    refused(command(), str(cache / "base.pt"), "remove it")


def test_a_mirror_without_a_fetch_is_refused(capfd):
    code = sample.main(["a red heart", "--mirror", "https://example.invalid"])
    refused(Done(code, "", capfd.readouterr().err.splitlines()), "--mirror", "--fetch")


def test_two_fetches_do_not_write_to_one_part(command, server, cache):
    pytest.importorskip("fcntl")
    cache.mkdir()
    with sample.alone(cache):
        refused(command(), "another fetch", "wait until it has ended")
    assert not server.asked and not list(cache.iterdir())
    assert command().status == 0, "a lock ends with its owner"


# --- The disk ---

def test_too_small_a_disk_is_said_before_anything_is_written(command, cache, monkeypatch):
    monkeypatch.setattr(sample.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    refused(command(), "room for 1.0 kB", "--cache")
    assert not list(cache.iterdir())


def opening(path, error, after):
    """An `open` whose files of this name fail with this error when `after` bytes are in them."""
    def fake(name, *args, **options):
        file = open(name, *args, **options)
        if os.path.basename(name) != path:
            return file

        class Failing(io.BufferedWriter):
            def write(self, piece):
                if self.tell() + len(piece) > after:
                    raise error
                return super().write(piece)
        return Failing(file.detach())
    return fake


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_what_it_has(command, server, cache, published, monkeypatch, code):
    with monkeypatch.context() as patch:
        patch.setattr(sample, "open", opening("base.pt.part", OSError(code, os.strerror(code)), 300_000), raising=False)
        refused(command(), "is full", str(cache), "base.pt.part keeps the first", "the same command goes on")
    assert not (cache / "base.pt").exists()
    assert command().status == 0 and server.asked[-1][1].startswith("bytes=")
    whole(cache, published, "base.pt")


def test_a_read_only_cache_is_said(command, cache, monkeypatch):
    def read_only(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(sample, "open", read_only, raising=False)
    refused(command(), f"cannot write to {cache} (Permission denied)", "--cache", "GLIDE_CACHE")


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_cache_that_can_be_no_folder_is_said(command, tmp_path, where):
    (tmp_path / "file").write_text("mine")
    refused(command("--cache", str(tmp_path / where)), f"cannot write to {tmp_path / where}", "--cache")
    assert (tmp_path / "file").read_text() == "mine"


# --- Progress ---

def told(monkeypatch, terminal):
    """What is written to stderr about a transfer that brings a megabyte a second, resumed at 100 of 135."""
    clock, stream = iter(range(1000)), io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sample.sys, "stderr", stream)
    monkeypatch.setattr(sample.time, "monotonic", lambda: float(next(clock)))
    show = sample.Progress("base.pt")
    for megabytes in range(100, 136):
        show(megabytes * 10 ** 6, 135 * 10 ** 6)
    return stream.getvalue()


def test_on_a_terminal_one_line_is_rewritten(monkeypatch):
    written = told(monkeypatch, terminal=True)
    assert written.count("\n") == 1 and written.endswith("\n") and written.count("\r") == 34, "a line, rewritten"
    assert "base.pt: 110.0 of 135.0 MB, 1.0 MB/s, 0:25 left" in written, "the speed is of this transfer alone"


def test_elsewhere_a_line_is_written_now_and_then(monkeypatch):
    lines = told(monkeypatch, terminal=False).splitlines()
    assert [line.split(" of")[0] for line in lines] == ["base.pt: 110.0", "base.pt: 120.0", "base.pt: 130.0"]
    assert told(monkeypatch, terminal=False).count("\r") == 0, "a log file shows no rewriting"
