r"""
01 · Text becomes integers.

A network adds and multiplies, so a caption must first become a list of integers. Byte-pair encoding finds
that list. It starts from bytes, of which there are only 256, and merges the most frequent pair of neighbours,
again and again, until the words of the language are single tokens:

    "a red heart"                                 a text
        │  UTF-8
    a · r e d · h e a r t                         11 bytes: no text is ever unknown
        │  merges, learned once; GPT-2's hold  h e → "he"   r e → "re"   · re → "·re"   ·re d → "·red"
    [a] [·red] [·heart]                           3 tokens; in GPT-2's numbers 64, 2266, 2612
        │  pad
    64 2266 2612 end end end end end              a fixed length …
     1    1    1   0   0   0   0   0              … and a mask that tells which of them are the caption

Three vocabularies use this method: the one we train ourselves, GPT-2's, which is GLIDE's too, and CLIP's.
The second half of the file is the little language: captions like "a small red heart above a large blue
umbrella", drawn at random and parsed back, so that later files can train on a laptop and *measure* whether
a picture shows what its caption says. Left out are text repair (the released CLIP tokenizer first runs its
text through the package ftfy) and meaning, which begins in 02.

Papers: byte-pair encoding for words, Sennrich et al. 2016, arXiv 1508.07909 (section 3.2, algorithm 1);
on bytes, GPT-2, Radford et al. 2019 (section 2.2); CLIP, Radford et al. 2021, arXiv 2103.00020 (section
2.4); GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4: a caption becomes K tokens).

    python 01_tokenizer.py        about two seconds: bytes, merges being learned, padding, captions
                                  and what they claim; outputs/01_tokenizer.png: letters growing into words
"""
import colorsys
import gzip
import html
import random
import re
import unicodedata
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, count, islice
from pathlib import Path

# --- Bytes ---

# A vocabulary needs some order of its 256 bytes. GPT-2's starts with those that are a visible character in
# Latin-1, followed by the other 68: the letter a, byte 97, has id 64, and the space, byte 32, has id 220.
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [bytes([b]) for b in VISIBLE + [b for b in range(256) if b not in VISIBLE]]      # id -> byte
ID_OF_BYTE = {byte[0]: i for i, byte in enumerate(BYTES)}

# Published merge lists are text files, so every byte has a character there. The visible ones stand for
# themselves, the others for U+0100, U+0101, …: the space, the 33rd of them, is the famous "Ġ".
SYMBOLS = [chr(byte) for byte in VISIBLE] + [chr(256 + i) for i in range(68)]


def byte_ids(piece):
    """The UTF-8 bytes of a piece of text, as a tuple of ids 0 … 255.

    Half of a surrogate pair is not a character and has no UTF-8 form. It becomes "?", so that no string can fail.
    """
    return tuple(ID_OF_BYTE[byte] for byte in piece.encode("utf-8", "replace"))


# --- Pieces: no merge crosses their boundaries ---

# Without boundaries "dog." and "dog!" would become tokens of their own (GPT-2, section 2.2). GPT-2 cuts off
# contractions, then runs of letters, of numbers, of anything else, each with the one space in front of it.
# The last character of a longer run of white space is left for the word that follows.
GPT2_CUT = re.compile(r"'(?:[sdmt]|re|ve|ll)| ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|\s+(?!\S)|\s+", re.ASCII)

# CLIP drops white space, takes digits one by one, and recognises its two markers in a text.
CLIP_MARKERS = ("<|startoftext|>", "<|endoftext|>")
CLIP_CUT = re.compile(r"<\|(?:start|end)oftext\|>|'(?:[sdmt]|re|ve|ll)|[a-z]+|[0-9]|[^\sa-z0-9]+", re.ASCII)


def stand_in(char):
    r"""The ASCII character that stands in for this one while a text is cut: x, 0, line feed or #.

    The published patterns use Unicode's classes of letters, numbers and white space. Python's `re` has no name
    for the first two, and its \s includes U+001C–1F, which Unicode and the released code do not count as white
    space. So we decide by Unicode category, and our patterns need ASCII only. (A character newer than your
    Python's tables has no category yet, and counts as "anything else".)
    """
    if char < "\x80":
        return char
    category = unicodedata.category(char)[0]                # L letter, N number, Z white space
    return "\n" if char == "\x85" else {"L": "x", "N": "0", "Z": "\n"}.get(category, "#")


