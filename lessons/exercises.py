r"""
Assignments · the course's own functions as exercises, and tests that name the idea that was missed.

    python lessons/exercises.py                     the exercises
    python lessons/exercises.py start 4             work/04_diffusion.py with holes, the files before it whole
    python lessons/exercises.py check 4             what is right in it, and a hint for what is not; or check 4.2
    python lessons/exercises.py grade submissions/ --out grades/                     a folder for each student, or one

There is no second copy of anything. A hole is made from the module by its syntax tree, and a solution is judged in the
same way, backwards: in the student's file every *other* exercise is replaced by the course's own function (`graft`).
So each exercise is judged by itself, and nobody is stuck because of an earlier mistake.

    student's file ──► graft ──► a process of its own, with limits ──► pytest: lessons/exercises/test_04.py
                                                                            │  one line of JSON for each test
    grades.csv, JUnit, reports ◄── points ◄── this process ◄────────────────┘

This process never imports what a student wrote, and counts only what the other one reports, test by test. What does not
come back is not counted. lessons/README.md has a page for students and one for teachers, which says what such a grader
cannot promise.
"""
import argparse
import ast
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TESTS = ROOT / "lessons" / "exercises"
__path__ = [str(TESTS)]                     # what lies there belongs to this module
processes = import_module("lessons.exercises.processes")
MODULES = {int(path.name[:2]): path for path in sorted(ROOT.glob("0[1-9]_*.py"))}
ANSWERS, HIDDEN = "answers.txt", "hidden "


class Exercise(NamedTuple):
    number: str           # lesson.k; its tests are the functions test_LESSON_K_… of lessons/exercises/test_0LESSON.py
    name: str             # the function's qualified name in the lesson's module; of a question, what it asks
    points: int
    concept: str
    source: str           # paper and equation, or the part of the lesson
    hint: str
    answer: tuple = ()    # of a question: the range in which its number must lie

    @property
    def lesson(self):
        return int(self.number.split(".")[0])


