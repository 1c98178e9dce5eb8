"""Commands and their options. Heavy imports stay inside the commands, so that ``--help`` answers at once.

Exit codes: 0 done, 1 the gate or a check failed, 2 bad request, 130 interrupted. Results go to standard output,
progress and errors to standard error; with ``--json`` standard output is one JSON document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from graphpress.tools.cli import late

INTERRUPTED = 130  # also what typer makes of a KeyboardInterrupt

app = typer.Typer(
    help="A compiler for model compression: rewrites a model by a recipe and proves what really runs.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

plan = typer.Typer(help="Look at plans, compare them, write one into a model.", no_args_is_help=True)
app.add_typer(plan, name="plan")


def _recipes() -> list[str]:
    from graphpress import shipped

    return list(shipped.recipes())


Plan = Annotated[
    Path,
    typer.Argument(help="A plan's JSON, a report.json or its folder, or a quantized ONNX file.", show_default=False),
]
Model = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
Target = Annotated[
    str, typer.Option("--target", help="Where the result will run; a phase or shapes behind it: ort-cpu:decode.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Samples: .npz, .safetensors (input name -> array, samples first; optional labels), .npy, a folder of "
        "them; or of pictures, text, sound.",
    ),
]
Images = Annotated[
    str | None,
    typer.Option("--images", help="The data are pictures: size=224,crop=0.875,mean=[..],std=[..],scale=1,order=bgr"),
]
Text = Annotated[
    str | None, typer.Option("--text", help="The data are text: tokenizer=tokenizer.json,length=256,lines=true")
]
Audio = Annotated[str | None, typer.Option("--audio", help="The data are sound: rate=16000,length=16000")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """A compiler for model compression: rewrites a model by a recipe and proves what really runs."""
    if not {"-h", "--help"} & set(sys.argv):
        late.import_onnx_ir()


@app.command("compile")
def compile_(
    model: Model,
    recipe: Annotated[
        str, typer.Option(help="Name of a shipped recipe, or a YAML or JSON file.", autocompletion=_recipes)
    ],
    out: Annotated[Path, typer.Option("--out", help="Output folder; replaced only if graphpress wrote it.")],
    data: Data = None,
    images: Images = None,
    text: Text = None,
    audio: Audio = None,
    target: Target = "ort-cpu",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change an option: PASS.OPTION=VALUE.")] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="Metric, higher is better: module:function of a runner, or top-1, top-5, perplexity, wer, map."
        ),
    ] = None,
    max_drop: Annotated[float | None, typer.Option(help="How much of the metric may be lost.")] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="0.6x of the float model's, or ms; recipe mixed and the like.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="0.3x of the float file, or bytes; recipe mixed and the like.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", help="Keep calibration's and training's state here; run again to go on."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    external: Annotated[
        bool | None, typer.Option("--external/--no-external", help="Weights in one file beside the model.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Write the model even when it fails the gate.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the tables, not only the summary.")] = False,
    as_json: Json = False,
) -> None:
    """Rewrite MODEL by a recipe; write model, report, resolved recipe and manifest to a folder."""
    from graphpress.tools.cli import commands

    samples = _given(data, images, text, audio)
    raise typer.Exit(
        commands.compile_to(
            model, recipe, out, data=samples, target=target, assignments=set_ or [], evaluate=evaluate,
            max_drop=max_drop, max_latency=max_latency, max_size=max_size, state=state, seed=seed, external=external,
            keep=keep, as_json=as_json, verbose=verbose,
        )
    )  # fmt: skip


@app.command()
def inspect(
    model: Model,
    structure: Annotated[
        bool,
        typer.Option(
            "--structure", help="Show streams, norms, heads, feed-forward blocks and what else passes look for."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is in MODEL: operators, weights by type, sites and their schemes."""
    from graphpress.report.inspection import inspect as look

    _show(look(model, structure=structure), as_json)


@app.command()
def diff(a: Model, b: Model, as_json: Json = False) -> None:
    """Show what changed from model A to model B, site by site."""
    from graphpress.report.inspection import diff as compare

    _show(compare(a, b), as_json)


