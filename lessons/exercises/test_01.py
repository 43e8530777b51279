"""Exercises of lesson 1: text becomes integers.

Where ids are compared with what they should be, those come from str.replace: it merges too, from left to right.
"""
from itertools import islice

from expect import holds, same

CAPTIONS = "a red heart", "two small green stars", "an orange star on a red heart", "the heart of an artist"


def different(rng, count, highest=256):
    """As many different ids."""
    return rng.sample(range(highest), count)


def replaced(ids, merges, first_new):
    """ids after these merges, one after the other: each id is a character, and each merge is str.replace."""
    text = "".join(map(chr, ids))
    for new, (left, right) in enumerate(merges, first_new):
        text = text.replace(chr(left) + chr(right), chr(new))
    return [ord(char) for char in text]


def as_list(asked, ids):
    """A list or a tuple of ids, whichever it is, as a list."""
    holds(asked, f"something of type {type(ids).__name__}", type(ids) in (list, tuple), "a tuple of ids was expected")
    return list(ids)


# --- 1.1 merge ---

def test_1_1_two_become_one(m, rng):
    a, b, c = different(rng, 3)
    same(f"merge(({a}, {b}), ({a}, {b}), 300)", m.merge((a, b), (a, b), 300), (300,),
         "the two ids of the pair become the single new one")
    same(f"merge(({c}, {a}, {b}, {c}), ({a}, {b}), 300)", m.merge((c, a, b, c), (a, b), 300), (c, 300, c),
         "the new id takes the place of the pair, and what stands around it stays")


def test_1_1_takes_every_occurrence(m, rng):
    a, b, c = different(rng, 3)
    same(f"merge(({a}, {b}, {c}, {a}, {b}, {a}, {b}), ({a}, {b}), 300)",
         m.merge((a, b, c, a, b, a, b), (a, b), 300), (300, c, 300, 300),
         "each occurrence is replaced, not only the first")


def test_1_1_both_must_fit(m, rng):
    a, b, c = different(rng, 3)
    ids, want = (a, c, b, c, a, b, b, c, a), (a, c, b, c, 300, b, c, a)
    same(f"merge({ids}, ({a}, {b}), 300)", m.merge(ids, (a, b), 300), want,
         "only neighbours that are both as in the pair are merged; all other ids stay, the last one too")


def test_1_1_the_pair_has_an_order(m, rng):
    a, b, c = different(rng, 3)
    same(f"merge(({b}, {a}, {c}, {a}, {b}), ({a}, {b}), 300)", m.merge((b, a, c, a, b), (a, b), 300), (b, a, c, 300),
         "the order within a pair counts: only its left id followed by its right one is the pair")


def test_1_1_overlaps_are_taken_from_the_left(m, rng):
    a, b = different(rng, 2)
    for count, want in (2, (300,)), (3, (300, a)), (4, (300, 300)), (5, (300, 300, a)):
        same(f"merge({(a,) * count + (b,)}, ({a}, {a}), 300)", m.merge((a,) * count + (b,), (a, a), 300), (*want, b),
             "occurrences are taken from the left and do not overlap: a a a becomes new a")


def test_1_1_few_ids(m, rng):
    a, b, c = different(rng, 3)
    for ids in (), (a,), (a, c), (a, b):
        same(f"merge({ids}, ({a}, {b}), 300)", m.merge(ids, (a, b), 300), (300,) if ids == (a, b) else ids,
             "ids that are too few for a pair, or hold none, stay as they are")


def test_1_1_any_ids(m, rng):
    for length in range(1, 60):
        ids = (1, 2, *(rng.choice((1, 2, 3)) for _ in range(length)))
        pair = (1, 2) if length % 3 else (ids[1], ids[2])
        same(f"merge({ids}, {pair}, 300)", m.merge(ids, pair, 300), tuple(replaced(ids, [pair], 300)),
             "go through the ids once, from the left, and write new in place of each occurrence")


# --- 1.2 learn_merges ---

def byte(m, char):
    return m.byte_ids(char)[0]


