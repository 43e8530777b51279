"""Wrong solutions of lesson 1's exercises, and right but odd ones. See tests/test_exercises.py."""

# What is replaced more than once
LOOP = """    for i in ids:
        if out and (out[-1], i) == pair:
            out[-1] = new
        else:
            out.append(i)
    return tuple(out)"""
COUNT = "pairs[pair] += times"
BEST = "best = max(pairs, key=pairs.get)"
MERGED = "words = {merge(ids, best, new): times for ids, times in words.items()}"
WORDS = "words = {byte_ids(piece): times for piece, times in pieces.items()}"
REPLAY = """        while pairs := self.new_id.keys() & set(zip(ids, ids[1:])):
            first = min(pairs, key=self.new_id.get)
            ids = merge(ids, first, self.new_id[first])
        return ids"""
FIRST = "first = min(pairs, key=self.new_id.get)"
CUT = "pieces = cut(GPT2_CUT, text.lower() if self.lower else text)"
CODED = "return [i for piece in pieces for i in self.piece_ids(piece, byte_ids)]"
SHORT = "ids = list(ids)[:length]"
PADDED = "return ids + [self.end_token] * missing, [True] * len(ids) + [False] * missing"

# (exercise, what stands in the module, what replaces it, words of the idea that the message must name)
MUTANTS = [
    # 1.1 merge
    ("1.1", LOOP, "    return ids", "the two ids of the pair become the single new one"),
    ("1.1", LOOP, """    for i in ids:
        if new not in out and out and (out[-1], i) == pair:
            out[-1] = new
        else:
            out.append(i)
    return tuple(out)""", "each occurrence"),
    ("1.1", LOOP, """    for i in ids:
        if out and {out[-1], i} == set(pair):
            out[-1] = new
        else:
            out.append(i)
    return tuple(out)""", "order within a pair"),
    ("1.1", "(out[-1], i) == pair:", "(i, out[-1]) == pair:", "single new one"),
    ("1.1", "(out[-1], i) == pair:", "out[-1] == pair[0]:", "both as in the pair"),
    ("1.1", "(out[-1], i) == pair:", "i == pair[1]:", "both as in the pair"),
    ("1.1", "            out[-1] = new\n", "            out.append(new)\n", "single new one"),
    ("1.1", "    return tuple(out)", "    return out", "tuple was expected"),
    ("1.1", LOOP, """    i = 0
    while i < len(ids) - 1:
        if ids[i:i + 2] == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return tuple(out)""", "what stands around it stays"),
    ("1.1", LOOP, """    i = 0
    while i < len(ids):
        if ids[i:i + 2] == pair:
            out.append(new)
        else:
            out.append(ids[i])
        i += 1
    return tuple(out)""", "single new one"),
    ("1.1", LOOP, """    for i in reversed(ids):
        if out and (i, out[0]) == pair:
            out[0] = new
        else:
            out.insert(0, i)
    return tuple(out)""", "from the left"),
    ("1.1", LOOP, """    for i in ids:
        if out and (out[-1], i) == pair or out and out[-1] == new and i == pair[1]:
            out[-1] = new
        else:
            out.append(i)
    return tuple(out)""", "both as in the pair"),
    ("1.1", LOOP, """    for i in ids:
        if i in pair:
            out += [] if out and out[-1] == new else [new]
        else:
            out.append(i)
    return tuple(out)""", "each occurrence"),
    # 1.2 learn_merges
    ("1.2", COUNT, "pairs[pair] += 1", "twice in a piece that occurs twice"),
    ("1.2", COUNT, "pairs[pair] = times", "a pair that occurs twice in a piece counts twice"),
    ("1.2", COUNT, "pairs[pair] = max(pairs[pair], times)", "a pair that occurs twice in a piece counts twice"),
    ("1.2", "for pair in zip(ids, ids[1:]):", "for pair in set(zip(ids, ids[1:])):",
     "a pair that occurs twice in a piece counts twice"),
    ("1.2", "for pair in zip(ids, ids[1:]):", "for pair in zip(ids[::2], ids[1::2]):", "counts twice"),
    ("1.2", "for pair in zip(ids, ids[1:]):", "for pair in zip(ids[1:], ids):", "two ids as byte_ids numbers"),
    ("1.2", BEST, "best = min(pairs, key=pairs.get)", "most frequent pair is merged first"),
    ("1.2", BEST, "best = max(pairs)", "most frequent"),
    ("1.2", BEST, "best = next(iter(pairs))", "most frequent"),
    ("1.2", BEST, "best = max(reversed(pairs), key=pairs.get)", "first one found wins"),
    ("1.2", BEST, "best = max(pairs, key=lambda pair: (pairs[pair], pair))", "first one found wins"),
    ("1.2", BEST, "best = min(pairs, key=lambda pair: (-pairs[pair], pair))", "first one found wins"),
    ("1.2", WORDS, "words = {byte_ids(piece): n for piece, n in sorted(pieces.items())}", "first one found wins"),
    ("1.2", WORDS, "words = {byte_ids(p): n for p, n in sorted(pieces.items(), key=lambda item: -item[1])}",
     "first one found wins"),
    ("1.2", WORDS, "words = {byte_ids(piece.lower()): times for piece, times in pieces.items()}", "count again"),
    ("1.2", WORDS, "words = {byte_ids(piece.strip()): times for piece, times in pieces.items()}", "count again"),
    ("1.2", MERGED, "pass", "counted anew"),
    ("1.2", MERGED, "words = {merge(ids, best, 256): times for ids, times in words.items()}", "makes id 256"),
    ("1.2", MERGED, "words = {merge(ids, best, new): times for ids, times in words.items() if len(ids) > 2}",
     "until every piece is one token"),
    ("1.2", "for new in count(256):", "for new in count(257):", "the new id 256"),
    ("1.2", "for new in count(256):", "for new in count(0):", "the new id 256"),
    ("1.2", WORDS, "words = {tuple(piece.encode()): times for piece, times in pieces.items()}", "as byte_ids numbers"),
    ("1.2", WORDS, "words = {tuple(map(ord, piece)): times for piece, times in pieces.items()}",
     "as byte_ids numbers"),
    ("1.2", WORDS, "words = {tuple(ID_OF_BYTE[ord(c) % 256] for c in piece): n for piece, n in pieces.items()}",
     "merges begin with bytes"),
    ("1.2", WORDS, "words = {byte_ids(piece): times for piece, times in pieces.items() if times > 1}", "rare ones too"),
    ("1.2", WORDS, "words = {byte_ids(''.join(pieces)): 1}", "no neighbours"),
    ("1.2", WORDS, "words = {byte_ids(''.join(piece * times for piece, times in pieces.items())): 1}",
     "no neighbours"),
    ("1.2", WORDS, "words = {byte_ids(piece): pieces.pop(piece) for piece in list(pieces)}", "belongs to the caller"),
    ("1.2", "yield best, pairs[best]", "yield best", "each merge is (pair, how often it occurred"),
    ("1.2", "yield best, pairs[best]", "yield pairs[best], best", "each merge is (pair, how often it occurred"),
    ("1.2", "yield best, pairs[best]", "yield new, pairs[best]", "the pair is two ids as byte_ids"),
    ("1.2", "yield best, pairs[best]", "yield best, sum(pairs.values())", "counted anew"),
    ("1.2", "if not pairs:  ", "if not pairs or max(pairs.values()) < 2:  ", "rare ones too"),
    ("1.2", "if not pairs:  ", "if len(pairs) < 2:  ", "until every piece is one token"),
    ("1.2", WORDS + "\n    for new in count(256):\n        pairs = Counter()\n",
     WORDS + "\n    pairs = Counter()\n    for new in count(256):\n", "counted anew"),
    ("1.2", WORDS, "found = []\n    def collect():\n"
     "        words = {byte_ids(piece): times for piece, times in pieces.items()}\n"
     "        for new in count(256):\n"
     "            pairs = Counter(p for ids, n in words.items() for p in list(zip(ids, ids[1:])) * n)\n"
     "            if not pairs:\n                return found\n"
     "            best = max(pairs, key=pairs.get)\n"
     "            words = {merge(ids, best, new): times for ids, times in words.items()}\n"
     "            found.append((best, pairs[best]))\n"
     "    yield from collect()\n    return\n"
     "    words = {}", "as soon as it is known"),
    # 1.3 BytePairs.merge_all
    ("1.3", FIRST, "first = max(pairs, key=self.new_id.get)", "not the one learned last"),
    ("1.3", FIRST, "first = next(pair for pair in zip(ids, ids[1:]) if pair in pairs)", "not the first one in the"),
    ("1.3", FIRST, "first = [pair for pair in zip(ids, ids[1:]) if pair in pairs][-1]", "not the one learned last"),
    ("1.3", FIRST, "first = min(pairs)", "learned first"),
    ("1.3", FIRST, "first = max(pairs, key=lambda pair: (list(zip(ids, ids[1:])).count(pair), -self.new_id[pair]))",
     "not how often"),
    ("1.3", "while pairs :=", "if pairs :=", "again and again"),
    ("1.3", "ids = merge(ids, first, self.new_id[first])", "ids = merge(ids, first, 256 + self.merges.index(first))",
     "where the alphabet ends"),
    ("1.3", "ids = merge(ids, first, self.new_id[first])", "ids = merge(ids, first, self.merges.index(first))",
     "makes id 256 + k"),
    ("1.3", "ids = merge(ids, first, self.new_id[first])", "ids = merge(ids, first, self.new_id.pop(first))",
     "must not change the tokenizer"),
    ("1.3", "ids = merge(ids, first, self.new_id[first])", "ids = merge(ids, first, self.new_id[first] - 1)",
     "makes id 256 + k"),
    ("1.3", REPLAY, "        for first, new in reversed(self.new_id.items()):\n"
     "            ids = merge(ids, first, new)\n        return ids", "not the one learned last"),
    ("1.3", REPLAY, "        for pair in list(zip(ids, ids[1:])):\n            if pair in self.new_id:\n"
     "                ids = merge(ids, pair, self.new_id[pair])\n        return ids", "not the first one in the text"),
    ("1.3", REPLAY, "        pairs = self.new_id.keys() & set(zip(ids, ids[1:]))\n"
     "        for first in sorted(pairs, key=self.new_id.get):\n"
     "            ids = merge(ids, first, self.new_id[first])\n        return ids", "again and again"),
    ("1.3", REPLAY, "        done = set()\n"
     "        while pairs := self.new_id.keys() & set(zip(ids, ids[1:])) - done:\n"
     "            first = min(pairs, key=self.new_id.get)\n            done.add(first)\n"
     "            at = next(i for i in range(len(ids)) if ids[i:i + 2] == first)\n"
     "            ids = (*ids[:at], self.new_id[first], *ids[at + 2:])\n"
     "        return ids", "each occurrence"),
    ("1.3", REPLAY, "        return ids", "every pair that was learned is merged"),
    # 1.4 BPETokenizer.encode
    ("1.4", CUT, "pieces = cut(GPT2_CUT, text)", "lower-cased first, as in GLIDE"),
    ("1.4", CUT, "pieces = cut(GPT2_CUT, text.lower())", "only a tokenizer whose self.lower is True"),
    ("1.4", CUT, "pieces = cut(GPT2_CUT, text if self.lower else text.lower())", "lower-cased first, as in GLIDE"),
    ("1.4", CUT, "pieces = cut(GPT2_CUT, text.upper() if self.lower else text)", "code piece by piece"),
    ("1.4", CUT, "pieces = [text.lower() if self.lower else text]", "cut with GPT2_CUT first"),
    ("1.4", CUT, "pieces = (text.lower() if self.lower else text).split()", "nothing of a text is lost"),
    ("1.4", CUT, "pieces = (text.lower() if self.lower else text).strip().split(' ')", "nothing of a text is lost"),
    ("1.4", CUT, "pieces = GPT2_CUT.findall(text.lower() if self.lower else text)", "the pattern alone does not"),
    ("1.4", CUT, "pieces = [p.lower() if self.lower else p for p in cut(GPT2_CUT, text)]", "lower-case first, then"),
    ("1.4", CUT, "pieces = list(text.lower() if self.lower else text)", "within each piece every merge"),
    ("1.4", CUT, "pieces = cut(CLIP_CUT, text.lower() if self.lower else text)", "nothing of a text is lost"),
    ("1.4", CODED, "return [i for piece in pieces for i in byte_ids(piece)]", "within each piece every merge"),
    ("1.4", CODED, "return [i for piece in pieces for i in self.piece_ids(piece, byte_ids)] + [self.end_token]",
     "nothing behind them"),
    ("1.4", CODED, "return [self.piece_ids(piece, byte_ids) for piece in pieces]", "follow one another in one list"),
    ("1.4", CODED, "return [i for piece in pieces for i in self.piece_ids(piece, word_ids)]", "list index out of"),
    ("1.4", CODED, "return [i for piece in pieces for i in self.piece_ids(piece, lambda p: tuple(p.encode()))]",
     "nothing of a text is lost"),
    ("1.4", CODED, "return self.merge_all([i for piece in pieces for i in byte_ids(piece)])", "in one list"),
    ("1.4", CODED, "return list(self.merge_all([i for piece in pieces for i in byte_ids(piece)]))", "no merge crosses"),
    ("1.4", CODED, "return tuple(i for piece in pieces for i in self.piece_ids(piece, byte_ids))", "a list of ids"),
    ("1.4", CODED, "return (i for piece in pieces for i in self.piece_ids(piece, byte_ids))", "a list of ids"),
    ("1.4", CODED, "return list(dict.fromkeys(i for piece in pieces for i in self.piece_ids(piece, byte_ids)))",
     "nothing of a text is lost"),
    ("1.4", CODED, "if text not in self.cache:\n"
     "            self.cache[text] = [i for piece in pieces for i in self.piece_ids(piece + '', byte_ids)]\n"
     "        return self.cache[text]", "a list of their own"),
    ("1.4", CUT, "pieces = cut(GPT2_CUT, (text.lower() if self.lower else text).strip())", "nothing of a text is lost"),
    ("1.4", CUT, "pieces = cut(GPT2_CUT, text.casefold() if self.lower else text)", "code piece by piece"),
    ("1.4", CODED, "return [i for piece in pieces for i in self.piece_ids(piece, byte_ids)] or [self.end_token]",
     "an empty text"),
    # 1.5 BPETokenizer.pad
    ("1.5", PADDED, "return ids + [self.end_token] * missing, [False] * len(ids) + [True] * missing",
     "True for real tokens"),
    ("1.5", PADDED, "return [self.end_token] * missing + ids, [False] * missing + [True] * len(ids)",
     "the padding behind it"),
    ("1.5", PADDED, "return [self.end_token] * missing + ids, [True] * len(ids) + [False] * missing",
     "the padding behind it"),
    ("1.5", PADDED, "return ids + [self.end_token] * missing, [False] * missing + [True] * len(ids)",
     "True for real tokens"),
    ("1.5", PADDED, "return ids + [0] * missing, [True] * len(ids) + [False] * missing", "padding is the end token"),
    ("1.5", PADDED, "return ids + [self.vocab_size] * missing, [True] * len(ids) + [False] * missing",
     "padding is the end token"),
    ("1.5", PADDED, "return ids + [50256] * missing, [True] * len(ids) + [False] * missing",
     "padding is the end token"),
    ("1.5", PADDED, "return ids + [self.end_token] * missing, [1] * len(ids) + [0] * missing", "made of bools"),
    ("1.5", PADDED, "return ids + [self.end_token] * missing, [True] * (len(ids) + 1) + [False] * (missing - 1)",
     "the length that was asked for"),
    ("1.5", PADDED, "return ids + [self.end_token] * missing, ([True] * (len(ids) + 1) + [False] * missing)[:length]",
     "the first end token included"),
    ("1.5", PADDED, "return ids + [self.end_token] * missing, [True] * length", "False for padding"),
    ("1.5", PADDED, "return ids + [self.end_token] * missing, [True] * len(ids)", "the length that was asked for"),
    ("1.5", PADDED, "return [True] * len(ids) + [False] * missing, ids + [self.end_token] * missing",
     "the caption comes first"),
    ("1.5", PADDED, "return ids + [self.end_token] * missing", "ids and mask"),
    ("1.5", SHORT, "ids = [i for i in ids if i][:length]", "first the ids"),
    ("1.5", SHORT, "ids = list(ids)", "the length that was asked for"),
    ("1.5", SHORT, "ids = list(ids)[-length:] if length else []", "the first ones are kept"),
    ("1.5", SHORT, "ids = [*ids, self.end_token][:length]", "the first end token included"),
    ("1.5", SHORT, "ids = [*ids[:length - 1], self.end_token][:length]", "padding"),
    ("1.5", SHORT, "ids = list(ids)[:length - 1] if len(ids) >= length else list(ids)", "is left as it is"),
    ("1.5", SHORT, "del ids[length:]", "belongs to the caller"),
]

