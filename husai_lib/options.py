"""Arguments and options of the command line: their types, names and help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Params = Annotated[
    list[Path],
    typer.Argument(metavar="PARAMS...", help="Parameter files, such as params/quickstart.yaml, run one after another."),
]
RunName = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]", help="<cycle>/<run>, <run>, its folder, or <cycle> for its newest; default: the newest."
    ),
]
AnyRun = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="<cycle>/<run>, <run>, its folder, or <cycle> for its newest; default: all."),
]
Evidence = Annotated[
    Path, typer.Option("--evidence", metavar="DIR", help="Folder that holds the runs.", show_default="evidence")
]
Assign = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a parameter, as sae.k=16; repeatable.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the cycle's newest run; finished steps are kept.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show each step: what it makes and needs, what is cached, why it runs; write nothing."
    ),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto prefers a GPU.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Evaluations at the same time; default: one per core.")]
Executor = Annotated[
    Literal["threads", "dask"] | None, typer.Option(help="Where tasks run; default: $HUSAI_EXECUTOR, or threads.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Scheduler of a running dask cluster; default: one is started here."),
]
Resources = Annotated[
    str | None, typer.Option(metavar="NAME=NUMBER", help="What a task needs of its worker, as GPU=1.")
]
Strict = Annotated[bool, typer.Option("--fail-on-gate-fail", help="Exit with code 3 where a required gate fails.")]
Accepting = Annotated[
    bool,
    typer.Option("--fail-on-acceptance-fail", help="Exit with code 3 where no weight of a sweep is accepted."),
]
Given = Annotated[str, typer.Argument(metavar="RUN|SAE_FOLDER", help="A run's candidate, or any SAELens folder.")]
Evals = Annotated[
    str, typer.Option(metavar="NAMES", help="Evaluations, as core,absorption; default: each that can run here.")
]
OfModel = Annotated[str | None, typer.Option(metavar="NAME", help="Language model of a folder, as model.name in YAML.")]
Bos = Annotated[bool | None, typer.Option(help="Whether texts start with BOS; default: what the folder says.")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="EVAL.KEY=VALUE", help="Change a setting of an evaluation.")
]
Copies = Annotated[Path | None, typer.Option(metavar="DIR", help="Also copy the results here; default: cache only.")]
Download = Annotated[bool, typer.Option("--download", help="Let sae-bench fetch missing data from the hub.")]
Records = Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER...", help="Records of an earlier cycle, as JSON.")]
ImportName = Annotated[str, typer.Option("--as", metavar="NAME", help="What the import is called: imported/NAME.")]
Compared = Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two runs or more, named as elsewhere.")]
Judged = Annotated[
    str, typer.Argument(metavar="RUN", help="<cycle>/<run>, <run>, its folder, or <cycle> for its newest.")
]
Into = Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder.")]
Failed = Annotated[
    bool,
    typer.Option("--even-if-failed", help="Export a candidate that failed, too; the first line of its card says so."),
]
Push = Annotated[str | None, typer.Option(metavar="REPO", help="Then upload it to this repository of the hub.")]
WithCache = Annotated[bool, typer.Option("--with-cache", help="Use what the cache has; faster, checks less.")]
Tolerance = Annotated[
    float, typer.Option(min=0, help="Absolute difference that counts as reproduced; 0 unless on another processor.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")]
PlanJson = Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")]
Deltas = Annotated[
    list[str] | None,
    typer.Option(
        "--delta", metavar="GATE=VALUE", help="True value of a gate's number; default: the estimate; repeatable."
    ),
]
Power = Annotated[float, typer.Option(min=0.05, max=0.99, help="Probability of passing that the plan is for.")]
SiteFolder = Annotated[
    Path | None, typer.Option("--site", metavar="DIR", help="Rendered site to check; default: _site if there is one.")
]
Out = Annotated[Path, typer.Option(help="Folder the pages are written to.", metavar="DIR")]
