"""Commands that need no daemon: inspect, pair, phantom, and the demonstration, which starts its
own.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.tree import Tree

from daemon.cli.escaping import plain, shown
from daemon.cli.options import Json
from daemon.cli.progress import progress
from daemon.cli.sentences import tell

if TYPE_CHECKING:
    from daemon.demo import DemoResult
    from workers.inspecting import Inspection

EXIT_HELD = 3
"""`pair` could not pair: the reasons were printed."""

Source = Annotated[
    Path,
    typer.Argument(metavar="PATH", exists=True, help="A DICOM file, or a folder of any depth."),
]


def demo(
    root: Annotated[
        Path,
        typer.Option(
            "--root", metavar="DIR", file_okay=False, help="Where it runs; left there to look at."
        ),
    ] = Path("demo"),
) -> None:
    """Send a phantom study through the whole system, and explain what happened.

    A real association, the real queue server, workers and index under DIR; ends with the pair.
    """
    from daemon.demo import run_demo

    console = Console(soft_wrap=True)
    with progress() as step:
        result = run_demo(root.absolute(), step)
    _explain(console, result)


def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")],
    size: Annotated[str, typer.Option(help="tiny, small, whole-body or total-body.")] = "small",
    patients: Annotated[int, typer.Option(min=1, help="How many patients.")] = 1,
    orientation: Annotated[str, typer.Option(help="HFS, HFP, FFS or FFP.")] = "HFS",
    as_json: Json = False,
) -> None:
    """Write synthetic PET/CT studies: scout, CT, reformats, PET NAC, PET AC, MIP."""
    from workers.phantom.study import PhantomSpec, write_study

    studies = []
    with progress(quiet=as_json) as step:
        for number in range(1, patients + 1):
            try:
                spec = PhantomSpec(number, size=size, orientation=orientation)  # type: ignore[arg-type]
            except ValueError as error:
                raise typer.BadParameter(str(error)) from None
            target = folder if patients == 1 else folder / f"patient-{number:03d}"
            made = write_study(spec, target, progress=lambda n, of: step("writing", n, of))
            studies.append(
                {"study": made.study_uid, "folder": str(target), "instances": made.count}
            )
    if as_json:
        print(json.dumps({"studies": studies}))
        return
    Console(soft_wrap=True).print(f"{made.count} instances a study in {folder}")


def inspect(path: Source, as_json: Json = False) -> None:
    """Explain roles, completeness and SUV of any DICOM file or folder."""
    from workers.inspecting import inspect_path

    with progress(quiet=as_json) as step:
        found = inspect_path(path, progress=lambda n: step("reading", n, 0))
    if as_json:
        print(json.dumps(found.to_json_object()))
    else:
        _print_inspection(Console(soft_wrap=True), found)


def pair(
    path: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write the pair into.")],
    study: Annotated[str | None, typer.Option(help="Which study, where there are several.")] = None,
    pet: Annotated[str | None, typer.Option(help="SeriesInstanceUID of the PET to take.")] = None,
    ct: Annotated[str | None, typer.Option(help="SeriesInstanceUID of the CT to take.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Pair whatever speaks against it.")
    ] = False,
    grid: Annotated[str, typer.Option(help="pet, ct or isotropic:<mm>.")] = "pet",
    nifti: Annotated[bool, typer.Option("--nifti", help="Write NIfTI files too.")] = False,
    strict_suv: Annotated[bool, typer.Option("--strict-suv", help="Adapt nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Pair the CT and PET of any DICOM folder into OUT; exit code 3 when it is held."""
    from config.tables.work import PairingSettings
    from workers.pairing.evidence import Override
    from workers.pairing.offline import pair_folder

    try:
        settings = PairingSettings(grid=grid, nifti=nifti, strict_suv=strict_suv)
    except ValueError:
        raise typer.BadParameter("a grid is pet, ct or isotropic:<mm>") from None
    override = Override(pet=pet, ct=ct, forced=force) if pet or ct or force else None
    with progress(quiet=as_json) as step:
        result = pair_folder(
            path, out, settings, override, study, progress=lambda n: step("reading", n, 0)
        )
    if as_json:
        print(json.dumps(result.to_json_object()))
    else:
        console = Console(soft_wrap=True)
        for reason in result.reasons:
            tell(console, "", shown(reason))
        console.print(f"{result.state}" + (f": {out}" if result.state == "ready" else ""))
    if result.state != "ready":
        raise typer.Exit(EXIT_HELD)


