"""The command line: thin verbs over the library. Heavy modules are imported by the verb that uses them."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from labkit.errors import Failure, LabkitError, unknown
from labkit.terminal import (
    comparison_table,
    legend,
    needs_table,
    plan_table,
    published_table,
    table,
    verdict_tables,
)

if TYPE_CHECKING:
    import pandas as pd

    from labkit.study import Study

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
PIPED_WIDTH = 120  # columns, where there is no terminal to ask
RESUMABLE = ("run", "ladder")
DEVICES = ("auto", "cpu", "cuda")

_DEVICE = typer.Option(metavar="|".join(DEVICES), help="Where models run; auto takes a GPU if there is one.")


class _Verbs(TyperGroup):
    """The verbs, with one place where what goes wrong becomes a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Abort, BrokenPipeError):
            raise
        except LabkitError as error:
            cause, code, message = error, FAILED if isinstance(error, Failure) else BAD_INPUT, str(error)
        except KeyboardInterrupt:
            _console(stderr=True).print(Text(_stopped(ctx.invoked_subcommand)), soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if hasattr(error, "exit_code"):  # typer's own: a usage error, or the end of a verb
                raise
            cause, code, message = error, FAILED, f"{type(error).__name__}: {error}. To see where: labkit --debug ..."
        if ctx.params["debug"]:
            traceback.print_exception(cause)
        _console(stderr=True).print(Text(f"Error: {message}", "bold red"), soft_wrap=True)
        raise typer.Exit(code)


app = typer.Typer(
    cls=_Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
)


def main() -> None:
    """The command `labkit`."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a bar is for a terminal: in a log it is thousands of lines
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.formatwarning = partial(_formatted, warnings.formatwarning)
    app(prog_name="labkit")


def _formatted(otherwise: Callable[..., str], message: Warning | str, kind: type[Warning], *where: Any) -> str:
    """A warning as a shell shows it: of labkit's the message, as no line of Python has asked for anything."""
    return f"Warning: {message}\n" if kind is UserWarning else otherwise(message, kind, *where)


def _version(wanted: bool) -> None:
    if wanted:
        from labkit import __version__

        print(f"labkit {__version__}")
        raise typer.Exit


@app.callback(epilog="Begin with:  labkit doctor,  then  labkit run quick --out runs/quick")
def labkit(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """When a language model is made smaller, which of its abilities survive?

    Exit codes: 0 done; 1 the work failed, or doctor found a fault; 2 bad input; 130 interrupted.
    """


@app.command(epilog="Example:  labkit run quick --out runs/quick")
def run(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A shipped study, such as quick, or a .toml file.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder for the rows, or a URL such as s3://bucket/runs: a new one, or that of an earlier run to go on with.",
            show_default="required, but for --dry-run",
        ),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Run on the Ray cluster there, from one of its nodes.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print runs, tokens, FLOPs, expected time and memory.")
    ] = False,
) -> None:
    """Measure every model of a study, dense and compressed; judge; write report.html.

    Only what the folder lacks is measured, so a run that was stopped goes on with the same command.

    On two CPU cores quick takes a few minutes, pruning and recovery about a quarter of an hour each.
    """
    from labkit.study import Study

    if ray is not None:
        from labkit import cluster

        cluster.check_address(ray)  # before anything that takes long
    plan = Study.load(study)
    if dry_run:
        _look_ahead(plan, out)
        return
    if out is None:
        raise LabkitError("rows need a place", "no --out", "Add e.g. --out runs/mine, or --dry-run to look ahead.")
    if ray is None:
        store = plan.run(out, progress=sys.stderr.isatty())
    else:
        store = cluster.run(plan, out, ray, progress=sys.stderr.isatty())
    from labkit.report import answer, write_report  # figures: only once there is something to draw
    from labkit.verdict import judge

    console = _console()
    with _console(stderr=True).status("Judging the rows, writing the report …"):
        verdicts = judge(store.frame())
        path = write_report(store.path, verdicts=verdicts)
    console.print(Text(plan.question, "bold"))
    for of_rung in verdict_tables(verdicts):
        console.print(of_rung)
    if not verdicts.empty:
        console.print(legend(verdicts))
    if plan.published:
        from labkit.published import beside

        console.print(published_table(beside(plan.published, plan.pairs, store.frame())))
    console.print(Text(answer(verdicts)), Text(f"Report: {path}"), sep="\n", soft_wrap=True)


