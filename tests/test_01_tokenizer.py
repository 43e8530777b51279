"""Text becomes integers: merges by hand, padding, the little language; the published vocabularies."""
import gzip
import hashlib
import json
import os
import random
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

tokenizer = import_module("01_tokenizer")
BPETokenizer, CLIPTokenizer = tokenizer.BPETokenizer, tokenizer.CLIPTokenizer
Scene, Thing = tokenizer.Scene, tokenizer.Thing

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "data" / "tokens.json").read_text(encoding="utf-8"))
GOLDEN_TEXTS = [row["text"] for row in GOLDEN]
GPT2_SHA = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
CLIP_SHA = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"


def ids_of(text):
    """Bytes as ids, looked up where the course says they are: visible bytes first."""
    return tuple(tokenizer.SYMBOLS.index(char) for char in text)


def name_of(row):
    """A golden row's name in pytest's list."""
    return row["text"][:20].encode("unicode_escape").decode() or "empty"


def published(name, sha):
    """A published merge list, from the download cache or beside the repository; skips where there is none."""
    cache = Path(os.environ.get("GLIDE_CACHE", "~/.cache/glide-readable")).expanduser()
    for folder in (cache, HERE.parent.parent / "shared" / "vocab"):
        for path in (folder.iterdir() if folder.is_dir() else ()):
            if path.suffix in (".bpe", ".gz") and hashlib.sha256(path.read_bytes()).hexdigest() == sha:
                return path
    pytest.skip(f"{name} (SHA-256 {sha[:8]}…) is neither in {cache} nor in ../shared/vocab; no test downloads")


@pytest.fixture(scope="module")
def gpt2():
    return BPETokenizer.from_gpt2(published("GPT-2's merge list", GPT2_SHA))


@pytest.fixture(scope="module")
def clip():
    return CLIPTokenizer.from_file(published("CLIP's merge list", CLIP_SHA))


# --- Bytes and pieces ---

def test_visible_bytes_come_first():
    assert ids_of("!a~¡ÿĠ") == (0, 64, 93, 94, 187, 220), "188 visible bytes first, then the rest"
    assert sorted(tokenizer.BYTES) == [bytes([b]) for b in range(256)], "every byte has exactly one id"
    assert tokenizer.byte_ids("♥ a") == (158, 247, 98, 220, 64), "♥ is bytes 226 153 165; a space is id 220"


@pytest.mark.parametrize("text, pieces", [
    ("it's we'll i'd", ["it", "'s", " we", "'ll", " i", "'d"]),   # contractions
    ("don'T o'clock", ["don", "'", "T", " o", "'", "clock"]),   # GPT-2's contractions are small letters
    ("a  red   heart ", ["a", " ", " red", "  ", " heart", " "]),   # the last space goes with the word
    ("42 cats, 3.5!", ["42", " cats", ",", " 3", ".", "5", "!"]),   # letters, numbers, others
    ("3½ ④ Ⅷ ²x", ["3½", " ④", " Ⅷ", " ²", "x"]),   # Unicode's numbers are not all digits
    ("a \u00a0b \u0085c", ["a", " ", "\u00a0", "b", " ", "\u0085", "c"]),   # white space, but not *the* space
    ("a \x1cb \x1f", ["a", " \x1c", "b", " \x1f"]),   # no white space, whatever `re` says
    ("snake_case", ["snake", "_", "case"]),   # \w would have taken the underscore
    ("naïve 日本", ["naïve", " 日本"]),
])
def test_gpt2_cuts_by_unicode_category(text, pieces):
    assert tokenizer.cut(tokenizer.GPT2_CUT, text) == pieces, "contractions, letters, numbers, others, spaces"


def test_pieces_lose_nothing():
    rng = random.Random(1)
    for _ in range(300):
        codes = [rng.choice((rng.randrange(0x300), rng.randrange(0x110000), 32, 39)) for _ in range(20)]
        text = "".join(map(chr, codes))
        assert "".join(tokenizer.cut(tokenizer.GPT2_CUT, text)) == text, "pieces put together are the text"


# --- Learning merges ---