def learned(m, pieces, most=200):
    """The first merges; all of them, unless there is no end to them."""
    return list(islice(m.learn_merges(pieces), most))


def first_pair(m, pieces):
    """The pair that is learned first, in letters."""
    letters = {byte(m, char): char for piece in pieces for char in piece}
    return [letters.get(i, f"id {i}") for pair, _ in learned(m, pieces, 1) for i in pair]


def test_1_2_yields_pairs_and_counts(m, rng):
    a, b = rng.sample("abcdefgh", 2)
    same(f"the first that learn_merges({{'{a}{b}': 2}}) yields", learned(m, {a + b: 2}, 1),
         [((byte(m, a), byte(m, b)), 2)], "each merge is (pair, how often it occurred: twice in a piece that"
         " occurs twice), and the pair is two ids as byte_ids numbers the bytes, the left one first")


def test_1_2_one_at_a_time(m, monkeypatch):
    calls, merge, idea = [], m.merge, "yield each merge as soon as it is known, for those who need only a few"
    monkeypatch.setattr(m, "merge", lambda *given, **named: calls.append(given) or merge(*given, **named))
    merges = m.learn_merges({"heart": 3, "star": 2})
    holds("merges are yielded", f"something of type {type(merges).__name__}", hasattr(merges, "__next__"), idea)
    next(merges)
    holds("the first of many merges", f"{len(calls)} calls of merge, for 2 pieces", len(calls) <= 2, idea)


def test_1_2_the_most_frequent_is_first(m, rng):
    pieces = {pair: 1 for pair in ("ab", "cd", "ef", "gh", "ij")}
    a, b = often = rng.choice([*pieces][1:4])
    same(f"the first pair of {pieces | {often: 3}}", first_pair(m, pieces | {often: 3}), [a, b],
         "the most frequent pair is merged first")


def test_1_2_a_piece_counts_as_often_as_it_occurs(m, rng):
    often = rng.randint(5, 50)
    same(f"the first pair of {{'xyp': 1, 'xyq': 1, 'xyr': 1, 'ab': {often}}}",
         first_pair(m, {"xyp": 1, "xyq": 1, "xyr": 1, "ab": often}), ["a", "b"],
         "a pair counts as often as the pieces that hold it occur, not once for each piece")


def test_1_2_a_pair_counts_at_each_place(m, rng):
    times = rng.randint(4, 40)
    same(f"the first pair of {{'cd': {times + 1}, 'abxab': {times}}}",
         first_pair(m, {"cd": times + 1, "abxab": times}), ["a", "b"],
         "a pair that occurs twice in a piece counts twice, for pairs are counted and not pieces")
    same(f"how often 'aa' occurs in {{'aaa': {times}}}", learned(m, {"aaa": times}, 1)[0][1], 2 * times,
         "aaa has two pairs of neighbours: all of them are counted, though only one is merged")


def test_1_2_of_equals_the_first_found_wins(m, rng):
    times, letters = rng.randint(1, 20), rng.sample("abcdefgh", 6)
    for word in "".join(letters), "".join(reversed(letters)):
        for pieces in {word[:3]: times, word[3:]: times}, {word[:3] + word[:2]: times, word[4:]: 2 * times}:
            same(f"the first pair of {pieces}", first_pair(m, pieces), [*word[:2]],
                 "if several pairs are equally frequent, the first one found wins, in the order of the pieces")


def test_1_2_counts_anew_after_each_merge(m, rng):
    times = rng.randint(3, 30)
    pieces, (a, b, c) = {"abc": times, "bd": 2, "ab": 2}, m.byte_ids("abc")
    same(f"the first two merges of {pieces}", learned(m, pieces, 2), [((a, b), times + 2), ((256, c), times)],
         "after each merge pairs are counted anew: b c is gone, and the new id 256 is followed by c")


