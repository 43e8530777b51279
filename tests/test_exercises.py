"""The assignments: holes, tests, hints; what a student and a teacher see; submissions that would spoil the grading.

    python -m pytest -m assignments      the long part: wrong solutions are caught, right ones accepted, and a class of
                                         faulty submissions is graded; pytest alone leaves it out
"""
import ast
import csv
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from xml.etree import ElementTree

import pytest
import small

exercises = import_module("lessons.exercises")
processes = import_module("lessons.exercises.processes")
LESSONS = list(exercises.MODULES)
SOURCES = {n: path.read_text(encoding="utf-8") for n, path in exercises.MODULES.items()}
FUNCTIONS = [e for e in exercises.TABLE if not e.answer]
assignments = pytest.mark.assignments


def mutants(lesson):
    return import_module(f"mutants.lesson_0{lesson}")


def run(*args):
    return small.run("lessons/exercises.py", *args)


def names_of_tests(lesson):
    tree = ast.parse((processes.TESTS / f"test_0{lesson}.py").read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


# --- The table, the holes and the tests belong together ---

def test_every_lesson_has_exercises_from_easy_to_hard_in_order():
    for n in LESSONS:
        numbers = [e.number for e in exercises.exercises_of([n])]
        assert len(numbers) >= 3, f"lesson {n} has {len(numbers)} exercises"
        assert numbers == [f"{n}.{k}" for k in range(1, len(numbers) + 1)], "numbers are lesson.1, lesson.2, …"


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda e: e.number)
def test_an_exercise_is_a_function_of_its_module_with_tests_and_mutants(exercise):
    body, i = exercises.find(ast.parse(SOURCES[exercise.lesson]), exercise.name)
    tests = [name for name in names_of_tests(exercise.lesson) if
             name.startswith(f"test_{exercise.number.replace('.', '_')}_")]
    wrong = [m for m in mutants(exercise.lesson).MUTANTS if m[0] == exercise.number]
    assert exercise.hint and exercise.concept and exercise.source and exercise.points > 0
    assert tests, f"{exercise.number} has no tests"
    assert len(wrong) >= 3, f"{exercise.number}: at least three realistic mistakes show that its tests can see"
    lines = SOURCES[exercise.lesson].splitlines()[body[i].lineno - 1:body[i].end_lineno]
    for _, old, new, idea in wrong:
        assert SOURCES[exercise.lesson].count(old) == 1 and old != new, f"{old!r} must occur once"
        assert old in "\n".join(lines), f"{old!r} is not in {exercise.name}"


@pytest.mark.parametrize("exercise", exercises.TABLE, ids=lambda e: e.number)
def test_the_lesson_lists_the_exercise(exercise):
    notebook = (small.ROOT / "lessons" / f"{exercises.MODULES[exercise.lesson].stem}.ipynb").read_text(encoding="utf-8")
    name = "a question" if exercise.answer else f"`{exercise.name}`"
    row = f"| {exercise.number} | {name} ({exercise.points})"
    assert row in notebook, "a lesson ends with the exercises of the table, under the same numbers"


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_hole_keeps_signature_and_docstring_and_nothing_of_the_answer(lesson):
    hollow = exercises.with_holes(SOURCES[lesson], exercises.code_of([lesson]))
    for exercise in exercises.code_of([lesson]):
        (before, i), (after, k) = (exercises.find(ast.parse(text), exercise.name) for text in (SOURCES[lesson], hollow))
        was, now = before[i], after[k]
        assert ast.dump(was.args) == ast.dump(now.args), "the signature stays"
        assert ast.get_docstring(was) == ast.get_docstring(now), "the docstring stays"
        text = "\n".join(hollow.splitlines()[now.lineno - 1:now.end_lineno])
        assert text.endswith(f'raise NotImplementedError("exercise {exercise.number}")')
        without = text.replace(ast.get_docstring(now, clean=False) or " ", "")
        assert "#" not in without.split("):")[-1], "no comment of the answer is left"


def test_a_graft_takes_one_function_from_the_student_and_the_other_exercises_from_the_course():
    source = "import os\n" + exercises.with_holes(SOURCES[7], exercises.code_of([7])) + "\nHELPER = 1\n"
    tree = ast.unparse(exercises.graft(source, "7.2"))
    assert tree.count("NotImplementedError") == 1 and "exercise 7.2" in tree, "only this exercise is the student's"
    assert "HELPER = 1" in tree and tree.startswith("import os"), "the rest of the file is the student's as well"


# --- Commands ---