# The example of Sennrich et al. (section 3.2), without its end-of-word sign. Counts of the pairs at the start:
#   l-o 7   o-w 7   w-e 8 (2 + 6)   e-r 2   n-e 6   e-w 6   e-s 9   s-t 9   w-i 3   i-d 3   d-e 3
# so e-s is merged first (s-t is as frequent, but is met later), then es-t, and so on down to lowe-r.
WORDS = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
BY_HAND = [("e", "s", 9), ("es", "t", 9), ("l", "o", 7), ("lo", "w", 7), ("n", "e", 6), ("ne", "w", 6),
           ("new", "est", 6), ("w", "i", 3), ("wi", "d", 3), ("wid", "est", 3), ("low", "e", 2),
           ("lowe", "r", 2)]


def test_merges_as_by_hand():
    learned = list(tokenizer.learn_merges(WORDS))
    names = BPETokenizer([pair for pair, _ in learned])
    found = [(names.decode([left]), names.decode([right]), times) for (left, right), times in learned]
    assert found == BY_HAND, "each merge joins the most frequent pair; of equals, the one met first"


def test_train_counts_words_in_texts():
    texts = [word for word, times in WORDS.items() for _ in range(times)]
    trained = BPETokenizer.train(texts, 257 + 5)
    assert [trained.decode([256 + k]) for k in range(5)] == ["es", "est", "lo", "low", "ne"], "merges as by hand"
    assert trained.vocab_size == 262 and trained.end_token == 261, "256 bytes, 5 merges, the end token last"
    assert BPETokenizer.train((t.upper() for t in texts), 262).merges == trained.merges, "capitals do not count"


def test_training_stops_when_words_are_tokens():
    trained = BPETokenizer.train(list(WORDS), 10_000)
    assert trained.vocab_size == 256 + len(BY_HAND) + 1, "no pair is left when every word is one token"
    assert all(len(trained.encode(word)) == 1 for word in WORDS), "every word of the training text is one token"


def test_a_vocabulary_has_at_least_the_bytes_and_the_end_token():
    assert BPETokenizer.train(["a red heart"], 257).merges == []
    with pytest.raises(ValueError, match="257"):
        BPETokenizer.train(["a red heart"], 256)


@pytest.mark.parametrize("before, after", [((5, 5, 5), (9, 5)), ((5, 5, 5, 5), (9, 9)), ((5,), (5,)), ((), ())])
def test_merging_goes_from_the_left_and_never_overlaps(before, after):
    assert tokenizer.merge(before, (5, 5), 9) == after, "a a a becomes new a"


def test_merges_do_not_cross_words():
    trained = BPETokenizer.train(["of the of the of the of the"], 300)
    inside = [token for token in trained.tokens if b" " in token[1:]]
    assert not inside, f"a space may begin a token, but never stands inside one: {inside}"


# --- Encoding and decoding ---

def test_the_merge_learned_first_goes_first():
    a, b, c = ids_of("abc")
    assert BPETokenizer([(b, c), (a, b)]).encode("abc") == [a, 256], "b-c was learned before a-b"
    assert BPETokenizer([(a, b), (b, c)]).encode("abc") == [256, c], "a-b was learned before b-c"


def test_encoding_replays_all_merges_in_order():
    trained = BPETokenizer.train(GOLDEN_TEXTS, 500)
    rng = random.Random(2)
    for _ in range(200):
        piece = "".join(rng.choice("abcdeorst ") for _ in range(12)).strip() or "a"
        for word in tokenizer.cut(tokenizer.GPT2_CUT, piece):
            slow = tokenizer.byte_ids(word)
            for k, pair in enumerate(trained.merges):   # brute force: every merge, in the order learned
                slow = tokenizer.merge(slow, pair, 256 + k)
            assert trained.encode(word) == list(slow), f"{word!r}: the lowest merge first is replaying them all"


def test_any_text_comes_back():
    cased = BPETokenizer(tokenizer.world_tokenizer().merges, lower=False)
    rng = random.Random(3)
    letters = [c for c in map(chr, range(0x110000)) if not 0xD800 <= ord(c) < 0xE000]
    for text in [*GOLDEN_TEXTS, *("".join(rng.choices(letters, k=30)) for _ in range(200))]:
        assert cased.decode(cased.encode(text)) == text, "every byte has an id, so no text is ever unknown"
        small = tokenizer.world_tokenizer()
        assert small.decode(small.encode(text)) == text.lower(), "lower=True, the default, loses capitals only"


