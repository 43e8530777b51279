"""Which picture fits the caption better? Votes on pairs, by the judge or by your class; win rates and Elo scores.

The small base model under several settings, and the world itself, are the *players*: each draws the same captions. For
each caption every two of them meet, and a vote says which picture shows better what was asked. Votes become win rates,
and Elo scores as GLIDE computes them (11, which also says what the scores of its table 4 mean: 133.0 beats 28.2 in
64.6%). The judge (10) is the automatic voter. It looks at the small pictures, prefers the one in which the caption's
attributes are more probable, and calls it a tie if they are at most twice as probable (--tie). It votes on fit alone,
not on beauty.

The votes on one caption are not independent: a player that fails at it loses to all others at once. So the 95%
intervals of votes are bootstrapped over captions. A panel shows how they shrink as votes are added, and how narrow they
would be if votes were independent.

    python lessons/experiments/preference.py --n 300 --dtype bfloat16                      2 minutes on one core
    python lessons/experiments/preference.py --redraw --out lessons/figures/preference.png
    python lessons/experiments/preference.py --page blind-test     a test for people: 60 captions, 5 minutes
    python lessons/experiments/preference.py --votes blind-test    counts their votes, and compares them with the judge

The page, blind-test/test.html, is one file that needs no network. Hand out that file alone: which player drew what is
in key.json, beside it. Each voter's answers come back as a CSV file; put all of them into the folder, and count.

Found: of 3,000 votes of the judge on 300 captions of two things 74% are ties. A tie counts as half a win, so real
images get 62% against guidance 3 in 5 steps, and 54% against guidance 3. Their Elo scores are 48 (39 to 56), -49 (-62
to -36) and 26 (18 to 34); the five players' are known to ± 11 on average, and to ± 8 if one took the votes for
independent. If the judge must decide, guidance 3 is level with real images, 105 (84 to 130) and 82 (58 to 102): hairs
decide then, for 90% of its pictures are right, and 98% of the real ones.
"""
import csv
import hashlib
import json
import math
import random
import sys
import textwrap
from collections import defaultdict
from dataclasses import replace
from importlib import import_module
from itertools import combinations
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, guides, unet, diffusion, train, sample, judge, measures = map(import_module, (
    "lessons.experiments.common", "lessons.experiments.guidance", "03_unet", "04_diffusion", "08_train", "09_sample",
    "lessons.10_judge", "lessons.11_measures"))

# What is changed of the base model's usual options (09); None: no model draws, but the world
PLAYERS = {"guidance 1": {"scale": 1.0}, "guidance 3": {}, "guidance 8": {"scale": 8.0},
           "guidance 3, 5 steps": {"steps": "5"}, "real images": None}
CHOICES = {"left": 1.0, "tie": 0.5, "right": 0.0}         # as results for the picture on the left
COLUMNS = ["test", "voter", "question", "choice"]         # of a voter's file


# --- Votes -------------------------------------------------------------------------------------------

# A vote is a row (caption, i, j, result): two players, and the result for the first one as `count_wins` (11) has it.
def judged(fits, tie):
    """The judge's votes on every pair of players, from log-probabilities [players][captions]."""
    votes = []
    for caption, fit in enumerate(zip(*fits)):
        for i, j in combinations(range(len(fits)), 2):
            lead = fit[i] - fit[j]
            votes.append((caption, i, j, float(lead > 0) if abs(lead) > math.log(tie) else 0.5))
    return votes


def grouped(pairs):
    """Pairs of a key and a value -> {key: list of its values}"""
    groups = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups


def by_caption(votes, m):
    """The wins of m players on each caption: [captions, m, m]."""
    groups = grouped((vote[0], vote[1:]) for vote in votes)
    return torch.stack([measures.count_wins(group, m) for group in groups.values()])


def scores(wins):
    """Elo scores [m]; nan for all if no finite ones are best."""
    try:
        return measures.elo(wins).tolist()
    except ValueError:
        return [math.nan] * len(wins)