def test_start_makes_holes_and_overwrites_nothing(tmp_path):
    work = tmp_path / "work"
    first = run("start", 2, "--work", work)
    assert first.returncode == 0 and "2.1" in first.stdout
    assert (work / "01_tokenizer.py").read_text(encoding="utf-8") == SOURCES[1], "predecessors are whole"
    assert "exercise 2.1" in (work / "02_transformer.py").read_text(encoding="utf-8")
    mine = (work / "02_transformer.py").read_text(encoding="utf-8") + "# mine\n"
    (work / "02_transformer.py").write_text(mine, encoding="utf-8")
    again = run("start", 2, "--work", work)
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "stays as it is" in again.stderr
    assert run("start", 3, "--work", work).returncode == 0
    assert (work / "own" / "02_transformer.py").read_text(encoding="utf-8") == mine, "what was done is kept"
    assert (work / "02_transformer.py").read_text(encoding="utf-8") == SOURCES[2], "lesson 3 starts from a whole 02"


def test_start_with_own_leaves_ones_own_predecessors(tmp_path):
    (tmp_path / "01_tokenizer.py").write_text("# mine\n", encoding="utf-8")
    assert run("start", 2, "--own", "--work", tmp_path).returncode == 0
    assert (tmp_path / "01_tokenizer.py").read_text(encoding="utf-8") == "# mine\n"


@pytest.mark.parametrize("args, words", [
    (("check", 4), "start 4 puts it there"), (("check", "4.99"), "invalid"), (("start", "12"), "invalid"),
    (("grade", "nowhere", "--out", "x"), "no folder"), (("grade", ".ci", "--out", "x"), "neither modules")])
def test_a_refusal_is_one_line_and_status_2(args, words, tmp_path):
    work = ("--work", tmp_path / "none") if args[0] != "grade" else ()
    done = run(*args, *work)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_check_tells_what_is_right_and_hints_at_what_is_not(tmp_path):
    run("start", 1, "--work", tmp_path)
    hollow = (tmp_path / "01_tokenizer.py").read_text(encoding="utf-8")
    tree, course = ast.parse(hollow), ast.parse(SOURCES[1])
    body, i = exercises.find(course, "BPETokenizer.pad")
    theirs, k = exercises.find(tree, "BPETokenizer.pad")
    theirs[k] = body[i]
    text = ast.unparse(tree).replace("raise NotImplementedError('exercise 1.1')", "return ids")
    (tmp_path / "01_tokenizer.py").write_text(text, encoding="utf-8")
    done = run("check", 1, "--work", tmp_path)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()[:2] == "1."}
    assert "2 of 2 points" in lines["1.5"], "one exercise counts, though others are not done"
    assert "not done yet" in lines["1.2"]
    assert "0 of 2 points" in lines["1.1"] and all(word in done.stdout for word in ("asked", "came", "idea", "hint"))
    assert "Traceback" not in done.stdout + done.stderr, "a student reads sentences, not tracebacks"


def test_an_answer_is_a_number_in_a_range_and_a_sentence(tmp_path):
    question = exercises.Exercise("9.99", "How many?", 2, "", "", "", (3.0, 4.0))
    (tmp_path / "answers.txt").write_text("9.99 = 3.5  because half of them are hidden\n9.98 = ?\n", encoding="utf-8")
    good = exercises.judge_answer(question, exercises.read_answers(tmp_path))
    assert not any(result.problem for result in good)
    (tmp_path / "answers.txt").write_text("9.99 = 30\n", encoding="utf-8")
    assert all(result.problem for result in exercises.judge_answer(question, exercises.read_answers(tmp_path)))


# --- Wrong solutions are caught, right ones are not ---