def cut(pattern, text):
    """The pieces of a text, a list of strings. Each character has one stand-in, so the spans are the same."""
    shape = text if text.isascii() else "".join(map(stand_in, text))
    return [text[found.start():found.end()] for found in pattern.finditer(shape)]


# --- Merges ---

# With bytes alone a caption would be about forty tokens long, and attention (02) costs the square of that. With a
# token for every word it would be short, but no list of words is ever complete. Merges are a compromise:
# frequent words become one token, rare ones a few, and anything else stays bytes.

def merge(ids, pair, new):
    """A tuple of ids in which `new` replaces each occurrence of the pair, from the left: a a a -> new a."""
    out = []
    for i in ids:
        if out and (out[-1], i) == pair:
            out[-1] = new
        else:
            out.append(i)
    return tuple(out)


def learn_merges(pieces):
    """Algorithm 1 of Sennrich et al.: count the pairs of neighbours, merge the most frequent one, count again.

    pieces: {piece of text: how often it occurs}. Yields (pair, how often it occurred), one merge at a time,
    until every piece is one token. If several pairs are equally frequent, the first one found wins. Each distinct
    piece is looked at only once, however often it occurs; this makes it cheap to count everything again.
    """
    words = {byte_ids(piece): times for piece, times in pieces.items()}
    for new in count(256):
        pairs = Counter()
        for ids, times in words.items():
            for pair in zip(ids, ids[1:]):
                pairs[pair] += times
        if not pairs:                                       # every piece is one token: nothing left to merge
            return
        best = max(pairs, key=pairs.get)
        words = {merge(ids, best, new): times for ids, times in words.items()}
        yield best, pairs[best]