@app.command(epilog="Example:  labkit report runs/quick --out quick.html")
def report(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of an earlier labkit run.")],
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="DIR/report.html")] = None,
) -> None:
    """Write the report of a run: one HTML file that needs no network."""
    from labkit.report import write_report

    with _console(stderr=True).status("Judging the rows, writing the report …"):
        path = write_report(folder, out)
    _console().print(Text(f"Report: {path}"), soft_wrap=True)


@app.command(epilog="Example:  labkit ladder --profile cpu --out my-ladder")
def ladder(
    profile: Annotated[
        str,
        typer.Option(
            help="cpu: 24 models of up to 0.34 M parameters, 16 M tokens each, one to two hours on two cores. "
            "t4: 18 of up to 6.4 M, 100 M tokens each. h100: 24 of up to 25.3 M, 200 M tokens each.",
            metavar="cpu|t4|h100",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the models: a new one, or an earlier one to go on with.")],
    device: Annotated[str, _DEVICE] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Models trained side by side.", show_default="one per CPU core; 1 on a GPU"),
    ] = None,
) -> None:
    """Train a ladder of models, from small to large, several seeds each.

    A training that was stopped goes on from its last checkpoint with the same command.
    """
    from labkit import schooling

    plan = schooling.profile(profile)
    names = schooling.train_ladder(plan, out, device=_device(device), workers=workers)
    next_step = f"labkit zoo --folder {shlex.quote(str(out))}"
    _console().print(Text(f"{len(names)} models in {out}. List them: {next_step}"), soft_wrap=True)


@app.command(epilog="Example:  labkit compare ladder/64x2/seed-0 ladder/96x3/seed-0 --items 1000")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A shipped model, a folder or a hub id; or a run's folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with: of the same kind.")],
    items: Annotated[int, typer.Option(min=1, help="Items per ability, for models.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the items, for models.")] = 0,
    device: Annotated[str, _DEVICE] = "auto",
) -> None:
    """Compare two models, or two runs, item by item on the same items.

    Prints B - A for each ability and metric, in the metric's unit, with its 95 % interval.

    Two runs are compared in every rung and compression that both have.
    """
    from labkit import comparison
    from labkit.subjects import check_vocabulary

    stores = [_is_store(name) for name in (a, b)]
    if stores[0] != stores[1]:
        model, store = (a, b) if stores[1] else (b, a)
        remedy = "Give two models, or the folders of two runs."
        raise LabkitError("what is compared is of one kind", f"the model {model} and the run {store}", remedy)
    if all(stores):
        frame = comparison.compare_conditions(*_stored_rows(a, b))
    else:
        where = _device(device)
        for name in (a, b):  # both, before either is scored
            check_vocabulary(name, "Ask both in text, in a study, and compare the folders of its runs.")
        frame = comparison.compare(*(_scored(name, items, seed, where) for name in (a, b)))
    _console().print(comparison_table(frame, a, b))


@app.command(epilog="Example:  labkit zoo --folder my-ladder")
def zoo(
    folder: Annotated[
        Path | None, typer.Option(help="Folder that labkit ladder wrote.", show_default="the shipped models")
    ] = None,
) -> None:
    """List trained models: parameters (without embeddings), seed, tokens of training, checksum."""
    from labkit.zoo import zoo as listed

    models = table("name", "rung", ">parameters", ">seed", ">tokens", "sha256")
    for row in listed(folder).itertuples():
        models.add_row(Text(row.name), Text(row.rung), f"{row.params:,}", str(row.seed), f"{row.tokens:,}", row.sha256[:12])
    _console().print(models)