def as_cells(values, lows, highs, n):
    """What `measures.bootstrap` returns, as cells. None instead of an interval that is infinite, or that has no width:
    so few captions, or so equal ones, do not tell what others might be like."""
    return [common.interval(value, low, high, n) if math.isfinite(value) and 0 < high - low < math.inf
            else None for value, low, high in zip(values, lows, highs)]


def share(pairs):
    """The share of what is true in pairs of a caption and a bool, as a cell; None if there are none."""
    counts = torch.tensor([(sum(group), len(group)) for group in grouped(pairs).values()], dtype=torch.float64)
    if len(counts):
        numbers = measures.bootstrap(lambda x: [(x[:, 0].sum() / x[:, 1].sum()).item()], counts,
                                     generator=measures.seeded())
        return as_cells(*numbers, int(counts[:, 1].sum()))[0]


def rated(votes, m):
    """{"elo": m cells, "rates": m rows of m cells, how often row wins against column} of votes."""
    def numbers(wins):
        wins = wins.sum(0)
        return [*scores(wins), *measures.win_rate(wins).flatten().tolist()]

    cells = as_cells(*measures.bootstrap(numbers, by_caption(votes, m), generator=measures.seeded()), len(votes))
    return {"elo": cells[:m], "rates": [cells[m * k:m * (k + 1)] for k in range(1, m + 1)]}


def half_widths(votes, m):
    """[votes, half the width of an Elo score's interval, the same if votes were independent], for ever more captions.

    Means over the players; None where there is no interval.
    """
    def half(scores_of, units):
        _, lows, highs = measures.bootstrap(scores_of, units, generator=measures.seeded())
        width = (sum(highs) - sum(lows)) / (2 * m)
        return round(width, 2) if 0 < width < math.inf else None

    rows, captions = [], sorted({vote[0] for vote in votes})
    for k in sorted({max(2, len(captions) >> halvings) for halvings in range(6)}):
        some = [vote for vote in votes if vote[0] in captions[:k]]
        rows.append([len(some), half(lambda wins: scores(wins.sum(0)), by_caption(some, m)),
                     half(lambda rows: scores(measures.count_wins(rows[:, 1:], m)), torch.tensor(some))])
    return rows


def told(voters, votes, right, **more):
    """The table of votes, printed. right: {player: share of the captions drawn right, says the judge, a cell}"""
    m = len(right)
    table = {"voters": voters, "votes": len(votes),
             "ties": share((vote[0], vote[3] == 0.5) for vote in votes), "right": right} | more
    table |= rated(votes, m) | {"widths": half_widths(votes, m)}
    print(f"{len(votes)} votes by {voters}, {common.percent(table['ties'])} % of them ties")
    for name, elo, fine in zip(right, table["elo"], right.values()):
        score = "{value:.0f} ({low:.0f} to {high:.0f})".format(**elo) if elo else "not finite: too few votes"
        print(f"   {name:<22} Elo {score:<28} right, says the judge: {common.percent(fine)} %")
    return table


# --- The judge votes ---------------------------------------------------------------------------------

@torch.no_grad()
def played(how, base, upsampler, reader, scenes, seed):
    """What a player draws of each caption: "log p" and "right" in the reader's eyes; and, if there is an upsampler,
    "pictures" for people, as text. A seed is the same noise for all players.

    Real images are reduced and enlarged like the others: nothing but what they show must give them away.
    """
    if how is None:
        images = diffusion.downsample(judge.real_images(scenes, seed), base.size)
    else:
        images = judge.draw(base, scenes, options=replace(sample.default_options(base), **how), seed=seed, batch=60)
    found = {"log p": guides.log_probability(reader, images, scenes).tolist(),
             "right": judge.scores(reader, images, scenes)["all"].tolist()}
    if upsampler:
        large = judge.draw(None, scenes, upsampler=upsampler, low_res=images, seed=seed + 1, batch=60)
        found["pictures"] = list(map(common.to_text, large))
    return found