def test_1_2_new_ids_count_up_from_256(m, rng):
    word = "".join(rng.sample("abcdefghijkl", 6))
    lefts = [pair[0] for pair, _ in learned(m, {word: 3})]
    same(f"the left halves of the merges of {{'{word}': 3}}", lefts, [byte(m, word[0]), 256, 257, 258, 259],
         "the first merge makes id 256, the next one 257, and so on: each builds on those before it")


def test_1_2_ends_when_each_piece_is_one_token(m, rng):
    word = "".join(rng.sample("abcdefghijkl", 5))
    for pieces, count in ({word: 1}, 4), ({"ab": 1, "cd": 1}, 2), ({word: 2, "z": 5}, 4), ({"z": 7}, 0), ({}, 0):
        same(f"how many merges {pieces} gives", len(learned(m, pieces, 20)), count,
             "it goes on until every piece is one token, rare ones too, and then it ends")


def test_1_2_no_pair_crosses_two_pieces(m, rng):
    times = rng.randint(1, 9)
    same(f"merges of {{'ab': {times}, 'ac': {times}, 'd': 99}}",
         len(learned(m, {"ab": times, "ac": times, "d": 99}, 9)), 2,
         "the end of one piece and the beginning of the next are no neighbours")


def test_1_2_bytes_of_utf8(m, rng):
    one, two, three = m.byte_ids("♥")
    same("merges of {'♥': 2}, a character of three bytes", learned(m, {"♥": 2}),
         [((one, two), 2), ((256, three), 2)],
         "merges begin with bytes, of which ♥ has three, not with characters")


def test_1_2_pieces_stay_as_they_are(m):
    pieces = {"heart": 3, "star": 2}
    learned(m, pieces)
    same("pieces afterwards", pieces, {"heart": 3, "star": 2}, "what belongs to the caller must not be changed")


def test_1_2_any_pieces(m, course, rng):
    for letters in "ab", "abc", "abA é ":
        pieces = {"".join(rng.choices(letters, k=rng.randint(1, 9))): rng.randint(1, 6) for _ in range(14)}
        same(f"merges of {pieces}", learned(m, pieces), list(course[1].learn_merges(pieces)),
             "count, merge the most frequent pair in each piece, and count again")


# --- 1.3 BytePairs.merge_all ---

def replayed(m, merges, ids, letters=256):
    """What merge_all makes of ids, with an alphabet of as many letters."""
    pairs = m.BytePairs([bytes([i]) for i in range(letters)], merges, [])
    return as_list(f"merge_all({ids})", pairs.merge_all(tuple(ids)))


def test_1_3_a_pair_becomes_its_new_id(m, rng):
    a, b, c, d = different(rng, 4)
    same(f"({c}, {d}) after the merges ({a}, {b}) and ({c}, {d})", replayed(m, [(a, b), (c, d)], (c, d)), [257],
         "every pair that was learned is merged, and merge k, counted from 0, makes id 256 + k")


def test_1_3_the_first_learned_not_the_last(m, rng):
    a, b, c = different(rng, 3)
    same(f"({a}, {b}, {c}) after the merges ({a}, {b}), then ({b}, {c})",
         replayed(m, [(a, b), (b, c)], (a, b, c)), [256, c],
         "of all pairs that are present the one that was learned first is merged first, and not the one learned last")


def test_1_3_again_and_again(m, rng):
    a, b, c, d = different(rng, 4)
    same(f"({a}, {b}, {c}, {d}) after the merges ({a}, {b}), (256, {c}), (257, {d})",
         replayed(m, [(a, b), (256, c), (257, d)], (a, b, c, d)), [258],
         "a merge makes new pairs, so it goes on again and again until none is left that was learned")


def test_1_3_the_first_learned_not_the_first_in_the_text(m, rng):
    a, b, c, d = different(rng, 4)
    same(f"({a}, {b}, {c}) after the merges ({b}, {c}), then ({a}, {b})",
         replayed(m, [(b, c), (a, b)], (a, b, c)), [a, 256],
         "the pair that was learned first is merged first, wherever it is: not the first one in the text")
    same(f"({a}, {b}, {c}, {d}) after the merges ({c}, {d}), ({b}, {c}), ({a}, {b})",
         replayed(m, [(c, d), (b, c), (a, b)], (a, b, c, d)), [258, 256],
         "the pair that was learned first is merged first, wherever it is: not the first one in the text")