TABLE = [Exercise(*row) for row in (
    ("1.1", "merge", 2, "one merge, everywhere at once", "Sennrich et al. 2016, algorithm 1",
     "Keep what you have written so far; look at its last id and at the next one."),
    ("1.2", "learn_merges", 4, "which pair is merged next", "Sennrich et al. 2016, algorithm 1",
     "Count each pair as often as its piece occurs; max keeps the first of several that are equal."),
    ("1.3", "BytePairs.merge_all", 3, "merges are replayed in the order they were learned in", "GPT-2, section 2.2",
     "Of all pairs that are present, which was learned first? Its new id is the smallest."),
    ("1.4", "BPETokenizer.encode", 2, "text to ids", "GLIDE's tokenizer lower-cases",
     "Lower-case first if self.lower, then cut, then code each piece."),
    ("1.5", "BPETokenizer.pad", 2, "a rectangle of tokens, and a mask", "GLIDE section 4",
     "True marks real tokens; the padding comes after them."),
    ("2.1", "attention_weights", 3, "who looks at whom", "Vaswani et al. 2017, eq. 1",
     "Rows sum to one: the softmax runs over the keys, the last axis."),
    ("2.2", "attention", 3, "a mean of values, without looking ahead if causal", "Vaswani et al. 2017, eq. 1",
     "A causal query i sees the keys 0 … i, itself included."),
    ("2.3", "split_heads", 3, "heads, and each head's q, k and v together", "the released layout",
     "First cut the last axis into heads, then cut each head's part into three."),
    ("2.4", "MLP.__init__", 1, "four times wider, GELU, and back", "Hendrycks & Gimpel 2016",
     "nn.GELU has an approximate form too; which one do the released weights expect?"),
    ("2.5", "Block.forward", 2, "pre-norm residual block", "GPT-2, section 2.3",
     "The norm is inside the branch; the sum itself is never normalised."),
    ("2.6", "TextEncoder.embed", 2, "learned padding", "GLIDE's text encoder",
     "Where the mask is False, nothing of the token or its position is left."),
    ("3.1", "timestep_embedding", 3, "a timestep as waves", "Vaswani et al. 2017, section 3.5; ADM",
     "Cosines first; exponents i/half with half = dim/2."),
    ("3.2", "ResBlock.forward", 4, "AdaGN, and a resized identity", "ADM (Dhariwal & Nichol 2021), section 3, eq. 7",
     "Norm first, then (1 + scale)·h + shift. Both branches are resized."),
    ("3.3", "TextAttention.forward", 4, "places attend to words and places at once", "GLIDE section 4",
     "Text keys and values are joined to the image's along the token axis; one softmax over both."),
    ("3.4", "UNet.forward", 5, "skips are a stack", "Ronneberger et al. 2015; ADM section 3",
     "Every state of the way down is pushed; the way up concatenates [h, popped], in this order."),
    ("4.1", "linear_betas", 1, "the linear schedule, for any number of steps", "DDPM section 4",
     "With fewer steps each β is larger in proportion."),
    ("4.2", "cosine_betas", 2, "the cosine schedule", "Improved DDPM, eq. 17",
     "β_t = 1 - ᾱ_t/ᾱ_{t-1}, at most 0.999."),
    ("4.3", "Diffusion.__init__", 6, "the tables of the posterior, respaced", "DDPM eq. 7; Improved DDPM section 4",
     "All tables follow from ᾱ at the kept timesteps; ᾱ before the first one is 1."),
    ("4.4", "Diffusion.q_sample", 2, "straight to step t", "DDPM eq. 4",
     "Two square roots: of ᾱ_t and of 1 - ᾱ_t."),
    ("4.5", "Diffusion.posterior_mean", 2, "the mean of x_{t-1} when x_0 is known", "DDPM eq. 7",
     "Both shares are in the tables."),
    ("4.6", "Diffusion.p_mean_variance", 4, "the model's Gaussian", "Improved DDPM, eq. 15",
     "x0_fn comes before the clip; the logarithms of β and β̃ are interpolated, not their values."),
    ("4.7", "Diffusion.loss", 4, "the hybrid loss", "Improved DDPM, eq. 16",
     "The mean squared error is of the noise channels only, and the bound must not teach the mean."),
    ("4.8", "Diffusion.ddpm_sample", 4, "ancestral sampling", "DDPM, algorithm 2",
     "From the noisiest timestep to the cleanest; the last step adds no noise."),
    ("4.9", "Diffusion.ddim_sample", 4, "DDIM", "Song et al. 2020, eq. 12 and 16",
     "The predicted noise is used again, in the proportion of the step before."),
    ("4.10", "respace", 3, "fewer steps", "Improved DDPM, section 4",
     "Each section has its own whole number of kept steps, both of its ends included."),
    ("4.11", "to_bytes", 1, "from [-1, 1] to 0 … 255", "GLIDE's released notebooks",
     "Clip before the conversion, for bytes wrap around."),
    ("4.12", "At t = 990 of the cosine schedule ε is guessed 0.01 too large: how far off is x_0?", 1, "errors grow",
     "lesson 04, section 6", "One number in that section's cell has to be changed.", (0.69, 0.74)),
    ("5.1", "classifier_free", 5, "two answers, one guess", "GLIDE section 2.3",
     "ε_∅ + s·(ε_c - ε_∅), on the noise channels only; the second half of the batch has an empty mask."),
    ("5.2", "clip_guidance", 4, "the gradient of a similarity", "GLIDE section 2.4",
     "Samplers run without gradients; only x needs one."),
    ("5.3", "contrastive_loss", 4, "which caption is whose", "CLIP, figure 3",
     "Both directions; the right answer is shared among all captions that are true."),
    ("5.4", "With the branches swapped, s = 5 draws what the right code draws at which s?", 1, "two directions",
     "lesson 05, section 6", "Try it, or solve ε_c + 5·(ε_∅ - ε_c) = ε_∅ + s·(ε_c - ε_∅) for s.", (-4.01, -3.99)),
    ("6.1", "with_known", 3, "what the network is shown", "GLIDE section 2.5 and 4.3",
     "Erase first: image × mask, then the mask itself, behind x."),
    ("6.2", "replace_known", 2, "what is known stays known", "GLIDE section 2.5", "In a tensor mask 1 means known."),
    ("6.3", "overwrite_known", 3, "known, and as noisy as the rest", "DDPM eq. 4; the noise of the step just reached",
     "The sample belongs at t-1, whose ᾱ is process.alpha_bar_prev."),
    ("6.4", "add_mask_channels", 4, "growing without forgetting", "GLIDE section 4.3",
     "Zeros go behind x's channels, in front of low_res."),
    ("7.1", "with_low_res", 3, "the small picture as a condition", "GLIDE section 4",
     "Bilinear, as torch does it by default; x comes first."),
    ("7.2", "round_to_bytes", 2, "as an 8-bit file holds it", "the released notebooks", "diffusion.to_bytes and back."),
    ("7.3", "upsample", 3, "starting from a little less noise", "the released notebooks",
     "Four times the sides; low_res is rounded; noise scales x_T."),
    ("8.1", "lr_scale", 2, "warm-up and decay", "lesson 08", "The warm-up multiplies the decay."),
    ("8.2", "Trainer.batch", 4, "a step's questions", "Ho & Salimans 2022, algorithm 1",
     "Each caption has its own chance to be dropped; dropping is in the mask."),
    ("8.3", "Trainer.update_ema", 3, "the average of the weights", "Improved DDPM, appendix A",
     "avg ← d·avg + (1-d)·weights, in place, and never the same tensors."),
    ("8.4", "Trainer.train_step", 6, "ask, compare, correct", "lesson 08",
     "backward for each part, clip, decide, step, average, forget the gradients."),
    ("8.5", "With d = 0.99 from step 1 on, how many percent of the average are the first weights after 100 steps?", 1,
     "memory", "lesson 08, section 7", "Two numbers in that section's cell have to be changed.", (36.0, 37.2)),
    ("9.1", "InpaintInput.at", 2, "a file's mask becomes a tensor's", "lesson 09", "White is to be drawn; 1 is known."),
    ("9.2", "sample_base", 4, "the first stage", "GLIDE section 2.3 and 2.4; SDEdit section 3.2",
     "Make x_T, wrap the denoiser, and call one sampler."),
    ("9.3", "sample_upsampler", 3, "the second stage", "GLIDE section 4", "No guidance here."),
    ("9.4", "Model.from_saved", 2, "a file becomes a model", "lesson 09", "Ready to draw: no dropout."),
)]