# (exercise, what stands in the module, what replaces it): right, if unusual, solutions
VARIANTS = [
    ("1.1", LOOP, """    i = 0
    while i < len(ids):
        found = tuple(ids[i:i + 2]) == tuple(pair)
        out += [new] if found else [ids[i]]
        i += 1 + found
    return tuple(out)"""),
    ("1.1", LOOP, """    if len(ids) < 2:
        return tuple(ids)
    if ids[:2] == pair:
        return (new, *merge(ids[2:], pair, new))
    return (ids[0], *merge(ids[1:], pair, new))"""),
    ("1.1", LOOP, """    text = "".join(map(chr, ids)).replace(chr(pair[0]) + chr(pair[1]), chr(new))
    return tuple(map(ord, text))"""),
    ("1.2", COUNT, "pairs.update([pair] * times)"),
    ("1.2", BEST, "best, _ = pairs.most_common(1)[0]"),
    ("1.2", BEST, "best = [pair for pair in pairs if pairs[pair] == max(pairs.values())][0]"),
    ("1.2", WORDS, "words = dict(zip(map(byte_ids, pieces), pieces.values()))"),
    ("1.2", WORDS + "\n    for new in count(256):\n        pairs = Counter()\n        for ids, times in words.items():",
     "words = [(list(byte_ids(piece)), times) for piece, times in pieces.items()]\n"
     "    for new in count(256):\n"
     "        pairs = Counter()\n"
     "        for ids, times in words:\n"
     "            for at in range(len(ids) - 1):\n"
     "                pairs[ids[at], ids[at + 1]] += times\n"
     "        if not pairs:\n"
     "            return\n"
     "        best = max(pairs, key=pairs.get)\n"
     "        yield best, pairs[best]\n"
     "        words = [(list(merge(tuple(ids), best, new)), times) for ids, times in words]\n"
     "    for new in []:\n"
     "        for ids, times in {}.items():"),
    ("1.3", REPLAY, "        for first, new in self.new_id.items():\n"
     "            ids = merge(ids, first, new)\n        return ids"),
    ("1.3", REPLAY, "        ids = list(ids)\n"
     "        while True:\n"
     "            ranks = [self.new_id.get(pair, float('inf')) for pair in zip(ids, ids[1:])]\n"
     "            if not ranks or min(ranks) == float('inf'):\n"
     "                return tuple(ids)\n"
     "            at = ranks.index(min(ranks))\n"
     "            ids[at:at + 2] = [self.new_id[ids[at], ids[at + 1]]]"),
    ("1.4", CODED, "out = []\n"
     "        for piece in pieces:\n"
     "            out.extend(self.merge_all(byte_ids(piece)))\n"
     "        return out"),
    ("1.4", CUT, "text = text.lower() if self.lower else text\n        pieces = iter(cut(GPT2_CUT, text))"),
    ("1.5", PADDED, "return [*ids, *(self.end_token for _ in range(missing))], [i < len(ids) for i in range(length)]"),
    ("1.5", SHORT, "ids = [i for n, i in enumerate(ids) if n < length]"),
    ("1.5", PADDED, "mask = [True] * len(ids)\n"
     "        while len(ids) < length:\n"
     "            ids.append(self.end_token)\n"
     "            mask.append(False)\n"
     "        return [ids, mask]"),
]
