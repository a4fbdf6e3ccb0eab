"""The command line. Heavy packages are imported by the commands that need them, so that help and plan are quick."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import traceback
from typing import Annotated, Any, NoReturn, TextIO, cast

import typer

from cluster.code import check_own_packages
from cluster.control_characters import show_controls
from cluster.errors import InputError, SecateurError
from cluster.file_errors import is_full
from cluster.redaction import scrub
from flows.advice import said_of
from flows.output import DROPPED, ResultStream, end_standard_error, open_standard_streams, own_output, results, say

app = typer.Typer(
    name="secateur",
    help="Prune a training set with calibrated selection, train on it, and say whether it beat random.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[str, typer.Argument(help="YAML configuration.", metavar="CONFIG")]
Run = Annotated[str, typer.Argument(help="Name of a run, or its start.", metavar="RUN")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: select.keep=0.1. May be repeated.", metavar="KEY=VALUE")
]
StoreOption = Annotated[
    str, typer.Option("--store", envvar="SECATEUR_STORE", help="Folder or s3://BUCKET/PREFIX of all state.")
]
Ray = Annotated[str, typer.Option("--ray", help="local, auto or HOST:PORT.", metavar="ADDRESS")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


@app.command()
def run(
    config: Config, sets: Sets = None, store: StoreOption = "./store", ray: Ray = "local", as_json: Json = False
) -> None:
    """Run a configuration to its report. The same configuration resumes."""
    from flows.config import load_config
    from flows.execute import execute
    from flows.sweep import refuse_sweep

    with own_output():
        planned = load_config(config, sets or ())
        refuse_sweep(planned)
        execute(planned, store, ray, as_json)


@app.command()
def sweep(
    config: Config, sets: Sets = None, store: StoreOption = "./store", ray: Ray = "local", as_json: Json = False
) -> None:
    """Run a grid of arms, its `sweep` section, to one table and one report. The same grid resumes, a larger one adds to it."""
    from flows.config import load_config
    from flows.sweep import run_sweep

    with own_output():
        run_sweep(load_config(config, sets or ()), store, ray, as_json)


@app.command()
def resume(run: Run, store: StoreOption = "./store", ray: Ray = "local", as_json: Json = False) -> None:
    """Go on with a run that did not finish."""
    from cluster.storage import Store
    from flows.execute import execute
    from flows.runs import plan_of

    with own_output():
        execute(plan_of(run, Store(store)).config, store, ray, as_json)


@app.command()
def plan(config: Config, sets: Sets = None, store: StoreOption = "./store", as_json: Json = False) -> None:
    """Show what would run, what is there already, and which digest changed."""
    from flows.config import load_config
    from flows.show import show_plan
    from flows.sweep import announce

    planned = load_config(config, sets or ())
    announce(planned)
    show_plan(planned, store, as_json)


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="Name of a run, or its start.", metavar="[RUN]")] = None,
    store: StoreOption = "./store",
    as_json: Json = False,
) -> None:
    """Show the runs of a store, or the attempts and stages of one."""
    from flows.show import show_status

    show_status(run, store, as_json)


@app.command()
def show(run: Run, store: StoreOption = "./store", as_json: Json = False) -> None:
    """Print the results of a finished run."""
    from flows.show import show_results

    show_results(run, store, as_json)


@app.command()
def report(run: Run, store: StoreOption = "./store") -> None:
    """Write the report of a finished run again and print where it is."""
    from flows.show import write_report_again

    write_report_again(run, store)


@app.command()
def verify(
    run: Run,
    store: StoreOption = "./store",
    heal: Annotated[bool, typer.Option("--heal", help="Compute what is damaged again and put it back.")] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Retire what is damaged, and all that was computed from it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read everything a run's seals list and name what is not as it was written."""
    from flows.repair import verify_and_repair

    # To heal runs the user's code in this process.
    with own_output():
        sound = verify_and_repair(run, store, heal, recompute, as_json)
    if not sound:
        raise typer.Exit(1)