BY_NUMBER = {exercise.number: exercise for exercise in TABLE}
QUESTIONS = {exercise.number for exercise in TABLE if exercise.answer}


def exercises_of(lessons):
    """The exercises of these lessons, in the table's order."""
    return [exercise for exercise in TABLE if exercise.lesson in lessons]


def code_of(lessons):
    """The exercises of these lessons that are functions, not questions."""
    return [exercise for exercise in exercises_of(lessons) if not exercise.answer]


# --- Holes, and how they are filled ------------------------------------------------------------------

def find(tree, name):
    """(list, i): where in a syntax tree the function of this qualified name is. Raises LookupError."""
    body, (*outer, last) = tree.body, name.split(".")
    for part in outer:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == part), [])
    places = [i for i, node in enumerate(body) if isinstance(node, ast.FunctionDef) and node.name == last]
    if not places:
        raise LookupError(f"there is no function {name} in this file")
    return body, places[-1]


def with_holes(source, exercises):
    """A module's text in which the bodies of these exercises are missing. Signatures and docstrings stay."""
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    found = [(body[i], number) for number, (body, i) in ((e.number, find(tree, e.name)) for e in exercises)]
    for node, number in sorted(found, key=lambda pair: -pair[0].lineno):
        signature = max([node.lineno, *(part.end_lineno for part in ast.walk(node.args) if hasattr(part, "lineno"))])
        begin = next(n for n in range(signature, node.end_lineno) if lines[n - 1].rstrip().endswith(":"))
        if ast.get_docstring(node):
            begin = node.body[0].end_lineno
        hole = f'raise NotImplementedError("exercise {number}")\n'
        lines[begin:node.end_lineno] = [" " * node.body[0].col_offset + hole]
    return "".join(lines)


@lru_cache
def course_tree(lesson):
    """The syntax tree of the course's own module."""
    return ast.parse(MODULES[lesson].read_text(encoding="utf-8"))


def graft(source, number):
    """The syntax tree of a student's module, with the course's own function in the place of every *other* exercise."""
    lesson = int(number.split(".")[0])
    name = MODULES[lesson].name
    tree, course = ast.parse(source, name), course_tree(lesson)
    find(tree, BY_NUMBER[number].name)                  # raises LookupError if it is not there
    for exercise in code_of([lesson]):
        if exercise.number == number:
            continue
        body, i = find(course, exercise.name)
        with suppress(LookupError):
            theirs, j = find(tree, exercise.name)
            theirs[j] = body[i]
    return tree


