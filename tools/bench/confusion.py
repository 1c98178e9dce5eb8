"""``python -m graphpress.tools.bench.confusion --zoo DIR``: the accuracy gate against what a task's metric loses.

A recipe states what it may cost: ``gate.max_loss`` points, ``gate.max_nats``, and where a metric is itself a ratio of
signal and noise in decibels what noise at ``gate.min_sqnr`` adds to that. The gate, which sees no labels here, is wrong
where it lets pass what loses more than that, and where it stops what loses less than half of it. In between either is
right.
Each row is kept in ``--out`` as soon as it is measured; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from graphpress.job.bars import Gate
from graphpress.recipe import Recipe
from graphpress.tools.bench.file_runner import FileRunner
from graphpress.tools.bench.row import THREADS
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import add_options, tasks

RECIPES = "w8a8,w8a8-dynamic,w8a8-smooth,w8a16,w4a16,w4a16-gptq,w4a8,w4a8-rot,w4a4-rot"


@dataclass(frozen=True)
class Judged:
    """One model by one recipe.

    Attributes:
        metric: Its name, with its unit.
        before, after: Of the float and the new model.
        lost: In points of 100, in nats or in dB.
        stated: What the recipe may cost, in the same unit.
        verdict: Of the gate.
        figures: What it saw.
    """

    model: str
    recipe: str
    metric: str
    before: float
    after: float
    lost: float
    stated: float
    verdict: str
    figures: list[str]

    @property
    def right(self) -> str:
        """What the verdict is: right, missed, a false alarm, or undecided where it matters."""
        if self.lost > self.stated:
            return {"failed": "right", "passed": "missed"}.get(self.verdict, "undecided")
        return "false alarm" if self.lost < self.stated / 2 and self.verdict == "failed" else "right"


def measure(task: Task, name: str, folder: Path) -> Judged:
    """Compile without labels, ask the gate, score by the task."""
    import graphpress as gp

    recipe = Recipe.load(name)
    source, out = task.file(folder), folder / f"{task.name}.{name}.onnx"
    data = {k: a for k, a in task.data().items() if k != "labels"}
    model, report = gp.compile(source, recipe, data, gate=False, prove=False)
    gp.save(model, out)
    old, new = FileRunner(source, THREADS), FileRunner(out, THREADS)
    metric, before = next(iter(task.scores(old, old).items()))
    after = task.scores(new, old)[metric]
    lost, stated = before - after if task.higher else after - before, price(metric, before, recipe.gate)
    figures = [
        f"{o.name} {o.kind} {o.sqnr:.1f} dB"
        + "".join(f", {f.what} {f.value:.3g} ({f.low:.3g} to {f.high:.3g})" for f in o.figures)
        for o in report.gate.outputs
    ]
    return Judged(task.name, name, metric, before, after, lost, stated, report.gate.verdict, figures)


def price(metric: str, before: float, gate: Gate) -> float:
    """What a recipe may cost by its bars, in the unit of the metric.

    Of a ratio of signal and noise: noise at ``min_sqnr`` dB below the signal, added to what the float model leaves.
    """
    if "dB" in metric:
        return before + 10 * math.log10(10 ** (-before / 10) + 10 ** (-gate.min_sqnr / 10))
    return gate.max_nats if "nats" in metric else gate.max_loss


def rows(args: argparse.Namespace) -> Iterator[Judged]:
    """Those that are known already, then the others, each kept as it is found."""
    known = [Judged(**json.loads(line)) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    yield from known
    done = {(k.model, k.recipe) for k in known}
    for task in tasks(args.zoo, args.models):
        for name in args.recipes.split(","):
            if (task.name, name) not in done:
                with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
                    found = measure(task, name, Path(folder))
                with args.out.open("a") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
                yield found


def table(found: Sequence[Judged]) -> str:
    """As Markdown: the counts first, then every row."""
    counts = Counter(j.right for j in found)
    wrong = 100 * (counts["missed"] + counts["false alarm"]) / max(len(found), 1)
    lines = [
        f"{len(found)} cases: {counts['right']} right, {counts['missed']} missed, {counts['false alarm']} false alarms "
        f"({wrong:.1f} % wrong), {counts['undecided']} lose too much and are not decided on so few samples.", "",
        "| model | recipe | metric | float | after | lost | stated | verdict | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    models = [j.model for j in found]
    lines += [
        f"| {j.model} | {j.recipe} | {j.metric} | {j.before:.4g} | {j.after:.4g} | {j.lost:.3g} | {j.stated:g} | "
        f"{j.verdict} | {'' if j.right == 'right' else j.right} |"
        for j in sorted(found, key=lambda j: models.index(j.model))
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where over 2 % of the verdicts are wrong."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.confusion", description=__doc__)
    add_options(parser)
    parser.add_argument("--recipes", default=RECIPES, help="comma-separated")
    parser.add_argument("--out", type=Path, default=Path("confusion.jsonl"), help="where rows are kept")
    found = []
    for judged in rows(parser.parse_args(argv)):
        found.append(judged)
        print(
            f"{judged.model} {judged.recipe}: {judged.right} ({judged.verdict})",
            *judged.figures,
            sep="\n    ",
            file=sys.stderr,
        )
    print(table(found))
    return int(sum(j.right != "right" for j in found) > 0.02 * len(found))


if __name__ == "__main__":
    sys.exit(main())