def test_no_string_fails():
    world, clip = tokenizer.world_tokenizer(), CLIPTokenizer([])
    for text, back in (("", ""), ("\ud800 a", "? a"), ("\x00", "\x00")):
        assert world.decode(world.encode(text)) == back, "half a surrogate pair is no character and becomes '?'"
        assert clip.decode(clip.encode(text)).strip() == back


def test_a_part_of_a_character_decodes_to_the_replacement_sign():
    plain = BPETokenizer([])
    assert plain.decode(plain.encode("♥")[:2]) == "�", "two of a heart's three bytes are no character"


def test_merges_are_all_a_weight_file_needs():
    world, caption = tokenizer.world_tokenizer(), "three green snowmen on a black background"
    again = tokenizer.load_tokenizer({"tokenizer": json.loads(json.dumps(world.merges))})
    assert again.encode(caption) == world.encode(caption) and again.vocab_size == world.vocab_size, "the same tokenizer"
    assert isinstance(tokenizer.load_tokenizer({"tokenizer": [], "vocabulary": "clip"}), CLIPTokenizer), "or CLIP's"


def test_a_full_cache_changes_nothing():
    world = BPETokenizer(tokenizer.world_tokenizer().merges)
    world.cache = {str(i): () for i in range(50_000)}
    assert world.encode("a red heart") == tokenizer.world_tokenizer().encode("a red heart"), "a cache saves time only"
    assert len(world.cache) < 10, "a full cache is emptied, or a large data set would fill the memory"


# --- Padding ---

def test_pad_fills_with_the_end_token_and_masks_it():
    small = BPETokenizer([])
    assert small.pad([7, 8], 4) == ([7, 8, 256, 256], [True, True, False, False]), "the mask tells padding from text"
    assert small.pad([], 2) == ([256, 256], [False, False]), "an empty caption is all padding"


def test_pad_cuts_what_is_too_long():
    assert BPETokenizer([]).pad([1, 2, 3], 2) == ([1, 2], [True, True]), "no end token is forced in"
    ids = [1, 2, 3]
    BPETokenizer([]).pad(ids, 5)
    assert ids == [1, 2, 3], "the caller's list is not changed"


def test_padding_decodes_to_nothing():
    world = tokenizer.world_tokenizer()
    assert world.decode(world.pad(world.encode("a red heart"), 12)[0]) == "a red heart", "the end token has no text"


def test_clip_pad_keeps_the_end_token():
    bare = CLIPTokenizer([])
    start, end = bare.start_token, bare.end_token
    assert (start, end) == (512, 513), "256 bytes, 256 that end a word, start, end"
    assert bare.pad([5, 6], 6) == ([start, 5, 6, end, 0, 0], 4), "the true length counts start and end"
    assert bare.pad([5, 6, 7, 8], 4) == ([start, 5, 6, end], 4), "the end token, which CLIP reads, is never cut"


# --- CLIP's own rules ---

def test_clip_marks_the_end_of_a_word():
    bare = CLIPTokenizer([])
    a, b = ids_of("ab")
    assert bare.encode("ab b") == [a, b + 256, b + 256], "a byte that ends a word has an id of its own"
    assert bare.decode(bare.encode("ab b")) == "ab b ", "and it decodes to the byte and a space"


@pytest.mark.parametrize("text, same", [
    ("&amp;lt;", "<"), ("  a \n b ", "a b"), ("ABC", "abc"), ("2021", "2 0 2 1"), ("a&nbsp;b", "a b"),
])
def test_clip_cleans_and_cuts(text, same):
    bare = CLIPTokenizer([])
    assert bare.encode(text) == bare.encode(same), "unescape twice, drop white space, lower, single digits"


def test_clip_knows_markers_in_a_text():
    bare = CLIPTokenizer([])
    assert bare.encode("<|StartOfText|><|endoftext|>") == [bare.start_token, bare.end_token], "in either case"
    assert len(BPETokenizer([]).encode("<|endoftext|>")) == 13, "to GLIDE's tokenizer it is thirteen letters"