def _print_inspection(console: Console, found: Inspection) -> None:
    for study in found.to_json_object()["studies"]:
        console.print(
            f"[bold]Study {plain(study['study'])}[/bold]  patient {plain(study['patient_ID'])}"
        )
        table = Table(
            Column("Series, role", overflow="fold", max_width=24),
            Column("Complete, SUV", no_wrap=True),
            Column("Why", overflow="fold"),
        )
        for one in study["series"]:
            complete, suv = one["completeness"], one["suv"]
            count = f"{complete['received']}" + (
                f" of {complete['expected']}" if complete["expected"] else ""
            )
            why = [*one["role_reasons"], *complete["reasons"], *(suv["reasons"] if suv else ())]
            table.add_row(
                plain(f"{one['modality']} {one['series_description']}") + f"\n{one['role']}",
                f"{complete['state']}, {count}\n{_suv_words(suv)}".rstrip(),
                "\n".join(map(plain, why)),
            )
        console.print(table)
        pair_words = study["pair"]
        console.print(f"pair: [bold]{pair_words['state']}[/bold]")
        for reason in pair_words["reasons"]:
            tell(console, "  ", shown(reason))
    for one in found.rejected:
        console.print(f"not read: {plain(one.path)}: {plain(one.reason)}")


def _suv_words(suv: dict[str, Any] | None) -> str:
    if suv is None:
        return ""
    factor = suv["factor"]
    if isinstance(factor, list):
        return f"SUV {suv['status']}\nx {min(factor):.6g}…{max(factor):.6g}"
    return f"SUV {suv['status']}" + (f"\nx {factor:.6g}" if factor is not None else "")


def _explain(console: Console, result: DemoResult) -> None:
    archive = result.settings.layout.archive
    console.print(
        f"\n[bold]1. Sent[/bold] {result.sent} instances by C-STORE to port {result.port}"
    )
    console.print("\n[bold]2. Filed[/bold] into the tree")
    console.print(_tree(archive))
    table = Table("Series", "Instances", "Role", "Why", title="3. Judged", title_justify="left",
                  title_style="bold")  # fmt: skip
    for one in result.study["series"]:
        table.add_row(escape(one["series_description"]), str(one["instances"]), one["role"] or "",
                      escape("\n".join(one["role_reasons"])))  # fmt: skip
    console.print(table)
    meta, sphere = result.pair.meta, result.sphere
    after = _seconds_between(result.study["pair"]["needed_at"], result.study["pair"]["ready_at"])
    console.print(f"[bold]4. Paired[/bold] {after:.1f} s after the last slice it needed was filed, "
                  f"{result.seconds:.1f} s after the first byte was sent")  # fmt: skip
    for reason in result.study["pair"]["reasons"]:
        console.print(f"   {escape(reason)}")
    ct, pet = result.pair.ct, result.pair.pet
    sizes = f"both {tuple(pet.shape)} (C, H, W), {result.pair.units}"
    console.print(f"   ct.npy {ct.dtype} and pet.npy {pet.dtype}, {sizes}")
    console.print(f"   SUV by {escape(meta.suv.method)}")
    off = 100 * (sphere.suv / sphere.known_suv - 1)
    words = f"SUV {sphere.suv:.3f}, known {sphere.known_suv:.3f} ({off:+.2f} %)"
    console.print(f"   hot sphere: {words}; {sphere.hu:.1f} HU, known {sphere.known_hu:.1f}")
    for warning in meta.warnings:
        console.print(f"   warning: {escape(warning)}")
    counts = result.status["instances"]
    words = ", ".join(f"{number} {name}" for name, number in counts.items())
    console.print(f"\n[bold]5. Counted[/bold] {words}")
    console.print(f"\nPicture: {result.folder / 'qc.png'}")
    called = sys.argv[0]  # .venv/bin/petct-ingest where it is not on PATH
    program = called if called.endswith("petct-ingest") else "petct-ingest"
    console.print(f"Look on: {program} status --root {result.settings.layout.root}")


def _seconds_between(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()


def _tree(archive: Path) -> Tree:
    """Draw the archive: folders to the series, files as counts."""
    top = Tree(str(archive))

    def grow(branch: Tree, folder: Path) -> None:
        files = sorted(item for item in folder.iterdir() if item.is_file())
        instances = [item for item in files if item.suffix == ".dcm"]
        for item in files:
            if item not in instances:
                branch.add(item.name)
        if instances:
            branch.add(f"{len(instances)} instances")
        for item in sorted(item for item in folder.iterdir() if item.is_dir()):
            if item.name == ".petct":
                continue
            name, inner = item.name, item
            while True:  # one line for folders that hold nothing but a folder
                inside = list(inner.iterdir())
                if len(inside) != 1 or not inside[0].is_dir():
                    break
                inner = inside[0]
                name += f"/{inner.name}"
            grow(branch.add(name), inner)

    grow(top, archive)
    return top