def measure(args, partial):
    """The judge's votes, and a test for people if one is asked for; or people's votes. Prints and returns the table."""
    if args.votes:
        return counted(args.votes)
    if args.page and (args.page / "key.json").exists():
        raise ValueError(f"{args.page} holds a test already; without its key, its votes could not be counted")
    weights = common.weights(args)
    base, upsampler = weights.load("base"), weights.load("upsampler") if args.page else None
    reader, scenes = judge.judge_for(base.size, args.weights), judge.eval_captions(args.kind, args.n, args.seed)
    found = [partial(name, lambda: played(how, base, upsampler, reader, scenes, args.seed))
             for name, how in PLAYERS.items()]
    fits = [one["log p"] for one in found]
    votes = judged(fits, args.tie)
    right = {name: common.cell(torch.tensor(one["right"])) for name, one in zip(PLAYERS, found)}
    if args.page:
        write_test(args, [scene.caption() for scene in scenes], [one["pictures"] for one in found], votes, right)
    decided = rated(judged(fits, 1), len(fits))["elo"]
    return told("the judge", votes, right, beside={"the judge, never a tie": decided}, n=args.n, seed=args.seed)


# --- People vote -------------------------------------------------------------------------------------

PAGE = r"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Which picture fits better?</title>
<style>
body { font: 20px sans-serif; text-align: center; max-width: 46em; margin: 1em auto; background: #eee }
h1 { font-size: 130% }
img { width: 44%; max-width: 320px; image-rendering: pixelated; margin: 0 2% }
button, input { font: inherit; padding: 0.3em 1em; margin: 0.3em }
</style>
</head>
<body>
<h1>Which picture fits the caption better?</h1>
<form id="start"><input id="name" placeholder="Your name" maxlength="40" required> <button>Start</button></form>
<div id="test" hidden>
<div id="question">
<p id="caption"></p>
<p><img id="left" alt="left picture"><img id="right" alt="right picture"></p>
<p><button data-choice="left">← left</button><button data-choice="tie">↓ equally well</button>
<button data-choice="right">right →</button></p>
</div>
<p id="progress"></p>
<p><button id="back">One back</button><button id="save">Save my votes</button></p>
</div>
<script>
const DATA = $DATA;
const at = id => document.getElementById(id);
const votes = [];
let saved = 0;
// Everyone is asked other questions, in another order: the questions are sorted by random numbers.
const order = DATA.questions.map((_, i) => [Math.random(), i]).sort((a, b) => a[0] - b[0]).map(pair => pair[1])
  .slice(0, DATA.ask);

function show() {
  const done = votes.length === order.length;
  at("question").hidden = done;
  at("progress").textContent = `${votes.length} of ${order.length}`
    + (done ? ": thank you! Please save your votes." : "");
  if (done) return;
  const [caption, left, right] = DATA.questions[order[votes.length]];
  at("caption").textContent = caption;
  at("left").src = "data:image/png;base64," + DATA.pictures[left];
  at("right").src = "data:image/png;base64," + DATA.pictures[right];
}

function vote(choice) {
  if (at("test").hidden || votes.length === order.length) return;
  votes.push(choice);
  show();
}

// Letters, digits and spaces only: nothing in the file then needs quotes, and no spreadsheet takes it for a formula.
const voter = () => at("name").value.replace(/[^\p{L}\p{N} ]/gu, "").trim();

at("start").onsubmit = event => {
  event.preventDefault();
  if (!voter()) return;
  at("start").hidden = true;
  at("test").hidden = false;
  show();
};
document.querySelectorAll("[data-choice]").forEach(button => button.onclick = () => vote(button.dataset.choice));
document.onkeydown = event => {
  const choice = {ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right"}[event.key];
  if (!choice || at("test").hidden) return;
  event.preventDefault();                   // the page must not scroll
  if (!event.repeat) vote(choice);          // a key that is held down is one vote
};
at("back").onclick = () => { votes.pop(); show(); };
at("save").onclick = () => {
  const rows = votes.map((choice, i) => [DATA.test, voter(), order[i], choice].join(",") + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["$COLUMNS\n", ...rows], {type: "text/csv"}));
  link.download = `votes-${voter()}.csv`;
  link.click();
  saved = votes.length;
};
window.onbeforeunload = event => { if (votes.length !== saved) event.preventDefault(); };
</script>
</body>
</html>
"""


def write_test(args, captions, pictures, votes, right):
    """The page and its key in the folder args.page; pictures [players][captions] as text, votes those of the judge.

    Pictures, sides and questions are shuffled, so that no number on the page tells a player.
    """
    rng, drawn = random.Random(f"blind test {args.seed}"), [(k, c) for k in range(len(pictures)) for c in range(args.n)]
    rng.shuffle(drawn)
    place = {one: i for i, one in enumerate(drawn)}
    questions = [vote if rng.random() < 0.5 else (vote[0], vote[2], vote[1], 1 - vote[3]) for vote in votes]
    rng.shuffle(questions)
    shown = {"ask": args.ask, "questions": [(captions[c], place[i, c], place[j, c]) for c, i, j, _ in questions],
             "pictures": [pictures[k][c] for k, c in drawn]}
    test = "test " + hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:8]
    page = PAGE.replace("$COLUMNS", ",".join(COLUMNS)).replace("$DATA", json.dumps({"test": test} | shown))
    with unet.atomic_write(args.page / "test.html") as file:
        file.write_text(page, encoding="utf-8")
    # of a question: the caption, the players left and right, and the judge's vote for the left one
    common.write(args.page / "key.json", {"test": test, "right": right, "questions": questions})
    print(f"wrote {args.page / 'test.html'}: {len(votes)} questions, of which a voter is asked {args.ask}")


def read_votes(folder, key):
    """The votes of a folder's CSV files: {(voter, question): result for the left picture}. Raises ValueError."""
    votes, questions = {}, {str(i): i for i in range(len(key["questions"]))}
    for path in sorted(folder.glob("*.csv")):
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                header, *rows = [*csv.reader(file, strict=True)] or [[]]
            if header != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
                raise ValueError("its columns are not " + ", ".join(COLUMNS))
        except (csv.Error, ValueError) as e:
            raise ValueError(f"{path} is not a file of votes: {e}") from e
        for line, (test, voter, question, choice) in enumerate(rows, 2):
            vote = voter, questions.get(question)
            faults = {"this vote is for another test": test != key["test"], "there is no name": not voter.strip(),
                      f"there is no question {question!r}": question not in questions,
                      f"{choice!r} is not left, tie or right": choice not in CHOICES,
                      f"{voter} has answered question {question} before; is a file here twice?": vote in votes}
            for fault in (text for text, wrong in faults.items() if wrong):
                raise ValueError(f"{path}, line {line}: {fault}")
            votes[vote] = CHOICES[choice]
    if not votes:
        raise ValueError(f"there are no votes in {folder}: put the voters' CSV files there")
    return votes


def counted(folder):
    """The table of people's votes; the judge's are those that it gave to the same questions."""
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    answers, questions = read_votes(folder, key), key["questions"]
    votes = [(*questions[question][:3], one) for (_, question), one in answers.items()]
    judges = [questions[question] for _, question in answers]
    given = grouped((question, one) for (_, question), one in answers.items())
    agreement = {
        "people and the judge": share((vote[0], vote[3] == other[3]) for vote, other in zip(votes, judges)),
        "two people": share((questions[question][0], one == other) for question, some in given.items()
                            for one, other in combinations(some, 2))}
    for who, rate in agreement.items():
        print(f"the same answer to the same question by {who}: {common.percent(rate)} %")
    people = len({voter for voter, _ in answers})
    return told(f"people (n = {people})", votes, key["right"], agreement=agreement,
                beside={"the judge": rated(judges, len(key["right"]))["elo"]})


# --- The figure --------------------------------------------------------------------------------------

def draw(table):
    """Win rates, what interval more votes leave, Elo scores, and what accuracy says."""
    figure = Figure(figsize=(15, 11), layout="constrained")
    (first, second), (third, fourth) = figure.subplots(2, 2)
    draw_rates(first, table)
    draw_widths(second, table["widths"])
    names, accuracy = [*table["right"]], [*table["right"].values()]
    draw_players(third, names, {table["voters"]: table["elo"]} | table["beside"])
    draw_players(fourth, names, {"": accuracy})
    third.set_xlabel("Elo score, the mean being 0", size=13)
    fourth.set_xlabel("captions drawn right, says the judge", size=13)
    fourth.xaxis.set_major_formatter("{x:.0%}")
    third.set_title(f"A tie is half a win: {common.percent(table['ties'])} % ties pull scores together", size=13)
    last, *_, first = (accuracy[i]["value"] for i in order(table["elo"]))
    fourth.set_title(f"Elo’s first and last: {first:.0%} and {last:.0%} of the captions right", size=13)
    return figure


def order(cells):
    """The places of cells from the lowest value to the highest; those of None come first."""
    return sorted(range(len(cells)), key=lambda i: cells[i]["value"] if cells[i] else -math.inf)


def draw_rates(ax, table):
    """Who wins how often against whom, with intervals; below, what Elo scores say of the same pair."""
    names, elo = [*table["right"]], table["elo"]
    values = [common.columns(row, "value")[0] for row in table["rates"]]
    ax.imshow(values, cmap="coolwarm", vmin=0, vmax=1, alpha=0.6)
    for i, j in ((i, j) for i, row in enumerate(table["rates"]) for j, rate in enumerate(row) if rate):
        text = common.percent(table["rates"][i][j])
        if elo[i] and elo[j]:
            text += f"\nby Elo {100 * measures.win_probability(elo[i]['value'], elo[j]['value']):.0f}"
        ax.text(j, i, text, ha="center", va="center", size=11)
    ax.set_xticks(range(len(names)), [textwrap.fill(name, 9) for name in names], size=12)
    ax.set_yticks(range(len(names)), [textwrap.fill(name, 9) for name in names], size=12)
    worst, *_, best = order(elo)
    rate = f"{values[best][worst]:.0%}"
    ax.set_title(f"“{names[best]}” gets {rate} against “{names[worst]}”, a tie being half a win\n"
                 "(row against column, in %, and what their Elo scores say)", size=13)


def draw_widths(ax, rows):
    """How far intervals reach, against the number of votes, both ways of counting."""
    votes, *widths = ([math.nan if x is None else x for x in column] for column in zip(*rows))
    for width, label in zip(widths, ("bootstrap over captions", "as if votes were independent")):
        ax.loglog(votes, width, marker="o", label=label)
    ax.set_xticks(votes, [f"{x:,.0f}" for x in votes], size=12)
    least = min((x for width in widths for x in width if x == x), default=0)
    ticks = [x for x in (5, 10, 20, 50, 100, 200) if least <= 1.5 * x]
    ax.set_yticks(ticks, ticks, size=12)
    ax.set_xlabel("votes", size=13)
    ax.set_ylabel("half an interval in Elo points, mean of the players", size=13)
    ax.set_title("{:,} votes leave ± {:.0f} points;\nif they were independent, it would be ± {:.0f}".format(
        votes[-1], *(width[-1] for width in widths)), size=13)
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(fontsize=12)


def draw_players(ax, names, series):
    """A row for each player, with 95% intervals; series: {label: cells}."""
    for k, (label, cells) in enumerate(series.items()):
        values, errors = common.error_bars(cells)
        ax.errorbar(values, [i + 0.2 * k for i in range(len(cells))], xerr=errors, fmt="o", capsize=4, label=label)
    ax.set_yticks(range(len(names)), names, size=12)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(labelsize=12)
    ax.grid(alpha=0.3)
    if any(series):
        ax.legend(fontsize=12)


def main(argv=None):
    parser = common.parser(__doc__, "preference", n=60)
    parser.add_argument("--seed", type=int, default=0, help="of captions, noise and the test's order")
    parser.add_argument("--kind", choices=judge.KINDS, default="pair", help="of captions (default: pair)")
    parser.add_argument("--tie", type=float, default=2, help="the judge votes for a picture if its caption is more than"
                        " so many times as probable (default: 2)")
    parser.add_argument("--page", type=train.path_name, help="write a blind test for people into this folder")
    parser.add_argument("--ask", type=int, default=40, help="questions for each voter (default: 40)")
    parser.add_argument("--votes", type=train.path_name, help="count people's votes in this folder of a blind test")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
