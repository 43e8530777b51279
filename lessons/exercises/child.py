"""The process in which a student's code runs. exercises.py starts it, and says what is asked of it and why.

A job comes in on standard input. The answers go out on what was standard output; what else is printed goes nowhere.
Each line of an answer begins with a random word that only the two processes know, so that a line which the student's
code prints is not taken for one.
"""
import ast
import json
import os
import sys
import types
from contextlib import suppress
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
exercises = import_module("lessons.exercises")
processes = import_module("lessons.exercises.processes")

MODULES = exercises.MODULES
MEMORY, OUTPUT = 8 * 2 ** 30, 2 ** 24        # bytes, of addresses and of any one file


# --- The module under test ---------------------------------------------------------------------------

def load(number, sources, course):
    """The module under test. sources {lesson: text} are the student's; where there is none, the course's is used.

    number  an exercise's; or "whole", for all nine modules as they are: then a dictionary of them is returned
    course  {lesson: module}, the course's own
    """
    sys.modules.update({MODULES[n].stem: module for n, module in course.items()})
    loaded, last = {}, max(course) if number == "whole" else int(number.split(".")[0])
    for n in range(1, last + 1):
        name = MODULES[n].stem
        if n in sources:
            whole = number == "whole" or n < last
            tree = ast.parse(sources[n], name) if whole else exercises.graft(sources[n], number)
            sys.modules[name] = loaded[n] = types.ModuleType(name)
            loaded[n].__file__ = str(MODULES[n])
            exec(compile(tree, f"{name}.py", "exec"), loaded[n].__dict__)
        else:       # the course's, but anew if it is to see a predecessor of the student's
            loaded[n] = course[n]
            if any(k in sources for k in range(1, n)):
                loaded[n] = load_anew(n)
    return loaded if number == "whole" else loaded[last]


def load_anew(n):
    """The course's module n, executed once more, so that it uses the predecessors that are loaded now."""
    sys.modules.pop(MODULES[n].stem)
    return import_module(MODULES[n].stem)


# --- pytest, and what is said of it ------------------------------------------------------------------

class Reporter:
    """The plugin that pytest runs with in the child: it chooses and orders the tests, and tells the parent about each.

    send  a function of what is to be told: event, number of the task, and for a test name, problem, detail, seconds
    """

    def __init__(self, tasks, send):
        self.tasks, self.send, self.now, self.left = tasks, send, None, None

    def pytest_configure(self, config):
        config.tasks = self.tasks                            # shared.py makes one test of each for every task

    def pytest_collection_modifyitems(self, items):
        # pytest makes a test that skips itself of one without a task
        items[:] = [item for item in items if isinstance(item.callspec.params["task"], tuple)]
        items.sort(key=lambda item: item.callspec.params["task"][0])
        self.left = len(items)

    def pytest_runtest_protocol(self, item):
        if self.now != (i := item.callspec.params["task"][0]):
            self.now = i
            self.send("start", self.now)

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::")[-1].split("[")[0]
        name = name if processes.TESTS == (ROOT / report.nodeid.split("::")[0]).parent else exercises.HIDDEN + name
        self.left -= report.when == "teardown"
        if report.when == "setup" and report.passed:
            self.send("loaded", self.now)
        elif report.when == "call" or not report.passed:
            problem = "" if report.passed else "the test was skipped by the code that it tests" if report.skipped else \
                problem_of(report)
            self.send("test", self.now, name, problem, str(report.longrepr or "")[-3000:], report.duration)


def problem_of(report):
    """Why a test failed, in words for a student: what our own assertions say, or which error came from where."""
    if not hasattr(report.longrepr, "reprcrash"):
        return str(report.longrepr)[:500]
    text = report.longrepr.reprcrash.message
    kind, _, message = text.partition(": ")
    if kind.endswith("Wrong"):
        return message.strip()[:2000]
    if kind == "NotImplementedError" and message.startswith("exercise "):
        return "not done yet"
    files = {path.name for path in MODULES.values()}
    places = [entry.reprfileloc for entry in report.longrepr.reprtraceback.reprentries if entry.reprfileloc]
    at = [f" (line {place.lineno} of {place.path})" for place in places if place.path in files]
    return f"it stopped with {text.strip()[:500]}{at[-1] if at else ''}"


def main():
    """What the child does: reads a job, runs pytest, and leaves without waiting for anything a student may have left
    running."""
    import pytest

    job = json.loads(sys.stdin.read())
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    with suppress(ImportError):                              # there is no such module on Windows
        import resource
        for what, most in (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, OUTPUT), (resource.RLIMIT_CORE, 0):
            with suppress(ValueError, OSError):
                resource.setrlimit(what, (most, most))

    def send(*told, secret=job["secret"], write=channel.write, dumps=json.dumps, me=os.getpid(), who=os.getpid):
        if who() == me:                                      # and not a fork that a student's code left running
            write(f"{secret}{dumps(told)}\n")

    tasks = [processes.Task(label, number, {int(n): text for n, text in sources.items()})
             for label, number, sources in job["tasks"]]
    for path in MODULES.values():                            # what takes seconds is not to be charged to the first test
        import_module(path.stem)
    os.environ["EXERCISE_SEED"] = str(job["seed"])
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "shared", "--noconftest", "--rootdir", str(ROOT),
               "-c", str(ROOT / "pyproject.toml")]
    reporter = Reporter(tasks, send)
    pytest.main([*options, *job["tests"]], plugins=[reporter])
    if reporter.left == 0:                                   # otherwise somebody has called exit
        send("done")
    os._exit(0)


if __name__ == "__main__":
    main()