def read_merges(path, alphabet, header, wanted):
    """The first `wanted` merges of a published list, as pairs of ids.

    alphabet: the symbols of the first ids; header: what the file's first line must be. Each later line names
    two symbols, which joined together are the next symbol (no published list makes a symbol twice).
    Raises FileNotFoundError, or ValueError for a file that is damaged, truncated or something else.
    """
    ids, merges = {symbol: i for i, symbol in enumerate(alphabet)}, []
    data = Path(path).read_bytes()
    try:
        # CLIP's list is compressed and GPT-2's is not; the first two bytes tell which it is.
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        first, *lines = data.decode("utf-8").splitlines()
        if first != header or len(lines) < wanted:
            raise ValueError(f"it holds {len(lines):,} merges after a first line that reads {first[:60]!r}")
        for line in lines[:wanted]:
            left, right = line.split(" ")
            merges.append((ids[left], ids[right]))
            ids[left + right] = len(ids)
    except (OSError, EOFError, zlib.error, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not the list of {wanted:,} merges, or is damaged: {error}") from None
    return merges


# --- Tokenizers ---

class BytePairs:
    """A vocabulary: an alphabet, then what merges make of it, then markers. The base of both tokenizers.

    alphabet, markers: lists of bytes objects, which the first and the last ids stand for. merges: pairs of ids
    in the order in which they were learned; merge k makes id len(alphabet) + k out of two smaller ids.
    """
    def __init__(self, alphabet, merges, markers):
        self.merges = [(left, right) for left, right in merges]         # from a file they may come as lists
        self.new_id = {pair: len(alphabet) + k for k, pair in enumerate(self.merges)}
        self.tokens = list(alphabet)                        # id -> the bytes that it stands for
        for left, right in self.merges:
            self.tokens.append(self.tokens[left] + self.tokens[right])
        self.tokens += markers
        self.vocab_size = len(self.tokens)                  # the largest id is one less
        self.cache = {}                                     # piece -> ids, since captions repeat their words

    def merge_all(self, ids):
        """Merges the pair that was learned first, of all that are present, again and again until none is left.

        It is the first learned, not the first in the text, so merges are replayed in the order they were made in.
        """
        while pairs := self.new_id.keys() & set(zip(ids, ids[1:])):
            first = min(pairs, key=self.new_id.get)
            ids = merge(ids, first, self.new_id[first])
        return ids

    def piece_ids(self, piece, start):
        """A piece as a tuple of ids; start(piece) spells it in ids of the alphabet."""
        ids = self.cache.get(piece)
        if ids is None:
            if len(self.cache) >= 50_000:                   # captions from the web never run out of new words
                self.cache.clear()
            ids = self.cache[piece] = self.merge_all(start(piece))
        return ids

    def decode(self, ids):
        """The text that ids stand for. Raises IndexError for an id that the vocabulary does not have.

        A character may be spread over several tokens; if some of its bytes are missing, it becomes U+FFFD.
        """
        return b"".join([self.tokens[i] for i in ids]).decode("utf-8", "replace")


class BPETokenizer(BytePairs):
    """Byte pairs as in GPT-2: ids 0 … 255 are bytes, followed by the merges in order and the end token.

    A weight file only has to keep its merges: BPETokenizer(tokenizer.merges) is the same tokenizer again.
    lower: whether texts are lower-cased before encoding, as in GLIDE. The end token decodes to nothing.
    """
    def __init__(self, merges, *, lower=True):
        super().__init__(BYTES, merges, [b""])
        self.lower = lower
        self.end_token = self.vocab_size - 1

    @classmethod
    def train(cls, texts, vocab_size):
        """Learns merges from texts, an iterable of strings, until the vocabulary has vocab_size ids.

        It stays smaller if all words become single tokens first, since no pair is left to merge then.
        Raises ValueError for a vocab_size below 257, which the bytes and the end token need.
        """
        if vocab_size < 257:
            raise ValueError(f"vocab_size is {vocab_size}; the 256 bytes and the end token alone make 257")
        pieces = Counter(piece for text in texts for piece in cut(GPT2_CUT, text.lower()))
        return cls([pair for pair, _ in islice(learn_merges(pieces), vocab_size - 257)])

    @classmethod
    def from_gpt2(cls, path):
        """GLIDE's vocabulary of 50,257, from vocab.bpe, GPT-2's 50,000 merges. Raises what read_merges raises.

        GLIDE keeps GPT-2's ids, its end token 50256 included, but lower-cases the text.
        """
        return cls(read_merges(path, SYMBOLS, "#version: 0.2", 50_000))

    def encode(self, text):
        """Any text as a list of ids, without the end token. An empty text gives an empty list."""
        pieces = cut(GPT2_CUT, text.lower() if self.lower else text)
        return [i for piece in pieces for i in self.piece_ids(piece, byte_ids)]

    def pad(self, ids, length):
        """(ids, mask), two lists of this length: ids that are too many are cut off, missing ones filled in.

        The padding is the end token, and the mask is False there: 02 replaces it by learned vectors.
        """
        ids = list(ids)[:length]
        missing = length - len(ids)
        return ids + [self.end_token] * missing, [True] * len(ids) + [False] * missing


class CLIPTokenizer(BytePairs):
    """CLIP's byte pairs, for the released noised CLIP (05). A byte at the end of a word has an id of its own, so
    "art" and "artist" begin with different tokens.

    ids: 256 bytes, the same bytes at the end of a word, the merges, start_token, end_token.
    """
    def __init__(self, merges):
        endings = [byte + b" " for byte in BYTES]           # the file's "</w>" decodes to a space
        super().__init__(BYTES + endings, merges, [marker.encode() for marker in CLIP_MARKERS])
        self.start_token, self.end_token = self.vocab_size - 2, self.vocab_size - 1

    @classmethod
    def from_file(cls, path):
        """CLIP's vocabulary of 49,408, from bpe_simple_vocab_16e6.txt.gz. Raises what read_merges raises.

        The file holds 262,144 merges. CLIP uses the first 48,894; with 512 bytes and 2 markers that is 49,408 ids.
        """
        alphabet = SYMBOLS + [symbol + "</w>" for symbol in SYMBOLS]
        return cls(read_merges(path, alphabet, '"bpe_simple_vocab_16e6.txt#version: 0.2', 48_894))

    def encode(self, text):
        """Any text as a list of ids, without the start and end tokens that `pad` adds.

        Captions from web pages have &amp;amp; for &, so they are unescaped twice. The released code also collapses
        white space, which would change nothing here, because no piece contains any.
        """
        text = html.unescape(html.unescape(text)).strip().lower()
        markers = dict(zip(CLIP_MARKERS, [(self.start_token,), (self.end_token,)]))
        return [i for piece in cut(CLIP_CUT, text)
                for i in markers.get(piece) or self.piece_ids(piece, word_ids)]

    def pad(self, ids, length):
        """([start, *ids, end, 0, …], true length): a list of this length, at least 2, and how much of it is text.

        If there are too many ids they are cut, but the end token stays, because CLIP reads a text's meaning there.
        """
        ids = [self.start_token, *list(ids)[:length - 2], self.end_token]
        return ids + [0] * (length - len(ids)), len(ids)


def word_ids(piece):
    """byte_ids for CLIP: the last byte ends a word, so its id is 256 larger."""
    *first, last = byte_ids(piece)
    return (*first, last + 256)


def load_tokenizer(saved):
    """The tokenizer of a weight file (03), from the merges in it: a CLIPTokenizer if its vocabulary is "clip", else a
    BPETokenizer."""
    return (CLIPTokenizer if saved.get("vocabulary") == "clip" else BPETokenizer)(saved["tokenizer"])


# --- The little language ---

# What there is to draw, and its plural. 04 has a glyph for every noun.
NOUNS = {noun: noun + "s" for noun in (
    "heart star umbrella cloud sun moon house diamond anchor airplane flower club spade telephone envelope "
    "knight rook queen note skull flag gear smiley pencil bolt cat").split()}
NOUNS |= {"snowman": "snowmen", "cross": "crosses"}

# The clearest shapes, for a first model that draws one thing at a time.
EASY_NOUNS = tuple("heart star umbrella cloud sun moon house diamond anchor airplane cross flower".split())
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "cyan")
BACKGROUNDS = ("white", "gray", "black", "brown")           # no thing has these colours, so it is always visible
SIZES = ("small", "large")
RELATIONS = ("to the left of", "to the right of", "above", "below")
COUNTS = {"two": 2, "three": 3}