@app.command()
def view(
    after: Model,
    before: Annotated[Path | None, typer.Option("--before", help="The model that it was made from.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("view.html"),
) -> None:
    """Draw AFTER as one page: modules to open and close, colours by kernel, bits, SQNR or time, search, details."""
    import graphpress as gp

    gp.view(after, before, out=out)
    print(f"written to {out} (open it in a browser)")


@app.command()
def audit(
    model: Model,
    target: Target = "ort-cpu",
    data: Data = None,
    images: Images = None,
    text: Text = None,
    audio: Audio = None,
    as_json: Json = False,
) -> None:
    """Run MODEL and show for each site which kernel ran, how long, and why it is not on integers."""
    from graphpress.tools.cli import commands

    _show(commands.audit(model, target, _given(data, images, text, audio)), as_json)


@app.command()
def parity(
    model: Model,
    target: Target = "torch-cpu",
    data: Data = None,
    images: Images = None,
    text: Text = None,
    audio: Audio = None,
    as_json: Json = False,
) -> None:
    """Compare a quantized MODEL in torch with ONNX Runtime, site by site, in quantization steps."""
    from graphpress.tools.cli import commands

    _show(commands.parity(model, target, _given(data, images, text, audio)), as_json)


@app.command()
def opt(
    model: Model,
    passes: Annotated[
        str, typer.Option("-p", "--passes", help="'pass{option=value},module:Class': run in this order.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The rewritten ONNX file.")],
    data: Data = None,
    images: Images = None,
    text: Text = None,
    audio: Audio = None,
    target: Target = "ort-cpu",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    show: Annotated[bool, typer.Option("--show", help="Print the nodes that changed.")] = False,
    as_json: Json = False,
) -> None:
    """Run passes by hand on MODEL; each is verified."""
    from graphpress.tools.cli import commands

    _show(
        commands.opt(model, passes, out, data=_given(data, images, text, audio), target=target, seed=seed, show=show),
        as_json,
    )


@plan.command("show")
def plan_show(source: Plan, as_json: Json = False) -> None:
    """Show what is stored how, operator by operator; --json prints a plan that `plan apply` takes."""
    from graphpress.tools.cli import plans

    _show(plans.show(source), as_json)


@plan.command("diff")
def plan_diff(a: Plan, b: Plan, as_json: Json = False) -> None:
    """Show the sites at which plan B differs from plan A."""
    from graphpress.tools.cli import plans

    _show(plans.diff(a, b), as_json)


@plan.command("apply")
def plan_apply(
    model: Model,
    source: Plan,
    out: Annotated[Path, typer.Option("--out", help="The rewritten ONNX file.")],
    data: Data = None,
    images: Images = None,
    text: Text = None,
    audio: Audio = None,
    target: Target = "ort-cpu",
    gptq: Annotated[bool, typer.Option("--gptq", help="Round the weights by GPTQ.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: Json = False,
) -> None:
    """Quantize MODEL, tidied as every recipe begins, by a plan, and fold; static activations and GPTQ need --data."""
    from graphpress.tools.cli import plans

    _show(
        plans.apply(model, source, out, data=_given(data, images, text, audio), target=target, gptq=gptq, seed=seed),
        as_json,
    )


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one in full.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
    as_json: Json = False,
) -> None:
    """List the shipped recipes, or print one."""
    from graphpress.tools.cli import commands

    _show(commands.recipes(name, schema), as_json and not schema)


@app.command("passes")
def passes_(
    name: Annotated[str | None, typer.Argument(help="Show the options of this one.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Show their values in this recipe as well.")] = None,
    as_json: Json = False,
) -> None:
    """List all passes, or the options of one: what each takes, its default, what it means."""
    from graphpress.tools.cli import commands

    _show(commands.passes(name, recipe), as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("out/demo"), as_json: Json = False
) -> None:
    """Compile the shipped digits model to 8 bits and show the result."""
    from graphpress.tools.cli import commands

    raise typer.Exit(commands.demo(out, as_json))


@app.command()
def conformance(
    backend: Annotated[str, typer.Option("--backend", help="fx (torch), ort or reference.")] = "fx",
    op: Annotated[str | None, typer.Option("--op", help="Only the cases of this operator.")] = None,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="node, simple, pytorch-converted, ...")] = None,
    models: Annotated[
        Path | None, typer.Option("--models", help="Instead: every ONNX file below this folder, against the reference.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run ONNX's own backend test suite and show what passed, failed or is unsupported, by operator."""
    from graphpress.tools.cli import commands

    found = commands.conformance(backend, op, kind or []) if models is None else commands.compare_models(models)
    _show(found, as_json)
    raise typer.Exit(1 if found.count("failed") else 0)


def _given(data: Path | None, images: str | None, text: str | None, audio: str | None) -> Any:
    from graphpress.tools.cli import given

    return given.data_of(data, {"images": images, "text": text, "audio": audio})


def _show(result: Any, as_json: bool) -> None:
    """Print a result: its JSON, or itself as text or as something rich can draw."""
    if as_json:
        data = result.to_json() if hasattr(result, "to_json") else result
        print(json.dumps(data, indent=1))
        return
    from graphpress.tools.cli.terminal import show

    show(result)


def run() -> None:
    """Run the command line; every error the user can meet is one line."""
    sys.exit(guarded(lambda: app(standalone_mode=False), debug="--debug" in sys.argv))


def _interrupted() -> str:
    """That it was, and how to go on."""
    if any(word.partition("=")[0] == "--state" for word in sys.argv):
        return "interrupted: run the same command again to go on where it stood"
    advice = "nothing was written; with --state FILE a run made again goes on where it stood"
    return f"interrupted: {advice}" if "compile" in sys.argv else "interrupted"


def guarded(command: Callable[[], Any], debug: bool = False) -> int:
    """The exit code of a command, errors printed to standard error, one line each."""
    try:
        code = command() or 0
        return _fail(_interrupted(), code) if code == INTERRUPTED else code
    except typer.Exit as e:
        return e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_interrupted(), INTERRUPTED)
    except Exception as e:  # the last line of defence: whatever it is, one line
        from graphpress.errors import GateError, GraphpressError

        if debug:
            raise
        if isinstance(e, GraphpressError):
            return _fail(str(e), 1 if isinstance(e, GateError) else 2)
        if hasattr(e, "format_message"):  # the parser's own: unknown option, missing argument
            return _fail(e.format_message(), 2)
        if isinstance(e, OSError) and e.strerror:
            return _fail(f"{e.filename or 'system'}: {e.strerror}", 2)
        return _fail(f"internal error: {type(e).__name__}: {e}. Run again with graphpress --debug for the place.", 2)


def _fail(message: str, code: int) -> int:
    print(f"graphpress: {' '.join(message.split())}", file=sys.stderr)  # what others raise may have several lines
    return code