# --- Points ------------------------------------------------------------------------------------------

MODULES_SHARE, WHOLE_SHARE = 85, 15        # of 100: each exercise by itself; all of the student's modules together
WHOLE = Exercise("whole", "all modules together", WHOLE_SHARE, "the pipeline", "lesson 09",
                 "First look at each exercise by itself.")


def fraction(results):
    """The share of an exercise's tests that passed; none if the process did not survive them."""
    return 0.0 if any(r.name == processes.ALL for r in results) else sum(not r.problem for r in results) / len(results)


def read_submission(folder):
    """{lesson: text} of a student's modules. Only files of the modules' names are read; own/ comes first."""
    sources = {}
    for n, module in MODULES.items():
        for path in (folder / "own" / module.name, folder / module.name):
            if n not in sources and path.is_file():
                sources[n] = path.read_text(encoding="utf-8", errors="replace")
    return sources


def read_answers(folder):
    """{number: (value, sentence)} of the questions' answers: lines such as "4.12 = 250  because …"."""
    answers = {}
    with suppress(OSError):
        for line in (folder / ANSWERS).read_text(encoding="utf-8", errors="replace").splitlines():
            number, _, rest = line.partition("=")
            value, _, sentence = rest.strip().partition(" ")
            with suppress(ValueError):
                answers[number.strip()] = float(value), sentence.strip()
    return answers


def judge_answer(exercise, answers):
    """A question's [Result, Result]: for the number and for the sentence, which a person has to read."""
    if exercise.number not in answers:
        return [processes.Result("the number", "not done yet"), processes.Result("a sentence", "not done yet")]
    (value, sentence), (low, high) = answers[exercise.number], exercise.answer
    wrong = f"asked  {exercise.name}\ncame   {value:g}, which is not in the range that the experiment gives"
    short = f"behind the number in {ANSWERS}, say in a sentence why it is so"
    return [processes.Result("the number", "" if low <= value <= high else wrong),
            processes.Result("a sentence", "" if len(sentence.split()) >= 5 else short)]


def judge_modules(folder, exercises, label="", own=False, **options):
    """{number: [Result]} for each of these exercises, by itself, in the student's folder. own: with the student's own
    earlier modules."""
    sources, answers, results, tasks = read_submission(folder), read_answers(folder), {}, []
    for exercise in exercises:
        if exercise.answer:
            results[exercise.number] = judge_answer(exercise, answers)
        elif exercise.lesson not in sources:
            nothing = processes.Result(processes.ALL, f"there is no {MODULES[exercise.lesson].name}")
            results[exercise.number] = [nothing]
        else:
            before = range(1, exercise.lesson) if own else ()
            used = {n: text for n, text in sources.items() if n == exercise.lesson or n in before}
            tasks.append(processes.Task(label, exercise.number, used))
    judged = processes.judge(tasks, **options) if tasks else []
    return results | {task.number: result for task, result in zip(tasks, judged)}


def judge_whole(folder, lessons, suspects, **options):
    """([Result] of all the student's modules together, what to say of them).

    If they do not work together, one module at a time is exchanged for the course's own: the one with which all
    works is the culprit. suspects are the lessons in which points were lost, which are tried alone if there are any.
    """
    sources = {n: text for n, text in read_submission(folder).items() if n in lessons}
    if missing := [MODULES[n].name for n in lessons if n not in sources]:
        return [processes.Result(processes.ALL, f"there is no {missing[0]}")], f"there is no {missing[0]}"
    results, = processes.judge([processes.Task("whole", "whole", sources)], **options)
    if fraction(results) == 1:
        return results, "all modules work together"
    tried = suspects or lessons
    without = [processes.Task(str(n), "whole", {k: text for k, text in sources.items() if k != n}) for n in tried]
    culprits = [MODULES[n].name for n, r in zip(tried, processes.judge(without, **options)) if fraction(r) == 1]
    return results, (f"with the course's own {culprits[0]} in its place, all of it works" if culprits else
                     "no single module, exchanged for the course's own, makes it work")


# --- For students: start, check ----------------------------------------------------------------------