def judged(tasks):
    """Two processes side by side."""
    halves = [tasks[::2], tasks[1::2]]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda half: processes.judge(half) if half else [], halves))
    return [found[i % 2][i // 2] for i in range(len(tasks))]


@assignments
@pytest.mark.parametrize("lesson", LESSONS)
def test_wrong_solutions_are_caught_by_name_and_right_ones_pass(lesson):
    data, source = mutants(lesson), SOURCES[lesson]
    hollow = exercises.with_holes(source, exercises.code_of([lesson]))
    kinds = [("the course's own", e.number, source) for e in exercises.code_of([lesson])]
    kinds += [("a stub", e.number, hollow) for e in exercises.code_of([lesson])]
    kinds += [(f"variant {new!r}", number, source.replace(old, new)) for number, old, new in data.VARIANTS]
    kinds += [(idea, number, source.replace(old, new)) for number, old, new, idea in data.MUTANTS]
    found = judged([processes.Task(str(i), number, {lesson: text}) for i, (_, number, text) in enumerate(kinds)])
    wrong = []
    for (kind, number, _), results in zip(kinds, found):
        problems = " ".join(result.problem for result in results if result.problem)
        expected = {"the course's own": not problems, "a stub": all(r.problem == "not done yet" for r in results)}
        right = not problems if kind.startswith("variant") else expected.get(kind, kind.lower() in problems.lower())
        if not right:
            wrong.append(f"{number}, {kind}: {problems or 'nothing was noticed'}")
    assert not wrong, "\n".join(wrong)


def test_ten_odd_but_right_solutions_are_among_the_tests():
    assert sum(len(mutants(n).VARIANTS) for n in LESSONS) >= 10


# --- Submissions that would spoil the grading ---

def instead(name, body):
    """Lesson 1 with another body of one function."""
    tree = ast.parse(SOURCES[1])
    place, i = exercises.find(tree, name)
    place[i].body = ast.parse(body).body
    return ast.unparse(tree)


FAULTY = {      # name: (text of 01_tokenizer.py, exercises that fail, a word of the reason, other files)
    "endless loop at import": (SOURCES[1] + "\nwhile True: pass\n", "all", "endless", {}),
    "endless loop in a function": (instead("merge", "while True: pass"), ["1.1"], "endless", {}),
    "swallowed exceptions": (instead("merge", "while True:\n try:\n  [].pop()\n except BaseException:\n  pass"),
                             ["1.1"], "endless", {}),
    "exit in a function": (instead("merge", "import os; os._exit(0)"), ["1.1"], "ended", {}),
    "exit at import": (SOURCES[1] + "\nimport sys\nsys.exit(0)\n", "all", "SystemExit", {}),
    "os._exit at import": (SOURCES[1] + "\nimport os\nos._exit(0)\n", "all", "ended", {}),
    "forged results": (instead("merge", "print('[\"test\", 0, \"t\", \"\", \"\", 0]')\n"
                               "open('results.json', 'w').write('{}')\nreturn ids"), ["1.1"], "idea",
                       {"grades.csv": "student,of 100\nme,100\n", "results.json": '{"score": 100}',
                        "junit.xml": "<a/>"}),
    "changed tests": (instead("merge", "return ids"), ["1.1"], "idea",
                      {"test_01.py": "def test_1_1_a(): pass", "lessons/exercises/test_01.py": "",
                       "exercises/conftest.py": ""}),
    "patched torch and pytest": ("import torch, pytest\ntorch.allclose = torch.equal = lambda *a, **k: True\n"
                                 "pytest.fail = pytest.raises = lambda *a, **k: None\n"
                                 + instead("merge", "return ids"), ["1.1"], "idea", {}),
    "always equal": (instead("merge", "class Yes:\n def __eq__(self, other): return True\nreturn Yes()"),
                     ["1.1"], "Yes", {}),
    "a tuple that is always equal": (instead("merge", "class Yes(tuple):\n def __eq__(self, o): return True\n"
                                             "return Yes(ids)"), ["1.1"], "Yes", {}),
    "pytest.skip": (instead("merge", "import pytest; pytest.skip('easy')"), ["1.1"], "skipped", {}),
    "pytest.exit": (instead("merge", "import pytest; pytest.exit('done', 0)"), ["1.1"], "ended", {}),
    "interrupt": (instead("merge", "raise KeyboardInterrupt"), ["1.1"], "ended", {}),
    "recursion": (instead("merge", "return merge(ids, pair, new)"), ["1.1"], "RecursionError", {}),
    "deep recursion": (instead("merge", "import sys; sys.setrecursionlimit(10**9)\nreturn merge(ids, pair, new)"),
                       ["1.1"], "", {}),
    "memory": (instead("merge", "x = bytearray(200 * 2**30)\nreturn ids"), ["1.1"], "MemoryError", {}),
    "syntax error": (SOURCES[1] + "\ndef broken(:\n", "all", "SyntaxError", {}),
    "not text": ("\x00\x01", "all", "", {}),
    "empty": ("", "all", "no function", {}),
    "slow": (instead("merge", "import time; time.sleep(9)\nreturn ids"), ["1.1"], "time", {}),
    "modules beside it": (SOURCES[1], [], "", {"torch.py": "raise SystemExit", "conftest.py": "raise SystemExit",
                                               "sitecustomize.py": "raise SystemExit", "pytest.py": "import os"}),
    "forks and threads": (instead("merge", "import os, threading, time\n"
                                  "threading.Thread(target=time.sleep, args=(600,)).start()\n"
                                  "if not os.fork():\n open(os.environ['LEFT_RUNNING'], 'a').write(f'{os.getpid()} ')\n"
                                  " time.sleep(600)\nreturn ids"), ["1.1"], "", {}),
    "loud": (instead("merge", "print('x' * 10**7)\nopen('big', 'wb').write(bytes(10**8))\nreturn ids"),
             ["1.1"], "", {}),
}


@pytest.fixture(scope="module")
def class_of_faults(tmp_path_factory):
    """{name: {exercise: results}}: all of them, two at a time."""
    root = tmp_path_factory.mktemp("class")
    os.environ["LEFT_RUNNING"] = str(root / "pids")
    for name, (text, _, _, files) in FAULTY.items():
        for path, content in {"01_tokenizer.py": text, **files}.items():
            (root / name / path).parent.mkdir(parents=True, exist_ok=True)
            (root / name / path).write_text(content, encoding="utf-8")
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: exercises.judge_modules(root / name, exercises.code_of([1]), name), FAULTY)
        return dict(zip(FAULTY, found)), root


@assignments
@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_submission_fails_alone_and_says_why(name, class_of_faults):
    found, root = class_of_faults
    _, failing, word, _ = FAULTY[name]
    failing = [e.number for e in exercises.code_of([1])] if failing == "all" else failing
    for e in exercises.code_of([1]):
        problems = " ".join(result.problem for result in found[name][e.number] if result.problem)
        if e.number in failing:
            assert exercises.fraction(found[name][e.number]) < 1, f"{e.number} cannot be right"
            assert word in problems, f"the reason is named: {problems!r}"
        else:
            assert not problems, f"{e.number} still counts: {problems}"


@assignments
def test_nothing_is_left_running(class_of_faults):
    pids = (class_of_faults[1] / "pids").read_text(encoding="utf-8").split()
    time.sleep(0.5)
    alive = [pid for pid in pids if os.path.exists(f"/proc/{pid}/cmdline") and open(f"/proc/{pid}/cmdline").read()]
    assert pids and not alive, "processes that a submission started end with its grading"


@assignments
def test_a_missing_file_is_no_points_and_named(tmp_path):
    found = exercises.judge_modules(tmp_path, exercises.code_of([1]))
    assert all("there is no 01_tokenizer.py" in results[0].problem for results in found.values())


@assignments
def test_a_tensor_that_claims_to_be_equal_is_refused(tmp_path):
    trick = ("class Sure(torch.Tensor):\n    @classmethod\n"
             "    def __torch_function__(cls, f, types, args=(), kwargs=None):\n        return True\n\n")
    text = SOURCES[2].replace("def attention_weights", trick + "def attention_weights", 1)
    text = text.replace("    scale = q.shape[-1] ** -0.25\n", "    return torch.zeros(1).as_subclass(Sure)\n", 1)
    (tmp_path / "02_transformer.py").write_text(text, encoding="utf-8")
    results = exercises.judge_modules(tmp_path, exercises.code_of([2]))
    assert exercises.fraction(results["2.1"]) == 0 and exercises.fraction(results["2.3"]) == 1


# --- Grades ---

@assignments
def test_a_class_gets_tables_reports_junit_and_gradescope(tmp_path):
    for student, text in (("ada", SOURCES[1]), ("ben", instead("merge", "return ids"))):
        (tmp_path / "in" / student).mkdir(parents=True)
        (tmp_path / "in" / student / "01_tokenizer.py").write_text(text, encoding="utf-8")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "test_more.py").write_text(
        "from expect import same\n\ndef test_1_1_more(m):\n"
        "    same('merge', m.merge((1, 2), (1, 2), 3), (3,), 'merged')\n", encoding="utf-8")
    out = tmp_path / "out"
    done = run("grade", tmp_path / "in", "--out", out, "--lesson", 1, "--seed", 5, "--gradescope", "--hidden",
               tmp_path / "hidden")
    assert done.returncode == 0, done.stderr
    ada, ben = csv.DictReader(open(out / "grades.csv", encoding="utf-8"))
    assert float(ada["of 100"]) == 100 and ada["1.1"] == "2", "the course's own solution gets all points"
    assert 0 < float(ben["of 100"]) < 100 and float(ben["1.1"]) < 2 and ben["1.5"] == "2", "partial credit"
    report = (out / "reports" / "ben.md").read_text(encoding="utf-8")
    assert "public and hidden tests" in report and "seed 5" in report and "01_tokenizer.py" in report
    suites = ElementTree.parse(out / "junit" / "ben.xml").getroot()
    told = report + ElementTree.tostring(suites, "unicode")
    assert "a hidden test failed" in told and "test_1_1_more" not in told, "of hidden tests no more is said"
    assert suites.findall(".//failure"), "JUnit shows what failed"
    for student, total in ("ada", 100), ("ben", float(ben["of 100"])):
        result = json.loads((out / "gradescope" / student / "results.json").read_text(encoding="utf-8"))
        assert abs(sum(test["score"] for test in result["tests"]) - total) < 0.1 and "score" not in result
        assert abs(sum(test["max_score"] for test in result["tests"]) - 100) < 0.01
        assert {"visible", "hidden"} == {test["visibility"] for test in result["tests"]}
