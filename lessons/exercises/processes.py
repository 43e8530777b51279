"""Students' code runs in processes of its own: this starts them (`judge`), child.py is what they run.

A process does the tasks that it is given one after the other, and tells of each test as it ends. When it hangs or dies,
the task that it was at has failed, and another process is started for those that are left. Nothing is counted but what
a process told: a line that begins with a random word which only it and this one know.
"""
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
RUNNING = set()                             # the children
ALL = "all tests"                           # the name of a result that stands for all of a task's tests
LEAST_SECONDS, START_SECONDS = 5, 120       # for the tests of an exercise; until the first one starts


class Task(NamedTuple):
    """One exercise ("4.5", or "whole") of one submission. sources {lesson: text} are the student's modules."""

    label: str
    number: str
    sources: dict


class Result(NamedTuple):
    """What came of one test. problem is "" if it passed; detail is pytest's traceback."""

    name: str
    problem: str = ""
    detail: str = ""
    seconds: float = 0.0


def judge(tasks, seed=0, limits={}, hidden=None):
    """Run the tests of these tasks, in as many processes as it takes. -> a list of [Result] for each task.

    limits  {number: seconds} for all tests of an exercise together, if more than LEAST_SECONDS
    hidden  a folder with more tests
    """
    results, left = [[] for _ in tasks], list(range(len(tasks)))
    while left:
        current, loaded, end = None, False, ""
        for event, *told in conversation([tasks[i] for i in left], seed, limits, hidden):
            if event == "start":
                current, loaded = left[told[0]], False
            elif event == "loaded":
                loaded = True
            elif event == "test":
                results[left[told[0]]].append(Result(*told[1:]))
            elif event != "done":
                end = event
        if not end:
            break
        if current is None:
            raise ValueError(f"no test could be started: {end}; does python -m pytest lessons/exercises run?")
        left = left[left.index(current) + 1:]
        results[current].append(Result(ALL, end))
        for i in left if not loaded else ():                 # a file that cannot be imported: all of it fails alike
            if tasks[i].label == tasks[current].label:
                results[i].append(Result(ALL, f"when the file is imported, {end}"))
        left = [i for i in left if not results[i]]
    return [result or [Result(ALL, "it has no tests")] for result in results]


def conversation(tasks, seed, limits, hidden):
    """What a child tells: [event, number of the task, …]. The last one is ["done"], or says why it is not."""
    secret, lines, deadline = secrets.token_hex(8), queue.Queue(), time.monotonic() + START_SECONDS
    lessons = sorted({task.number.split(".")[0] for task in tasks})
    tests = [TESTS / ("test_whole.py" if lesson == "whole" else f"test_0{lesson}.py") for lesson in lessons]
    tests += sorted(Path(hidden).resolve().glob("test_*.py")) if hidden else []
    job = {"tasks": tasks, "seed": seed, "secret": secret, "tests": [str(path) for path in tests]}
    # folder is an empty one, and no path of a student's, so that no torch.py or conftest.py of theirs is ever found.
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
            [sys.executable, str(TESTS / "child.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL, encoding="utf-8", errors="replace", cwd=folder, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}) as child:
        RUNNING.add(child)
        threading.Thread(target=listen, args=(child, secret, lines), daemon=True).start()
        try:
            with suppress(OSError):
                child.stdin.write(json.dumps(job))
                child.stdin.close()
            line = None
            while line != ["done"] and (line is None or len(line) > 1):
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
                if line[0] == "start":
                    deadline = time.monotonic() + max(LEAST_SECONDS, limits.get(tasks[line[1]].number, 0))
                yield line
        except queue.Empty:
            yield ["it did not end in the time that it was given; is there an endless loop?"]
        finally:
            end(child)


def end(child):
    """End a child, and the processes that it may have started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()
    RUNNING.discard(child)


def stop():
    """End all that is running."""
    for child in list(RUNNING):
        end(child)


def listen(child, secret, lines):
    """Put what a child tells into a queue, until it ends. Lines that do not begin with the secret are not its own."""
    with suppress(ValueError, OSError):
        while line := child.stdout.readline(100_000):
            if line.startswith(secret):
                lines.put(json.loads(line[len(secret):]))
    lines.put(["the process ended before its tests did: os._exit, pytest.exit, or out of memory?"])
