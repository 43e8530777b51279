"""What the tests of the exercises share: the student's module, the course's own, and random inputs.

    python -m pytest lessons/exercises/test_04.py      tests work/04_diffusion.py; where there is none, the course's own

A test of exercise 4.5 is a function test_4_5_SOMETHING in test_04.py. What it takes are fixtures:

    m       the student's module, in which all other exercises are the course's own; in test_whole.py a dictionary
            {lesson: module} of all nine
    course  {lesson: module}, the course's own modules, for expected values
    rng     a random.Random that depends on --seed and on the test
    draw    draw(*shape) -> float32 tensor of unit Gaussian noise, likewise
"""
import os
import random
from importlib import import_module

import expect  # noqa: F401  loaded before any student's code, so that nothing that it needs can be exchanged
import pytest
import torch

from lessons.exercises import child, processes
from lessons import exercises

MODULES, SEED = exercises.MODULES, os.environ.get("EXERCISE_SEED", "0")
COURSE, LOADED = {}, {}


def number_of(name):
    """test_4_10_something -> "4.10"; test_whole_something -> "whole"."""
    _, lesson, place, *_ = name.split("_") + [""]
    return "whole" if lesson == "whole" else f"{lesson}.{place}"


def pytest_generate_tests(metafunc):
    """A test runs once for each task that belongs to its exercise; see Reporter in child.py."""
    number, tasks = number_of(metafunc.function.__name__), getattr(metafunc.config, "tasks", None)
    if tasks is None:                                        # plain pytest, without a grader
        sources = exercises.read_submission(exercises.ROOT / "work")
        last = max(MODULES) if number == "whole" else int(number.split(".")[0])
        tasks = [processes.Task("work", number, {n: text for n, text in sources.items() if n == last or
                                                 number == "whole"})]
    chosen = [(i, task) for i, task in enumerate(tasks) if task.number == number]
    metafunc.parametrize("task", chosen, ids=[task.label for _, task in chosen])


@pytest.fixture
def course(request):
    """{lesson: module}: the course's own, up to the lesson of the file."""
    name = request.path.stem.removeprefix("test_")
    for n in MODULES:
        if n not in COURSE and (not name.isdigit() or n <= int(name)):
            COURSE[n] = import_module(MODULES[n].stem)
    return COURSE


@pytest.fixture
def m(task, course):
    """The student's module, loaded once for all tests of an exercise."""
    i, (_, number, sources) = task
    if (i, number) not in LOADED:
        LOADED.clear()
        known = course if number == "whole" else {n: course[n] for n in course if n <= int(number.split(".")[0])}
        try:
            LOADED[i, number] = child.load(number, sources, known)
        except SystemExit:                                   # pytest takes it for the end of its own setup
            raise RuntimeError("SystemExit: the file ends the program when it is imported") from None
    return LOADED[i, number]


@pytest.fixture
def rng(request):
    name = request.node.originalname
    return random.Random(f"{SEED} {name}")


@pytest.fixture
def draw(rng):
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    return lambda *shape: torch.randn(*shape, generator=generator)
