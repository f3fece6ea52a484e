"""The form of every notebook. nbval runs them; this guards that there is something to compare and to read.

The rules are functions from a notebook to sentences about what is wrong, so each is tried on a notebook that breaks it.
"""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode, v4
from nbformat.v4.rwbase import rejoin_lines

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)

MOST_CELLS, FEWEST_COMPARED, LONGEST_FUNCTION = 30, 3, 5
# An absolute path of two parts or more, or a drive; not a closing tag, not the path of an address on the web.
MACHINE_PATH = re.compile(r"(?<![\w:/.<~+])/[A-Za-z][\w.-]*/[\w.-]+|\b[A-Za-z]:\\\w+")
MARKDOWN_IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]|<img\b(?![^>]*\balt=\"[^\"]+\")[^>]*>")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in code_cells(notebook) if tag in cell.metadata.get("tags", [])]


def parsed(cell: NotebookNode) -> ast.Module:
    return ast.parse(TransformerManager().transform_cell(cell.source))  # magics become plain Python


def compared_text(cell: NotebookNode) -> str:
    """What nbval compares of a cell's output, under the settings of tests/notebooks."""
    streams = [out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout"]
    plain = [out.data.get("text/plain", "") for out in cell.outputs if "data" in out]
    return re.sub(r"<Figure [^>]*>", "", "\n".join(streams + plain)).strip()


def texts(cell: NotebookNode) -> Iterator[str]:
    """Everything readable in a cell's outputs, embedded images left out."""
    for out in cell.outputs:
        yield from [out.get("text", ""), out.get("evalue", ""), *out.get("traceback", [])]
        for mime, data in out.get("data", {}).items():
            if not mime.startswith("image/") or mime == "image/svg+xml":
                yield re.sub(r"base64,[\w+/=\s]+", "", str(data))


def format_faults(notebook: NotebookNode) -> Iterator[str]:
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        yield f"nbformat {notebook.nbformat}.{notebook.nbformat_minor}; 4.5 or newer has cell ids"
    if len({cell.get("id") for cell in notebook.cells} - {None}) < len(notebook.cells):
        yield "cells without an id of their own"
    try:
        nbformat.validate(copy.deepcopy(notebook))  # it mends ids in place
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {error.message}"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    if "widgets" in notebook.metadata:
        yield "metadata.widgets is stored"
    if len(notebook.cells) > MOST_CELLS:
        yield f"{len(notebook.cells)} cells; {MOST_CELLS} at most"


def execution_faults(notebook: NotebookNode) -> Iterator[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts {counts}; run it from the top, in order"
    compared = tagged(notebook, "nbval-check-output")
    if len(compared) < FEWEST_COMPARED:
        yield f"{len(compared)} cells compare their output; {FEWEST_COMPARED} at least"
    yield from (f"nothing to compare in {cell.source!r}" for cell in compared if not compared_text(cell))
    for cell in code_cells(notebook):
        expected = "raises-exception" in cell.metadata.get("tags", [])
        if any(out.output_type == "error" for out in cell.outputs) and not expected:
            yield f"an error is stored in {cell.source!r}"


def source_faults(notebook: NotebookNode) -> Iterator[str]:
    parameters = tagged(notebook, "parameters")
    if len(parameters) != 1:
        yield f"{len(parameters)} cells tagged parameters; exactly one"
    for statement in [statement for cell in parameters for statement in parsed(cell).body]:
        if not is_literal_assignment(statement):
            yield f"not a plain literal among the parameters: {ast.unparse(statement)!r}"
    for cell in code_cells(notebook):
        for node in ast.walk(parsed(cell)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                    yield f"function {node.name} is longer than {LONGEST_FUNCTION} lines; it belongs in labkit"


def is_literal_assignment(statement: ast.stmt) -> bool:
    if not (isinstance(statement, ast.Assign) and [type(target) for target in statement.targets] == [ast.Name]):
        return False
    try:
        ast.literal_eval(statement.value)
    except ValueError:
        return False
    return True


def reader_faults(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        yield from (f"a path of this machine: {found}" for text in texts(cell) for found in MACHINE_PATH.findall(text))
        for out in cell.outputs:
            for mime in out.get("data", {}):
                if mime.startswith("image/") and not out.metadata.get(mime, {}).get("alt", "").strip():
                    yield f"{mime} without alt text in {cell.source!r}"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield from (f"image without alt text: {image[0]}" for image in MARKDOWN_IMAGE.finditer(cell.source)
                        if not (image["alt"] or "").strip())  # fmt: skip


RULES = (format_faults, execution_faults, source_faults, reader_faults)


def faults(notebook: NotebookNode) -> list[str]:
    return [fault for rule in RULES for fault in rule(notebook)]


# --- the real notebooks ----------------------------------------------------------------------------------------------


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS, f"no notebook in {FOLDER.name}/: nbval would pass by running nothing"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_form(path: Path) -> None:
    as_stored = nbformat.from_dict(json.loads(path.read_text(encoding="utf-8")))  # nbformat.read would mend it
    assert faults(rejoin_lines(as_stored)) == []


# --- the rules themselves --------------------------------------------------------------------------------------------


def cell(source: str, number: int, *outputs: NotebookNode, tags: tuple[str, ...] = ("nbval-check-output",)):
    return v4.new_code_cell(source, execution_count=number, outputs=list(outputs), metadata={"tags": list(tags)})


def printed(text: str) -> NotebookNode:
    return v4.new_output("stream", name="stdout", text=text)


def figure(alt: str) -> NotebookNode:
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480 with 1 Axes>"}
    return v4.new_output("display_data", data=data, metadata={"image/png": {"alt": alt}})


def good() -> NotebookNode:
    cells = [
        v4.new_markdown_cell("# A question\n\n[![Open in Colab](https://example.org/b.svg)](https://example.org/a/b)"),
        cell('SEED = 0\nDEVICE = "auto"\nSHIFT = -1', 1, tags=("parameters",)),
        cell("%matplotlib inline\nprint(1)", 2, printed("1 tokens/s/core, </td></tr>, ladder/64x2/seed-0")),
        cell("def f(x):\n    y = x\n    z = y\n    w = z\n    return w\nf(2)", 3, printed("2, runs/quick/report.html")),
        cell("3", 4, v4.new_output("execute_result", data={"text/plain": "3"}, execution_count=4)),
        cell("plot()", 5, figure("Accuracy rises with size"), tags=()),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def test_a_good_notebook_has_no_faults() -> None:
    assert faults(good()) == []


def broken_notebooks() -> dict[str, NotebookNode]:
    """The sentence expected -> the good notebook, broken in that one way."""
    broken = {}

    def add(sentence: str) -> NotebookNode:
        return broken.setdefault(sentence, good())

    add("nbformat 4.4").nbformat_minor = 4
    add("not a valid notebook: ").metadata.kernelspec.pop("display_name")
    add("the kernel is not python3").metadata.kernelspec.name = "my-env"
    add("metadata.widgets is stored").metadata.widgets = {}
    add("31 cells; 30 at most").cells += [v4.new_markdown_cell("text") for _ in range(25)]
    add("cells without an id of their own").cells[1].id = add("cells without an id of their own").cells[2].id
    add("execution counts [1, None, 3, 4, 5]").cells[2].execution_count = None
    add("execution counts [1, 3, 2, 4, 5]").cells[2:4] = good().cells[3:1:-1]
    add("2 cells compare their output; 3 at least").cells[4].metadata.tags = []
    add("nothing to compare in '3'").cells[4].outputs = []
    add("nothing to compare in 'f'").cells[4] = cell("f", 4, figure("A figure"))
    add("an error is stored in '1/0'").cells[5] = cell("1/0", 5, v4.new_output("error", ename="E", evalue="v"), tags=())
    add("0 cells tagged parameters").cells[1].metadata.tags = []
    add("2 cells tagged parameters").cells[5].metadata.tags = ["parameters"]
    add("not a plain literal among the parameters: 'import os'").cells[1].source = "import os"
    add("not a plain literal among the parameters: 'N = 2 ** 9'").cells[1].source = "N = 2**9"
    add("function f is longer than 5 lines").cells[3].source = "def f(x):" + "\n    x += 1" * 5
    add("a path of this machine: /home/ada").cells[3].outputs = [printed("saved /home/ada/runs")]
    add(r"a path of this machine: C:\Users").cells[3].outputs = [printed(r"saved C:\Users\ada")]
    add("a path of this machine: /opt/x").cells[4].outputs[0].data["text/html"] = "<td>/opt/x</td>"
    add("image/png without alt text in 'plot()'").cells[5].outputs[0].metadata = {}
    add("image without alt text: ![]").cells[0].source = "![](figure.png)"
    add("image without alt text: <img").cells[0].source = '<img src="figure.png">'
    return broken


@pytest.mark.filterwarnings("ignore:Non-unique cell id")
@pytest.mark.parametrize("sentence", broken_notebooks())
def test_each_fault_is_named(sentence: str) -> None:
    found = faults(broken_notebooks()[sentence])
    assert any(fault.startswith(sentence) for fault in found), found