@app.command(epilog="Example:  labkit doctor")
def doctor() -> None:
    """Check Python, packages, device, disk, compiler, Jupyter kernel and the shipped files' checksums.

    Exit code 1 if one of them is at fault; each fault is printed with its remedy.
    """
    from labkit.doctor import checks

    console, found = _console(), checks()
    for check in found:
        state = Text("[OK]  ", "green") if check.ok else Text("[FAIL]", "bold red")
        console.print(Text.assemble(state, f" {check.name}: {check.found}"), soft_wrap=True)
        if not check.ok:
            console.print(Text(f"       {check.remedy}"), soft_wrap=True)
    faults = sum(not check.ok for check in found)
    console.print(f"{faults} of {len(found)} checks failed." if faults else "All is well.")
    if faults:
        raise typer.Exit(FAILED)


def _look_ahead(plan: Study, out: str | None) -> None:
    """Print what a study needs and what others report, which no model need be here for; then its runs, which need the configs."""
    from labkit.planning import RANGE, foretell, prompt_tokens

    console = _console()
    console.print(Text(plan.question, "bold"))
    if plan.needs:
        console.print(needs_table(plan.needs, prompt_tokens(plan)))
    if plan.published:
        from labkit.published import beside
        from labkit.store import SCHEMA

        console.print(published_table(beside(plan.published, plan.pairs, SCHEMA.empty_table().to_pandas())))
    console.print(plan_table(foretell(plan, out), RANGE))
    if plan.benchmarks:
        console.print(Text(f"Not counted above: {', '.join(plan.benchmarks)}, whose items are known once their data is here."))


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console


def _stopped(verb: str | None) -> str:
    if verb not in RESUMABLE:
        return "\nStopped."
    kept = {"run": "What is measured is kept", "ladder": "What is trained is kept"}[verb]
    return f"\nStopped. {kept}; the same command goes on from there:\n  labkit {shlex.join(sys.argv[1:])}"


def _device(name: str) -> str:
    """What `auto` stands for here; refuses a device that is not there."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise LabkitError("--device cuda needs a GPU that PyTorch sees", name, "Use auto, or ask labkit doctor.")
    return name if name != "auto" else "cuda" if found else "cpu"


def _is_store(name: str) -> bool:
    """Whether it names the folder of a run, and not a model."""
    path = Path(name)
    if path.is_dir():
        if not any((path / marker).is_file() for marker in ("store.json", "config.json")):
            rule = "a folder to compare is that of a run (it holds store.json) or of a model (config.json)"
            raise LabkitError(rule, name, "Name one of these.")
        return (path / "store.json").is_file()
    if path.is_absolute() or path.parent != Path() and path.parent.is_dir():  # else it would be looked up as a hub id
        raise LabkitError("a folder to compare is there", name, "Check the path.")
    return False


def _stored_rows(*folders: str) -> list[pd.DataFrame]:
    """The rows of each store, if all of them were asked the same items."""
    from labkit.store import Store

    stores = [Store(folder) for folder in folders]
    seeds = [sorted({c.get("seed") for c in store.provenance()["config"] if isinstance(c, dict)}) for store in stores]
    if all(seeds) and any(each != seeds[0] for each in seeds):
        raise LabkitError("both runs draw their items with one seed", seeds, "Run a study of the same seed on both.")
    return [store.frame() for store in stores]


def _scored(name: str, items: int, seed: int, device: str) -> pd.DataFrame:
    from labkit.abilities import abilities
    from labkit.evaluation import evaluate
    from labkit.zoo import load

    return evaluate(load(name).to(device), abilities(), n=items, seed=seed, progress=sys.stderr.isatty())