def test_1_3_every_occurrence(m, rng):
    a, b, c = different(rng, 3)
    same(f"({a}, {b}, {a}, {b}, {c}, {a}, {b}) after the merges ({a}, {b}), then ({c}, 256)",
         replayed(m, [(a, b), (c, 256)], (a, b, a, b, c, a, b)), [256, 256, 257],
         "each occurrence of a pair is merged, and then what it makes possible")


def test_1_3_not_the_most_frequent(m, rng):
    a, b, c = different(rng, 3)
    same(f"({a}, {b}, {a}, {b}, {c}) after the merges ({b}, {c}), then ({a}, {b})",
         replayed(m, [(b, c), (a, b)], (a, b, a, b, c)), [257, a, 256],
         "the order in which merges were learned decides, not how often a pair occurs in this piece")


def test_1_3_new_ids_stand_behind_the_alphabet(m, rng):
    letters = rng.randint(3, 9)
    same(f"(0, 1, 2) with an alphabet of {letters} and the merges (0, 1), ({letters}, 2)",
         replayed(m, [(0, 1), (letters, 2)], (0, 1, 2), letters), [letters + 1],
         "new ids begin where the alphabet ends, which is not always 256; self.new_id knows them")


def test_1_3_nothing_to_merge(m, rng):
    a, b, c = different(rng, 3)
    for ids in (), (a,), (c, b, a), (b, b):
        same(f"{ids} after the merge ({a}, {b})", replayed(m, [(a, b)], ids), list(ids),
             "ids without any pair that was learned stay as they are")


def test_1_3_can_be_asked_twice(m, rng):
    a, b, c = different(rng, 3)
    pairs, merges = m.BytePairs([bytes([i]) for i in range(256)], [(b, c), (a, b)], []), [(b, c), (a, b)]
    for ids, want in ((a, b, c), [a, 256]), ((a, b), [257]), ((a, b, c), [a, 256]):
        same(f"merge_all({ids}), as one of several questions", as_list("merge_all", pairs.merge_all(ids)), want,
             "coding a text must not change the tokenizer")
    same("the tokenizer's merges afterwards", [pairs.merges, pairs.new_id], [merges, {(b, c): 256, (a, b): 257}],
         "coding a text must not change the tokenizer")


def test_1_3_any_merges(m, course, rng):
    for letters in 2, 3, 5:
        merges = []
        while len(merges) < 12:
            pair = rng.randrange(letters + len(merges)), rng.randrange(letters + len(merges))
            merges += [pair] if pair not in merges else []
        for _ in range(20):
            ids = [rng.randrange(letters) for _ in range(rng.randint(0, 20))]
            same(f"{ids} after the merges {merges}", replayed(m, merges, ids, letters),
                 replaced(ids, merges, letters), "merges are replayed in the order in which they were learned")


# --- 1.4 BPETokenizer.encode ---

def expected(course, merges, text):
    """The ids of a text, piece by piece."""
    pieces = course[1].cut(course[1].GPT2_CUT, text)
    return [i for piece in pieces for i in replaced(course[1].byte_ids(piece), merges, 256)]


def some_merges(course, rng, texts=CAPTIONS):
    """Merges that were learned from captions, as many as chance has it."""
    return course[1].BPETokenizer.train(texts, rng.randint(280, 300)).merges


def test_1_4_a_list_of_ids(m, course, rng):
    words, text = m.BPETokenizer(some_merges(course, rng)), rng.choice(CAPTIONS)
    ids = words.encode(text)
    holds(f"encode({text!r}), a list of ids", f"{ids!r:.100}", type(ids) is list and {*map(type, ids)} == {int},
          "the ids of all pieces follow one another in one list")
    holds(f"encode({text!r}), without the end token {words.end_token}", f"{ids!r:.100}", words.end_token not in ids,
          "the ids of the text and nothing behind them: it is pad that adds end tokens")
    same("encode('')", words.encode(""), [], "an empty text gives an empty list")