def start(args):
    """work/04_diffusion.py with holes, and the modules before it."""
    lesson, work = args.number[0], args.work
    target, exercises = work / MODULES[lesson].name, exercises_of([lesson])
    if target.exists():
        raise ValueError(f"{target} is there already, and stays as it is; move it away to start afresh")
    work.mkdir(parents=True, exist_ok=True)
    for n in range(1, lesson):
        whole, path = MODULES[n].read_text(encoding="utf-8"), work / MODULES[n].name
        if path.exists() and not args.own and (text := path.read_text(encoding="utf-8")) != whole:
            if text != with_holes(whole, code_of([n])):      # more than untouched holes: it is the student's
                (work / "own").mkdir(exist_ok=True)
                path.rename(unused(work / "own" / path.name))
                print(f"your {path.name} is now in {work / 'own'}; --own would have used it")
            path.unlink(missing_ok=True)
        if not path.exists():
            path.write_text(whole, encoding="utf-8")
    target.write_text(with_holes(MODULES[lesson].read_text(encoding="utf-8"), code_of([lesson])), encoding="utf-8")
    if questions := "".join(f"# {e.name}\n{e.number} = ?\n" for e in exercises if e.answer):
        with open(work / ANSWERS, "a", encoding="utf-8") as file:
            file.write(questions)
    with suppress(OSError):                                  # the modules' demonstrations look there for weights
        (work / "lessons").symlink_to(ROOT / "lessons")
    for exercise in exercises:
        print(row(exercise))
    print(f"They are holes in {target}. When one is filled: python lessons/exercises.py check {exercises[0].number}")


def unused(path):
    """This path, or with a number behind it the first that does not exist."""
    return next(p for k in range(1000) if not (p := path.with_name(path.name + f".{k}" * bool(k))).exists())


def check(args):
    """What is right in work/, and a hint for what is not."""
    lesson = args.number[0]
    if not (args.work / MODULES[lesson].name).exists() and not (args.work / "own" / MODULES[lesson].name).exists():
        raise ValueError(f"there is no {MODULES[lesson].name} in {args.work}; python lessons/exercises.py start"
                         f" {lesson} puts it there")
    chosen = [e for e in exercises_of([lesson]) if args.number[1] in (None, e.number)]
    found = judge_modules(args.work, chosen, own=args.own, seed=args.seed)
    for exercise in chosen:
        print(told(exercise, found[exercise.number], args.verbose))


def told(exercise, results, verbose=False):
    """What a student is told of an exercise: a line; and of what is wrong the first problem, with a hint."""
    wrong = [result for result in results if result.problem]
    right = f"{round(exercise.points * fraction(results), 2):g} of {exercise.points} points"
    text = f"{exercise.number:>5}  {exercise.name if not exercise.answer else 'question'}: {right}"
    if not wrong:
        return text
    if all(result.problem == "not done yet" for result in wrong):
        return f"{text}, not done yet"
    lines = [text + (f", {len(results) - len(wrong)} of {len(results)} tests passed")]
    for result in wrong if verbose else wrong[:1]:
        lines += [f"{result.name}:", *result.problem.splitlines()]
        lines += result.detail.splitlines() if verbose else []
    lines.append(f"hint   {exercise.hint}   [{exercise.source}]")
    return "\n         ".join(lines)


def row(exercise):
    """A line of the list of exercises."""
    return f"{exercise.number:>5}  {exercise.points} points  {exercise.name} ({exercise.concept}) [{exercise.source}]"


# --- For teachers: grade -----------------------------------------------------------------------------

class Grade(NamedTuple):
    """All that is known of one student. results {number: [Result]}, with "whole" among the numbers."""

    student: str
    results: dict
    verdict: str          # on all modules together

    def points(self, exercise):
        """Of 100: what an exercise gives, and what it can give."""
        possible = sum(e.points for e in TABLE if e.number in self.results)
        most = exercise.points if exercise == WHOLE else MODULES_SHARE * exercise.points / possible
        return most * fraction(self.results[exercise.number]), most

    def total(self):
        return sum(self.points(e)[0] for e in (*TABLE, WHOLE) if e.number in self.results)