# Training shows each of these colours and each of these nouns, but never these pairs. Can a model that has seen
# green stars and red hearts draw a green heart? That tests composition.
HELD_OUT = frozenset({("green", "heart"), ("purple", "star"), ("orange", "umbrella"), ("pink", "cloud"),
                      ("cyan", "moon"), ("yellow", "house"), ("blue", "diamond"), ("red", "anchor")})

# What follows from these tables.
SINGULAR = {plural: noun for noun, plural in NOUNS.items()}
OPPOSITES = {"to the right of": "to the left of", "below": "above"}
WORDS = {"nouns": NOUNS, "colours": COLORS, "sizes": SIZES, "counts": COUNTS, "relations": RELATIONS,
         "backgrounds": BACKGROUNDS, "and": ("a", "an", "on", "background")}


def known_words():
    """The set of all words that a caption may hold."""
    return {word for words in (*WORDS.values(), SINGULAR) for phrase in words for word in phrase.split()}


def unknown_words(text):
    """The words of a text that the little language does not have: a list, in order, in lower case, each once."""
    known = known_words()
    return [word for word in dict.fromkeys(text.lower().split()) if word not in known]


def vocabulary():
    """The words of the little language by kind, in one line, for error messages and help texts."""
    return "; ".join(f"{kind}: {', '.join(words)}" for kind, words in WORDS.items())


def with_article(words):
    """words with "a" or "an" in front: "a red heart", but "an orange heart"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def one_of(name, words):
    """A regular expression for any one of these words, as a group of this name."""
    return f"(?P<{name}>{'|'.join(words)})"


def thing_like(i, nouns):
    """A regular expression for one thing; its groups' names end in `i`, since a name may occur only once."""
    return f"(?:{one_of('size' + i, SIZES)} )?{one_of('color' + i, COLORS)} {one_of('noun' + i, nouns)}"