@app.command()
def select(
    scores: Annotated[str, typer.Argument(help="Parquet file, folder or URI with an id and a score.", metavar="SCORES")],
    score: Annotated[str, typer.Option("--score", help="Column that ranks.", metavar="COL")],
    direction: Annotated[str, typer.Option("--direction", help="End that is kept as signal: high or low.")],
    keep: Annotated[float, typer.Option("--keep", help="Fraction kept, in (0, 1].", metavar="F")],
    out: Annotated[str, typer.Option("--out", help="Parquet file to write, outside the store.", metavar="URI")],
    protocol: Annotated[str, typer.Option("--protocol", help="random, topk, exact, raked, ccs, band, pps, ...")] = "exact",
    alpha: Annotated[str | None, typer.Option("--alpha", help="Share of signal in the budget, in [0, 1], or auto.")] = None,
    params: Annotated[
        list[str] | None, typer.Option("--param", help="Parameter of the protocol: gamma=0.5, beta=0.1.", metavar="NAME=VALUE")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of ties and exploration.")] = 0,
    id_column: Annotated[
        str | None, typer.Option("--id-column", help="Integer id column. Default: example_id, or id.", metavar="C")
    ] = None,
    by: Annotated[str | None, typer.Option("--by", help="Column of groups that get budgets of their own.")] = None,
    missing: Annotated[
        str, typer.Option("--missing", help="Rows whose score is null or NaN: refuse, exclude, explore.")
    ] = "refuse",
    as_json: Json = False,
) -> None:
    """Select a calibrated, weighted subset from any score table."""
    from flows.own_selection import run_select

    run_select(scores, score, direction, keep, protocol, alpha, params or [], seed, id_column, by, out, as_json, missing)


@app.command()
def deploy(
    config: Config,
    sets: Sets = None,
    cron: Annotated[str | None, typer.Option("--cron", help="Schedule, as in '0 3 * * *'.", metavar="EXPR")] = None,
    store: StoreOption = "./store",
    ray: Ray = "local",
) -> None:
    """Make a Prefect deployment of a configuration, scheduled if --cron is given."""
    from cluster.storage import Store
    from flows.config import load_config
    from flows.deployment import deploy as make_deployment
    from flows.plan import make_plan

    planned = make_plan(load_config(config, sets or ()))
    made = make_deployment(
        planned.config.model_dump(mode="json"), name=planned.config.name, store=Store(store).uri, ray=ray, cron=cron,
        parameters={"name": planned.run_name},
    )
    say(f"deployment {made.name} on work pool {made.pool}" + (f", scheduled {made.cron}" if made.cron else ""))
    say("run what is due with: secateur serve")


@app.command()
def serve() -> None:
    """Run deployed and scheduled runs here, until interrupted."""
    from flows.deployment import serve as serve_runs
    from flows.signals import Interrupted

    try:
        serve_runs()
    except Interrupted as signal:
        # Typer makes 130 of every KeyboardInterrupt, a SIGTERM's too.
        print("secateur: interrupted; what was running is stopped", file=sys.stderr)
        sys.exit(signal.exit_code)


@app.command()
def doctor(store: StoreOption = "./store", ray: Ray = "local", as_json: Json = False) -> None:
    """Check versions, the store, Ray and Prefect, and say what does not work."""
    from flows.doctor import examine

    if not examine(store, ray, as_json):
        raise typer.Exit(1)


class DiscreetStream:
    """Be standard error for a block: what anybody writes there, warnings of libraries included, loses its secrets.

    What cannot be written is dropped: it is no part of the results, and changes neither them nor the exit code.
    """

    def __init__(self, below: TextIO) -> None:
        self.below = below

    def write(self, text: str) -> int:
        """Write the text without its secrets."""
        with contextlib.suppress(*DROPPED):
            self.below.write(scrub(text))
        return len(text)

    def flush(self) -> None:
        """Write out what is waiting, if it can be."""
        with contextlib.suppress(*DROPPED):
            self.below.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


def fail(message: str, exit_code: int) -> NoReturn:
    """Print one message on standard error and end: one line, and below it the rows of a table, which are indented.

    Control characters, which names of data may hold, are shown as escapes; so is what UTF-8 cannot hold.
    """
    first, *rows = re.split(r"\n(?=  \S)", message.rstrip())
    text = "\n".join([" ".join(first.split()), *(row.replace("\n", " ") for row in rows)])
    print(f"secateur: {show_controls(text)}", file=sys.stderr)
    sys.exit(exit_code)


def main() -> None:
    """Run the command and end with its exit code: 0 done, 1 failed, 2 wrong input, 130 or 143 interrupted."""
    open_standard_streams()
    output, error = cast(Any, ResultStream(sys.stdout)), cast(Any, DiscreetStream(sys.stderr))
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
            _main()
    finally:
        end_standard_error()


def _main() -> None:
    try:
        check_own_packages()
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except SecateurError as error:
        if os.environ.get("SECATEUR_TRACEBACK"):
            raise
        fail(str(error), error.exit_code)
    except typer.TyperException as error:
        said = error.format_message().rstrip(".")
        fail(f"{said}; `secateur --help` lists the commands, `secateur COMMAND --help` what each takes", 2)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            fail(f"{str(error.filename or error)[:80]}... is longer than a file's name or path may be; name a shorter one", 2)
        # Of the store, nearly always: a place that may not be read, a service that refuses.
        fail(said_of(error) + ("; then run the same command again" if is_full(error) else ""), 1)
    except Exception:
        # A fault of ours or of the user's code: where it happened helps, what it holds must not leak.
        print(show_controls(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        print("secateur: interrupted", file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(document, indent=2, sort_keys=True, allow_nan=False), file=results())


def parse_params(params: list[str]) -> dict[str, str]:
    """Return NAME=VALUE parameters; what a value may be, its protocol knows. Raises InputError."""
    out: dict[str, str] = {}
    for text in params:
        name, mark, value = text.partition("=")
        if not mark or not name or not value:
            raise InputError(f"--param {text!r}: it has the form NAME=VALUE, as in gamma=0.5 or classes=balanced")
        if name in out:
            raise InputError(f"--param {name} is given twice, {out[name]!r} and {value!r}; give it once")
        out[name] = value
    return out


if __name__ == "__main__":
    main()