def grade(args):
    """Grade every student's folder: grades.csv, a report and JUnit's XML for each, and results.json for Gradescope."""
    if not args.submissions.is_dir():
        raise ValueError(f"there is no folder {args.submissions}")
    alone = any((args.submissions / module.name).exists() for module in MODULES.values())
    students = [args.submissions] if alone else sorted(p for p in args.submissions.iterdir() if p.is_dir())
    if not students:
        raise ValueError(f"{args.submissions} holds neither modules such as 04_diffusion.py nor folders of students")
    lessons, started = args.lesson or list(MODULES), time.monotonic()
    options = {"seed": args.seed, "hidden": args.hidden}
    pool = ThreadPoolExecutor(args.jobs)
    # How long does the course's own code take on this machine? And do the tests, hidden ones too, accept it?
    course = grade_one(ROOT, lessons, pool, options).results
    wrong = [n for n, found in course.items() if fraction(found) < 1 and n not in QUESTIONS]
    if wrong:
        raise ValueError(f"the course's own code fails the tests of {', '.join(wrong)}: mend the tests first")
    options["limits"] = {number: 10 * sum(r.seconds for r in found) for number, found in course.items()}
    grades = []
    for folder in students:
        grades.append(grade_one(folder, lessons, pool, options))
        print(f"{grades[-1].student:<24} {grades[-1].total():5.1f} of 100; {grades[-1].verdict}", flush=True)
    reports = import_module("lessons.exercises.reports")
    for one in grades:
        reports.write(one, args, time.monotonic() - started)
    reports.write_table(grades, [*exercises_of(lessons), WHOLE], args.out)
    print(f"wrote {args.out / 'grades.csv'}, and a report for each student in {args.out / 'reports'}")


def grade_one(folder, lessons, pool, options):
    """The Grade of one student's folder; the lessons are judged side by side."""
    judged = pool.map(lambda n: judge_modules(folder, exercises_of([n]), **options), lessons)
    found = {number: results for lesson in judged for number, results in lesson.items()}
    suspects = [n for n in lessons if any(fraction(found[e.number]) < 1 for e in code_of([n]))]
    found["whole"], verdict = judge_whole(folder, lessons, suspects, **options)
    return Grade(folder.resolve().name, found, verdict)


# --- The command line --------------------------------------------------------------------------------

def exercise_number(text):
    """A type for argparse: "4" -> (4, None), "4.2" -> (4, "4.2")."""
    lesson = int(text.split(".")[0])
    if lesson not in MODULES or "." in text and text not in BY_NUMBER:
        raise ValueError
    return lesson, text if "." in text else None


def arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description="The course's exercises.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="start | check | grade")
    for command, help in (start, "make holes in a module"), (check, "run the tests of your module"):
        sub = commands.add_parser(command.__name__, help=help)
        sub.add_argument("number", type=exercise_number, help="a lesson, such as 4; of check also an exercise: 4.2")
        sub.add_argument("--work", type=Path, default=Path("work"), help="your folder (default: work)")
        sub.add_argument("--own", action="store_true", help="with your own earlier modules instead of the course's")
        sub.add_argument("--seed", type=int, default=0, help="of the tests' inputs")
        sub.add_argument("-v", "--verbose", action="store_true", help="all that failed, with tracebacks")
        sub.set_defaults(run=command)
    sub = commands.add_parser("grade", help="grade what students handed in")
    sub.add_argument("submissions", type=Path, help="a folder with a folder for each student, or one student's")
    sub.add_argument("--out", type=Path, required=True, help="where grades.csv and the reports go")
    sub.add_argument("--lesson", type=int, nargs="+", choices=list(MODULES), help="only these (default: all)")
    sub.add_argument("--seed", type=int, default=0, help="of the tests' inputs: take another one than students know")
    sub.add_argument("--hidden", type=Path, help="a folder with more tests, test_*.py, like the course's")
    sub.add_argument("--gradescope", action="store_true", help="write results.json in Gradescope's format, too")
    sub.add_argument("--jobs", type=int, default=2, help="lessons that are judged at the same time (2)")
    sub.set_defaults(run=grade)
    parser.set_defaults(run=lambda args: print(*map(row, TABLE), sep="\n"))
    return parser.parse_args(argv)


def main(argv=None):
    """-> the exit status. What a person can mend is one line."""
    args = arguments(argv)
    try:
        args.run(args)
        return 0
    except (ValueError, OSError, LookupError) as error:
        print(f"exercises.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        processes.stop()
        print("exercises.py: stopped", file=sys.stderr, flush=True)
        os._exit(130)                # without waiting for the pool, which would start the next module


if __name__ == "__main__":
    sys.exit(main())