# The whole language is one regular expression, built from the tables, so changing them changes the language.
#   (a THING [RELATION a THING] | COUNT THINGS) [on a BACKGROUND background]
ONE_OR_TWO = f"an? {thing_like('1', NOUNS)}(?: {one_of('relation', RELATIONS)} an? {thing_like('2', NOUNS)})?"
SEVERAL = f"{one_of('count', COUNTS)} {thing_like('', SINGULAR)}"
GRAMMAR = re.compile(f"(?:{ONE_OR_TWO}|{SEVERAL})(?: on an? {one_of('background', BACKGROUNDS)} background)?")


@dataclass(frozen=True)
class Thing:
    """A noun of NOUNS with a colour of COLORS and a size of SIZES, or None if the caption does not say.

    "Three green snowmen" are one Thing as well; the Scene has the count.
    """
    noun: str
    color: str
    size: str | None = None


@dataclass(frozen=True)
class Scene:
    """What a caption says: one thing; two or three of a kind; or two things and their relation.

    things: one Thing, or two if there is a relation (of RELATIONS). count: 1, or 2 or 3 of the only Thing.
    background: one of BACKGROUNDS, or None if the caption does not say. Scenes that say the same are equal.
    """
    things: tuple[Thing, ...]
    count: int = 1
    relation: str | None = None
    background: str | None = None

    @property
    def kind(self):
        """What the scene asks of a model: "single", "count" or "pair"."""
        return "pair" if len(self.things) == 2 else "count" if self.count > 1 else "single"

    def caption(self):
        """The scene in words: "a small red heart to the left of an orange umbrella on a white background"."""
        phrases = [f"{thing.size or ''} {thing.color} {thing.noun}".lstrip() for thing in self.things]
        words = f" {self.relation} ".join(map(with_article, phrases))
        if self.count > 1:
            noun = self.things[0].noun
            words = ("two " if self.count == 2 else "three ") + phrases[0].removesuffix(noun) + NOUNS[noun]
        return words + (f" on {with_article(self.background)} background" if self.background else "")

    @classmethod
    def parse(cls, text):
        """The scene that a caption describes: the inverse of `caption`. Case and extra white space do not matter.

        Raises ValueError with a one-line message. It names unknown words and lists the known ones; if known words
        are in an order that makes no caption, it shows what captions look like.
        """
        if unknown := unknown_words(text):
            raise ValueError(f"unknown {', '.join(map(repr, unknown))}; the language has {vocabulary()}")
        if not (found := GRAMMAR.fullmatch(" ".join(text.lower().split()))):
            raise ValueError(f"{text!r} is no caption of the little language; these are: a red heart; two small"
                             " green stars on a white background; a pink cloud above a large blue house")
        part = found.groupdict()
        things = [Thing(SINGULAR.get(part["noun" + i], part["noun" + i]), part["color" + i], part["size" + i])
                  for i in ("", "1", "2") if part["noun" + i]]
        return cls(tuple(things), COUNTS.get(part["count"], 1), part["relation"], part["background"])

    def canonical(self):
        """The same picture in its standard form, which names the left or the upper thing of a pair first.

        "A heart below a star" and "a star above a heart" are the same picture; their canonical scenes are equal.
        """
        if self.relation not in OPPOSITES:
            return self
        return replace(self, things=self.things[::-1], relation=OPPOSITES[self.relation])

    def fill(self, rng):
        """A scene that can be drawn: rng, a random.Random, chooses the sizes and the background left open."""
        things = [thing if thing.size else replace(thing, size=rng.choice(SIZES)) for thing in self.things]
        return replace(self, things=tuple(things), background=self.background or rng.choice(BACKGROUNDS))


# All (colour, noun) pairs that training may draw. Choosing from a list is faster than rejecting what is held out.
TRAINING_PAIRS = [(color, noun) for noun in NOUNS for color in COLORS if (color, noun) not in HELD_OUT]
EASY_PAIRS = [(color, noun) for color, noun in TRAINING_PAIRS if noun in EASY_NOUNS]
HELD_OUT_PAIRS = sorted(HELD_OUT)                           # the order of a set changes from run to run


def seeded_rng(*names):
    """A random.Random that depends only on these names: the same names give the same numbers on any machine."""
    return random.Random(" ".join(map(str, names)))