# --- Files of merges ---

def merge_list(header, lines):
    return "\n".join([header, *lines]).encode()


BAD_FILES = {
    "empty": b"",
    "not text": b"\x89PNG\r\n\xff\xfe",
    "too few merges": merge_list("#version: 0.2", ["i n", "t h"]),
    "another header": merge_list("#version: 0.3", ["i n"] * 50_000),
    "unknown symbols": merge_list("#version: 0.2", ["in g"] * 50_000),
    "not pairs": merge_list("#version: 0.2", ["i n g"] * 50_000),
    "truncated gzip": gzip.compress(merge_list("#version: 0.2", ["i n"] * 50_000))[:-20],
    "damaged gzip": gzip.compress(b"#version: 0.2\ni n\n" * 50)[:12] + b"\xff" * 20,
}


@pytest.mark.parametrize("read", [BPETokenizer.from_gpt2, CLIPTokenizer.from_file])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_merge_lists_are_refused_in_one_line(tmp_path, kind, read):
    path = tmp_path / "merges"
    path.write_bytes(BAD_FILES[kind])
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value), "one line that names the file"


def test_a_missing_merge_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.bpe"):
        BPETokenizer.from_gpt2(tmp_path / "nowhere.bpe")


# --- The little language ---

def scenes(n, **options):
    rng = random.Random(4)
    return [tokenizer.random_scene(rng, **options) for _ in range(n)]


ANY_SCENE = [*scenes(3000), *scenes(1000, held_out=True), *scenes(1000, difficulty="single")]


def test_parse_is_the_inverse_of_caption():
    for scene in ANY_SCENE:
        assert Scene.parse(scene.caption()) == scene, f"{scene.caption()!r} must mean what it was made from"


@pytest.mark.parametrize("scene, caption", [
    (Scene((Thing("heart", "red", "small"), Thing("umbrella", "orange")), 1, "to the left of", "white"),
     "a small red heart to the left of an orange umbrella on a white background"),
    (Scene((Thing("snowman", "green"),), 3), "three green snowmen"),
    (Scene((Thing("cross", "cyan", "large"),), 2, None, "gray"), "two large cyan crosses on a gray background"),
    (Scene((Thing("umbrella", "orange", "small"),)), "a small orange umbrella"),
])
def test_captions_by_hand(scene, caption):
    assert scene.caption() == caption and Scene.parse(caption) == scene, "words to scene and back"


def test_articles_follow_the_next_word():
    for scene in ANY_SCENE:
        words = scene.caption().split()
        for article, word in zip(words, words[1:]):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), f"{article} {word}: an before a vowel, else a"


def test_case_and_spaces_do_not_matter():
    assert Scene.parse("  A Small RED heart \n") == Scene((Thing("heart", "red", "small"),)), "tidied before it is read"


def test_an_unknown_word_is_named_and_the_known_ones_listed():
    with pytest.raises(ValueError) as caught:
        Scene.parse("a Mauve dog above a red heart")
    message = str(caught.value)
    assert "'mauve'" in message and "'dog'" in message and "\n" not in message, "one line that names what is unknown"
    assert "colours: red, green" in message and "nouns: heart" in message, "what could be said instead, by kind"


@pytest.mark.parametrize("text", [
    "", "red heart", "a red", "a heart", "a red hearts", "two red heart", "a red heart above", "a red small heart",
    "a red heart on a red background", "two red hearts above a blue star", "a red heart a blue star",
    "a white heart", "a red heart above a blue star below a pink cloud", "a red heart on a white background a",
])
def test_known_words_in_no_order_are_no_caption(text):
    with pytest.raises(ValueError, match="no caption.*a red heart") as caught:
        Scene.parse(text)
    assert "\n" not in str(caught.value), "one line that shows what a caption looks like"


def test_the_examples_in_the_message_are_captions():
    with pytest.raises(ValueError) as caught:
        Scene.parse("heart")
    for example in str(caught.value).split("these are: ")[1].split("; "):
        Scene.parse(example)