def test_1_4_lower_case(m, course, rng):
    words, text = m.BPETokenizer(some_merges(course, rng)), rng.choice(CAPTIONS)
    for shouted in text.upper(), text.title():
        same(f"encode({shouted!r})", words.encode(shouted), words.encode(text),
             "the text is lower-cased first, as in GLIDE, so that A red HEART has the tokens of a red heart")


def test_1_4_lower_case_only_if_asked(m, rng):
    for lower, text in (False, "Heart"), (False, "STAR"), (True, "heart"):
        words = m.BPETokenizer([], lower=lower)
        same(f"the text that encode({text!r}) stands for, if lower is {lower}", words.decode(words.encode(text)), text,
             "only a tokenizer whose self.lower is True lower-cases")


def test_1_4_every_byte_is_kept(m, rng):
    for text in rng.choice(CAPTIONS), "  two  spaces ", "un cœur ♥", "tab\tline\n\n":
        words = m.BPETokenizer([])
        same(f"the text that encode({text!r}) stands for", words.decode(words.encode(text)), text,
             "nothing of a text is lost: its spaces belong to the pieces, and every character has UTF-8 bytes")


def test_1_4_merges_within_pieces(m, course, rng):
    merges, text = some_merges(course, rng), rng.choice(CAPTIONS)
    same(f"how many tokens {text!r} has", len(m.BPETokenizer(merges).encode(text)),
         len(expected(course, merges, text)), "within each piece every merge that was learned is made")


def test_1_4_no_merge_across_pieces(m, rng):
    left, right = rng.sample("abcdefgh", 2)
    for text, across in (f"{left}!", (left, "!")), (f"{left} {right}", (left, " ")), (f"{left}7", (left, "7")):
        ids = list(m.byte_ids(text))
        same(f"encode({text!r}) of a tokenizer that has only learned to merge {across}",
             m.BPETokenizer([tuple(map(m.byte_ids("".join(across)).__getitem__, (0, 1)))]).encode(text), ids,
             "a text is cut with GPT2_CUT first, and no merge crosses the boundaries of its pieces")


def test_1_4_letters_of_all_languages(m, rng):
    letter, other = rng.choice("abcdefgh"), rng.choice("éжλ")
    ids = m.byte_ids(letter + other)
    same(f"encode('{letter}{other}') of a tokenizer that has learned to merge the first two of its three bytes",
         m.BPETokenizer([ids[:2]]).encode(letter + other), [256, ids[2]],
         "cut(GPT2_CUT, text) knows the letters of all languages; the pattern alone does not")


def test_1_4_lower_case_comes_before_the_cut(m, course, rng):
    merges, text = [m.byte_ids("'s")], rng.choice(("it's", "that's", "who's"))
    same(f"encode({text.upper()!r}) of a tokenizer that has learned to merge ' and s",
         m.BPETokenizer(merges).encode(text.upper()), expected(course, merges, text),
         "lower-case first, then cut: the patterns know 's but not 'S")


def test_1_4_a_new_list_each_time(m, course, rng):
    merges, text = some_merges(course, rng), rng.choice(CAPTIONS)
    words = m.BPETokenizer(merges)
    words.encode(text).clear()
    same(f"encode({text!r}), asked again after the first list was emptied", words.encode(text),
         expected(course, merges, text), "each caller gets a list of their own")


def test_1_4_any_text(m, course, rng):
    merges = some_merges(course, rng)
    for _ in range(40):
        text = "".join(rng.choices("aehrt st.'7éß♥\n AEHRT", k=rng.randint(1, 60)))
        for lower in True, False:
            same(f"BPETokenizer(merges, lower={lower}).encode({text!r})",
                 m.BPETokenizer(merges, lower=lower).encode(text),
                 expected(course, merges, text.lower() if lower else text),
                 "lower-case if asked, cut, and code piece by piece")