def random_thing(rng, pairs):
    """A Thing with one of these (colour, noun) pairs; half of the time it has a size."""
    color, noun = rng.choice(pairs)
    return Thing(noun, color, rng.choice(SIZES) if rng.random() < 0.5 else None)


def random_scene(rng, difficulty="full", held_out=False):
    """A random scene for training or for measuring, drawn by rng, a random.Random, in a few microseconds.

    difficulty: "single" is one thing out of EASY_NOUNS. "full" uses all NOUNS: 40% are one thing, 40% two that
    differ in noun or colour, 20% two or three of a kind. What a caption may leave open it says half of the time.
    held_out: False, for training, never uses a (colour, noun) pair of HELD_OUT. True, for measuring composition,
    always uses one; the other thing of two is an ordinary one. Raises ValueError for another difficulty.
    """
    if difficulty not in ("single", "full"):
        raise ValueError(f'difficulty is "single" or "full", not {difficulty!r}')
    pairs = EASY_PAIRS if difficulty == "single" else TRAINING_PAIRS
    thing = random_thing(rng, HELD_OUT_PAIRS if held_out else pairs)
    background = rng.choice(BACKGROUNDS) if rng.random() < 0.5 else None
    draw = rng.random()
    if difficulty == "single" or draw < 0.4:
        return Scene((thing,), 1, None, background)
    if draw < 0.6:
        return Scene((thing,), rng.choice((2, 3)), None, background)
    other = random_thing(rng, pairs)
    while (other.color, other.noun) == (thing.color, thing.noun):   # two of a kind would be a count
        other = random_thing(rng, pairs)
    things = (thing, other) if draw < 0.8 else (other, thing)       # so a held-out thing is first or second
    return Scene(things, 1, rng.choice(RELATIONS), background)


@lru_cache
def world_tokenizer():
    """The tokenizer of the little language, trained on the same 4,000 captions each time, in a tenth of a second.

    Training ends well below the 1,024 ids allowed, when every word of the language is one token. The longest
    captions have 16 tokens. Changing a table above changes the ids, which is why weight files keep the merges.
    """
    rng = random.Random(0)
    return BPETokenizer.train([random_scene(rng).caption() for _ in range(4_000)], 1_024)


# --- The demonstration ---

# Everything from here on only shows what the code above does; no other file needs it.
CAPTION = "a small red heart to the left of an orange umbrella"


def bars(tokenizer, text):
    """A text's tokens between bars, a dot for each space: |a|·red|·heart|."""
    return "|" + "|".join(tokenizer.decode([i]) for i in tokenizer.encode(text)).replace(" ", "·") + "|"


def show_learning(captions):
    """Bytes; the first merges one by one, then some later ones, and what they do to one caption."""
    print("\n1. Every text is bytes, and there are only 256 of them")
    print(f"   'a ♥' is the bytes {list('a ♥'.encode())}, in GPT-2's order {list(byte_ids('a ♥'))}")
    print(f"\n2. Learning from {len(captions):,} captions: the most frequent pair becomes a token")
    pieces, merges = Counter(piece for text in captions for piece in cut(GPT2_CUT, text)), []
    for pair, times in learn_merges(pieces):
        merges.append(pair)
        if (n := len(merges)) in (1, 2, 3, 4, 20, 80):
            now = BPETokenizer(merges)
            left, right = (now.decode([i]).replace(" ", "·") for i in pair)
            print(f"   merge {n:3}: {left!r} + {right!r}, seen {times:,} times\n      {bars(now, CAPTION)}")
    print(f"   merge {n:3} is the last: each word is a token\n      {bars(BPETokenizer(merges), CAPTION)}")


def show_coding(tokenizer):
    """Known words, unknown words, and a fixed length. (A lone � is part of a character.)"""
    print(f"\n3. Encoding with all {tokenizer.vocab_size} ids: unknown words fall into pieces, but none is lost")
    for text in ("A red heart", "a red heartbeat", "un cœur ♥"):
        ids = tokenizer.encode(text)
        print(f"   {text!r} {ids}\n      {bars(tokenizer, text)} decodes to {tokenizer.decode(ids)!r}")
    ids, mask = tokenizer.pad(tokenizer.encode("a red heart"), 8)
    print(f"\n4. Padding to 8 with the end token, {tokenizer.end_token}\n   ids  {ids}\n   mask {mask}")