def test_known_and_unknown_words():
    said = {word for scene in ANY_SCENE for word in scene.caption().split()}
    assert said <= tokenizer.known_words(), "captions hold known words only"
    assert tokenizer.known_words() - said == set(), "and every known word is said sooner or later"
    assert tokenizer.unknown_words("A dog, a RED dog, a cat dog") == ["dog,", "dog"], "in order, each once"


def test_held_out_pairs_never_reach_training():
    seen = {(thing.color, thing.noun) for scene in [*scenes(20_000), *scenes(3000, difficulty="single")]
            for thing in scene.things}
    assert not seen & tokenizer.HELD_OUT, "shown in training, a pair is no test of composition"
    for color, noun in tokenizer.HELD_OUT:
        assert any(c == color for c, _ in seen) and any(n == noun for _, n in seen), "but each word alone"
    assert len(tokenizer.HELD_OUT) == 8 and {noun for _, noun in tokenizer.HELD_OUT} <= set(tokenizer.EASY_NOUNS)


@pytest.mark.parametrize("difficulty", ["single", "full"])
def test_held_out_scenes_hold_a_held_out_pair(difficulty):
    first, seen = Counter(), set()
    for scene in scenes(1500, difficulty=difficulty, held_out=True):
        held = [(thing.color, thing.noun) in tokenizer.HELD_OUT for thing in scene.things]
        assert any(held), f"{scene.caption()!r} measures no composition"
        seen |= {(thing.color, thing.noun) for thing in scene.things} & tokenizer.HELD_OUT
        if len(held) == 2:
            first[held[0]] += 1
    assert seen == tokenizer.HELD_OUT, "all held-out pairs are measured"
    if difficulty == "full":
        assert first[True] > 100 and first[False] > 100, "in a pair, the held-out thing is first or second"


def test_single_scenes_are_one_easy_thing():
    drawn = scenes(1000, difficulty="single")
    assert {scene.kind for scene in drawn} == {"single"}, "the first models draw one thing at a time"
    assert {scene.things[0].noun for scene in drawn} == set(tokenizer.EASY_NOUNS), "of the clearest shapes"
    with pytest.raises(ValueError, match="hard"):
        tokenizer.random_scene(random.Random(0), "hard")


def test_full_scenes_come_in_the_promised_shares():
    drawn = scenes(10_000)
    kinds = Counter(scene.kind for scene in drawn)
    for kind, share in (("single", 0.4), ("pair", 0.4), ("count", 0.2)):
        assert kinds[kind] / 10_000 == pytest.approx(share, abs=0.03), f"{kind}: {kinds}"
    relations = Counter(scene.relation for scene in drawn if scene.kind == "pair")
    assert set(relations) == set(tokenizer.RELATIONS) and min(relations.values()) > 800, "relations are even"
    assert sum(scene.background is None for scene in drawn) / 10_000 == pytest.approx(0.5, abs=0.03)
    assert sum(scene.things[0].size is None for scene in drawn) / 10_000 == pytest.approx(0.5, abs=0.03)
    assert {scene.things[0].noun for scene in drawn} == set(tokenizer.NOUNS)
    assert {scene.count for scene in drawn if scene.kind == "count"} == {2, 3}


def test_two_things_differ():
    for scene in scenes(20_000):
        if scene.kind == "pair":
            one, other = scene.things
            assert (one.noun, one.color) != (other.noun, other.color), "two alike would be a count"


def test_the_same_rng_draws_the_same_scenes():
    assert scenes(50) == scenes(50) and scenes(50, held_out=True) == scenes(50, held_out=True), "rng decides everything"
    assert len(set(scenes(50))) > 40, "scenes differ, and can be put into a set"


def test_a_seed_is_made_of_names():
    one, again, other = (tokenizer.seeded_rng("train", step).random() for step in (1, 1, 2))
    assert one == again != other, "the same names give the same numbers"
    assert tokenizer.seeded_rng("train", 1).getrandbits(32) == 1719574506, "… on every machine and in every run"


