"""What a grade becomes: a table of all students, and for each a report, JUnit's XML and Gradescope's results.json.

    grades.csv                     a row for each student, a column for each exercise, "whole" and "of 100"
    reports/NAME.md                what the student is told
    junit/NAME.xml                 a test suite for each exercise
    gradescope/NAME/results.json   {"tests": [...], "execution_time", "stdout_visibility"}; it has no score of its own,
                                   which would override the sum of the tests
"""
import csv
import json
from importlib import import_module
from xml.etree import ElementTree

exercises = import_module("lessons.exercises")
atomic_write = import_module("03_unet").atomic_write


def write_table(grades, columns, out):
    """grades.csv."""
    with atomic_write(out / "grades.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["student", *(exercise.number for exercise in columns), "of 100"])
        for one in grades:
            points = [exercise.points * exercises.fraction(one.results[exercise.number]) for exercise in columns]
            table.writerow([one.student, *(f"{round(p, 2):g}" for p in points), f"{one.total():.1f}"])


def write(one, args, seconds):
    """The files of one student. Of hidden tests they say no more than whether they passed."""
    by = "public and hidden tests" if args.hidden else "public tests"
    report = [f"# {one.student}", "", f"{one.total():.1f} of 100, by the {by}, with seed {args.seed}.",
              f"All modules together: {one.verdict}.", ""]
    suites, tests = ElementTree.Element("testsuites"), []
    for number, results in one.results.items():
        exercise = exercises.WHOLE if number == "whole" else exercises.BY_NUMBER[number]
        shown = [r._replace(name=f"{exercises.HIDDEN}test", problem=r.problem and "a hidden test failed", detail="")
                 if exercises.HIDDEN in r.name else r for r in results]
        report += ["    " + line for line in printable(exercises.told(exercise, shown)).splitlines()] + [""]
        add_suite(suites, f"{number} {exercise.name} ({by})", number, shown)
        tests += gradescope_tests(one, exercise, shown)
    files = {f"reports/{one.student}.md": "\n".join(report),
             f"junit/{one.student}.xml": ElementTree.tostring(suites, "unicode")}
    if args.gradescope:
        files[f"gradescope/{one.student}/results.json"] = json.dumps(
            {"tests": tests, "execution_time": round(seconds), "stdout_visibility": "hidden"}, indent=1)
    for name, text in files.items():
        with atomic_write(args.out / name) as path:
            path.write_text(text, encoding="utf-8")


def printable(text):
    """Text without control characters, which XML does not allow and terminals obey."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def add_suite(suites, name, number, results):
    """JUnit's element for the tests of an exercise."""
    failures = sum(bool(result.problem) for result in results)
    suite = ElementTree.SubElement(suites, "testsuite", name=name, tests=str(len(results)), failures=str(failures))
    for result in results:
        case = ElementTree.SubElement(suite, "testcase", classname=number, name=result.name,
                                      time=f"{result.seconds:.3f}")
        if result.problem:
            ElementTree.SubElement(case, "failure").text = printable(result.problem)


def gradescope_tests(one, exercise, results):
    """The entries of an exercise in results.json: one for its public tests, and one for hidden ones if there are any,
    which share its points by their number."""
    (score, most), entries = one.points(exercise), []
    for kind, visibility in ("public tests", "visible"), ("hidden tests", "hidden"):
        part = [result for result in results if (exercises.HIDDEN in result.name) == (visibility == "hidden")]
        passed = [result for result in part if not result.problem]
        if part:
            entries.append({
                "name": f"{exercise.number} {exercise.name} ({kind})", "number": exercise.number,
                "score": round(most * len(passed) / len(results) if score else 0, 5),
                "max_score": round(most * len(part) / len(results), 5), "visibility": visibility,
                "status": "passed" if len(passed) == len(part) else "failed",
                "output": printable(exercises.told(exercise, part))})
    return entries
