"""The lesson notebooks: each runs in a fresh kernel, teaches more than it computes, and defines no model.

    python -m pytest -m notebooks        ten minutes on two cores; pytest alone leaves the runs out
"""
import ast
import json
import re

import nbformat
import pytest
import small
from nbclient import NotebookClient

LESSONS = small.ROOT / "lessons"
NOTEBOOKS = sorted(LESSONS.glob("[01][0-9]_*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def lines_of(code):
    """How many lines of code these cells have, without empty ones."""
    return sum(len([line for line in cell.source.splitlines() if line.strip()]) for cell in code)


@pytest.mark.notebooks
@pytest.mark.parametrize("path", sorted(LESSONS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom_in_a_fresh_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(LESSONS)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()    # raises if a cell does


@each
def test_a_lesson_belongs_to_a_module_and_the_module_names_it(path):
    module = next((folder / f"{path.stem}.py" for folder in (small.ROOT, LESSONS)
                   if (folder / f"{path.stem}.py").exists()), None)
    assert module, f"{path.name} belongs to no file of the course"
    if module.stem < "08":
        assert f"lessons/{path.name}" in module.read_text(), "the demonstration's last lines lead to its lesson"


@each
def test_a_lesson_imports_the_code_and_never_repeats_it(path):
    source = "\n".join(cell.source for cell in cells(path, "code"))
    plain = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    classes = [node.name for node in ast.walk(ast.parse(plain)) if isinstance(node, ast.ClassDef)
               and any("Module" in ast.unparse(base) for base in node.bases)]
    assert "from lessons.notebook import *" in plain, "the modules are imported, in one way"
    assert not classes, f"{classes}: a second copy of model code drifts away from the first"


@each
def test_a_lesson_says_more_than_it_computes(path):
    code, prose = cells(path, "code"), cells(path, "markdown")
    words = sum(len(cell.source.split()) for cell in prose)
    lines = lines_of(code)
    longest = max(len(cell.source.splitlines()) for cell in code)
    assert longest <= 15, f"a cell of {longest} lines: split it, or let the module do it"
    assert words > 8 * lines, f"{words} words for {lines} lines of code: code without words teaches nobody"
    assert len(prose) >= len(code), "every cell that runs is announced or explained"


@each
def test_a_lesson_fits_an_hour_of_attention(path):
    code = cells(path, "code")
    count = len(code) + len(cells(path, "markdown"))
    lines = lines_of(code)
    figures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert 40 <= count <= 70, f"{path.name} has {count} cells: a lesson has 40 to 70, short ones"
    assert lines <= 120, f"{path.name} has {lines} lines of code: more than 120, and nobody reads them all"
    assert 5 <= figures <= 9, f"{path.name} shows {figures} figures: 5 to 9, each with one message"


@each
def test_a_lesson_is_committed_as_it_ran(path):
    code = cells(path, "code")
    assert all(cell.execution_count for cell in code if cell.source.strip()), "outputs are made by running all cells"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [cell for cell in code if "execution" in cell.metadata], "no times of one run: record_timing=False"
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"], "no errors, no warnings"
    text = json.dumps(outputs)
    assert not re.search(r"/(home|work|tmp|root|Users)/", text), "no path of one machine in what everybody reads"
    assert path.stat().st_size < 900_000, "small enough to be read where nobody runs it"


@each
def test_a_lesson_has_its_frame(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown")).lower()
    for part in ("minutes", "check yourself", "<details>", "open experiment", "what you have learned", "next"):
        assert part in text, f"a lesson has a part {part!r}: see the others"
    assert text.count("predict") >= 4, "before a cell that decides something, the reader is asked what will happen"