# --- 1.5 BPETokenizer.pad ---

def tokenizer(m, rng):
    """A tokenizer whose end token is one of many."""
    return m.BPETokenizer([(i, i) for i in range(rng.randint(1, 50))])


def padded(m, words, ids, length):
    """(ids, mask) as pad returns them, two lists."""
    answer = words.pad(list(ids), length)
    pair = type(answer) in (list, tuple) and len(answer) == 2 and all(type(part) is list for part in answer)
    holds(f"pad({ids}, {length})", f"{answer!r:.100}", pair, "two lists come back: ids and mask")
    return answer


def test_1_5_both_have_the_length(m, rng):
    words, ids = tokenizer(m, rng), different(rng, 5)
    for length in 8, 5, 3:
        same(f"the lengths of what pad({ids}, {length}) returns", [*map(len, padded(m, words, ids, length))],
             [length, length], "ids and mask both have the length that was asked for: a batch is a rectangle")


def test_1_5_padding_comes_behind(m, rng):
    words, ids = tokenizer(m, rng), different(rng, 3)
    same(f"the first three ids of pad({ids}, 7)", padded(m, words, ids, 7)[0][:3], ids,
         "the caption comes first and the padding behind it")


def test_1_5_padding_is_the_end_token(m, rng):
    words, ids = tokenizer(m, rng), different(rng, 3)
    same(f"the last four ids of pad({ids}, 7), where the end token is {words.end_token}",
         padded(m, words, ids, 7)[0][3:], [words.end_token] * 4, "the padding is the end token")


def test_1_5_the_mask_is_true_for_real_tokens(m, rng):
    words, count = tokenizer(m, rng), rng.randint(1, 3)
    mask = padded(m, words, different(rng, count), 7)[1]
    same(f"the mask of {count} ids padded to 7", mask, [True] * count + [False] * (7 - count),
         "the mask is True for real tokens and False for padding, the first end token included")
    holds("a mask of True and False", f"{mask}", all(type(real) is bool for real in mask),
          "a mask is made of bools: of other numbers torch would make another type of tensor")


def test_1_5_too_many_are_cut_off(m, rng):
    words, ids = tokenizer(m, rng), different(rng, 6)
    same(f"pad({ids}, 4)[0]", padded(m, words, ids, 4)[0], ids[:4], "of too many ids the first ones are kept")
    same(f"pad({ids}, 4)[1]", padded(m, words, ids, 4)[1], [True] * 4, "if ids are cut off, all that is left is real")


def test_1_5_exactly_as_many(m, rng):
    words, ids = tokenizer(m, rng), different(rng, 5)
    same(f"pad({ids}, 5)", tuple(padded(m, words, ids, 5)), (ids, [True] * 5),
         "a caption that fits exactly is left as it is: no end token takes the place of a word")


def test_1_5_an_empty_caption(m, rng):
    words = tokenizer(m, rng)
    same("pad([], 4)", tuple(padded(m, words, [], 4)), ([words.end_token] * 4, [False] * 4),
         "an empty caption is all padding")


def test_1_5_the_ids_belong_to_the_caller(m, rng):
    words, ids = tokenizer(m, rng), different(rng, 3)
    for length in 5, 3, 2:
        given = list(ids)
        words.pad(given, length)[0].append(0)
        same(f"the list that was given to pad(ids, {length}), afterwards", given, ids,
             "what belongs to the caller must not be changed: a new list comes back")


def test_1_5_any_length(m, rng):
    for _ in range(40):
        words, length = tokenizer(m, rng), rng.randint(0, 12)
        ids = different(rng, rng.randint(0, 12), highest=15)
        missing = max(0, length - len(ids))
        same(f"pad({ids}, {length})", tuple(padded(m, words, ids, length)),
             (ids[:length] + [words.end_token] * missing, [True] * (length - missing) + [False] * missing),
             "first the ids, as many as there is room for, then end tokens, and a mask that tells them apart")