def test_canonical_says_the_same_picture_one_way():
    a, b = Thing("heart", "red"), Thing("star", "blue", "large")
    for relation, one_way in (("to the left of", Scene((a, b), 1, "to the left of", "gray")),
                              ("to the right of", Scene((b, a), 1, "to the left of", "gray")),
                              ("above", Scene((a, b), 1, "above", "gray")),
                              ("below", Scene((b, a), 1, "above", "gray"))):
        assert Scene((a, b), 1, relation, "gray").canonical() == one_way, f"{relation}: one picture"
    assert Scene((a,), 3).canonical() == Scene((a,), 3), "without a relation there is only one way to say it"


def test_fill_decides_only_what_is_open():
    rng = random.Random(5)
    filled = []
    for scene in scenes(500):
        full = scene.fill(rng)
        filled.append(full)
        assert full.background and all(thing.size for thing in full.things), "a picture leaves nothing open"
        assert scene.background in (None, full.background), "a background that was said stays"
        assert all(t.size in (None, f.size) and (t.noun, t.color) == (f.noun, f.color)
                   for t, f in zip(scene.things, full.things)), "what the caption says stays"
        assert (full.count, full.relation) == (scene.count, scene.relation), "counts and relations are never open"
    assert {scene.background for scene in filled} == set(tokenizer.BACKGROUNDS), "every background gets chosen"


def test_tables_do_not_contradict_each_other():
    assert len(tokenizer.NOUNS) >= 24 and set(tokenizer.EASY_NOUNS) <= set(tokenizer.NOUNS)
    words = [*tokenizer.NOUNS, *tokenizer.NOUNS.values(), *tokenizer.COLORS, *tokenizer.BACKGROUNDS,
             *tokenizer.SIZES, *tokenizer.COUNTS]
    assert len(words) == len(set(words)), "a word in two tables would make captions ambiguous"
    assert not [word for word in words if " " in word or word != word.lower()], "small single words only"


def test_every_word_is_one_token():
    world = tokenizer.world_tokenizer()
    for scene in ANY_SCENE:
        caption = scene.caption()
        assert len(caption.split()) <= 16, "the longest caption: two sizes, to the left of, and a background"
        assert len(world.encode(caption)) == len(caption.split()), f"{caption!r}: one token a word"
    first = {token for token in world.tokens if token in {b"a", b"an", b"two", b"three"}}
    assert len(first) == 4, "the words that begin a caption have no space in front of them"
    assert world.vocab_size < 1024 and world is tokenizer.world_tokenizer(), "small, and made once"


# --- The published vocabularies ---

def test_gpt2_vocabulary(gpt2):
    assert gpt2.vocab_size == 50_257 and gpt2.end_token == 50_256
    assert gpt2.encode("a red heart") == [64, 2266, 2612], "the numbers in the module's opening diagram"


@pytest.mark.parametrize("row", GOLDEN, ids=name_of)
def test_glide_tokens_as_released(gpt2, row):
    ids = gpt2.encode(row["text"])
    assert ids == row["glide"] and gpt2.decode(ids) == row["glide_decoded"]
    padded, mask = gpt2.pad(ids, 128)
    assert (len(padded), len(mask)) == (128, 128) and padded[-1] == row["glide_last"]
    assert sum(mask) == row["glide_mask_true"]


@pytest.mark.parametrize("row", [row for row in GOLDEN if not row["ftfy_changes_it"]],
                         ids=name_of)
def test_clip_tokens_as_released(clip, row):
    ids = clip.encode(row["text"])
    assert ids == row["clip"] and clip.decode(ids) == row["clip_decoded"]
    padded, length = clip.pad(ids, 77)
    assert len(padded) == 77 and length == row["clip_len"]
    assert padded[:8] == row["clip_padded_head"] and padded[-3:] == row["clip_padded_tail"]


def test_clip_vocabulary(clip):
    assert (clip.vocab_size, clip.start_token, clip.end_token) == (49_408, 49_406, 49_407)


def test_the_two_lists_are_not_mixed_up(gpt2, clip):
    with pytest.raises(ValueError, match="version"):
        CLIPTokenizer.from_file(published("GPT-2's merge list", GPT2_SHA))
    with pytest.raises(ValueError, match="version"):
        BPETokenizer.from_gpt2(published("CLIP's merge list", CLIP_SHA))