def show_language(rng):
    """Captions and the scenes they describe, one picture described in two ways, and an unknown word."""
    print("\n5. The little language: random captions, and what each of them claims")
    for scene in (random_scene(rng) for _ in range(4)):
        print(f"   {scene.caption()!r}\n      {Scene.parse(scene.caption())}")
    scene = Scene.parse("a pink heart below a cyan star")
    print(f"   {scene.caption()!r} is the same picture as {scene.canonical().caption()!r}\n"
          f"   'a red dog' is no caption: {unknown_words('a red dog')} is not in the language")


def draw_tokens(axes, row, tokenizer):
    """One row of the picture: each token is a box, grey for a byte, in a colour of its own if merges made it."""
    ids = tokenizer.encode(CAPTION)
    widths = [len(tokenizer.decode([i])) for i in ids]
    # A box reaches from the end of the token before it to its own end, minus a small gap.
    left, width = [end - w + 0.07 for end, w in zip(accumulate(widths), widths)], [w - 0.14 for w in widths]
    # Steps of the golden ratio round the colour wheel give neighbouring ids different colours, always the same ones.
    colors = ["#ebebeb" if i < 256 else colorsys.hsv_to_rgb(i * 0.618 % 1, 0.36, 0.96) for i in ids]
    axes.barh(row, width, 0.68, left=left, color=colors)
    for at, char in enumerate(CAPTION):
        axes.text(at + 0.5, row, char, ha="center", va="center_baseline", family="monospace", size=15)
    axes.text(-0.8, row, f"{len(tokenizer.merges)} merges", ha="right", va="center", size=13)
    axes.text(len(CAPTION) + 0.8, row, f"{len(ids)} tokens", va="center", size=13)


def save_picture(tokenizer, captions, path):
    """Above, one caption's tokens after more and more merges; below, tokens per caption against merges.

    captions: a list of strings to average over; path: where the PNG goes, in a folder that is made if missing.
    """
    from matplotlib.figure import Figure                    # here, so that importing this file stays quick
    # The first n merges are a tokenizer as well, the one that training a smaller vocabulary would have given.
    stages = [BPETokenizer(tokenizer.merges[:n]) for n in range(len(tokenizer.merges) + 1)]
    mean = [sum(len(stage.encode(text)) for text in captions) / len(captions) for stage in stages]
    rows = [0, 25, 75, len(tokenizer.merges)]
    figure = Figure(figsize=(12, 6.75), layout="constrained")
    boxes, curve = figure.subplots(2, 1)
    boxes.set(xlim=(-9, len(CAPTION) + 8), ylim=(3.6, -0.6))        # rows go down, as lines of text do
    boxes.axis("off")
    boxes.set_title("Letters grow into words", size=20, loc="left")
    for row, n in enumerate(rows):
        draw_tokens(boxes, row, stages[n])
        curve.annotate(f"{mean[n]:.1f}", (n, mean[n]), (4, 9), textcoords="offset points", size=13)
    curve.plot(mean, "o-", markevery=rows, color="#34495e", mfc="#e67e22", mec="#e67e22", ms=9, linewidth=2.5)
    curve.set(ylim=(0, mean[0] * 1.15))
    curve.set_xlabel("merges learned", size=13)
    curve.set_ylabel("tokens per caption", size=13)
    curve.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=140, bbox_inches="tight", pad_inches=0.3)


def main():
    """The five sections and the picture; the captions are those that world_tokenizer learns from."""
    rng = random.Random(0)
    captions = [random_scene(rng).caption() for _ in range(4_000)]
    show_learning(captions)
    show_coding(world_tokenizer())
    show_language(rng)
    save_picture(world_tokenizer(), captions[:200], Path(__file__).parent / "outputs" / "01_tokenizer.png")
    print("\nThe picture is outputs/01_tokenizer.png. Its lesson: lessons/01_tokenizer.ipynb.\n"
          "Next: python 02_transformer.py turns these integers into vectors that look at one another.")


if __name__ == "__main__":
    main()
