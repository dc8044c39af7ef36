"""The command `mirror`: a copy in an object store, kept up, made once, or compared."""

from __future__ import annotations

import json
import threading
from typing import Annotated, Any

import typer
from rich.console import Console

from daemon.cli.escaping import plain
from daemon.cli.options import Config, Json, Root, settings_of

EXIT_DRIFT = 3
"""The store lacks something, or holds other bytes; it was named."""

_SHOWN = 20


def mirror(
    root: Root = None,
    config: Config = None,
    once: Annotated[
        bool, typer.Option("--once", help="Send what the store lacks, then end.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the digests of all objects with the index.")
    ] = False,
    checksums: Annotated[
        bool, typer.Option("--checksums", help="With --verify: read every byte back.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --verify: send anew what differs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy tree and pairs into the object store of the table mirror, until it is told to stop.

    Exit code 3 when the store differs (--verify), or files of the tree could not be sent (--once).
    """
    if (checksums or repair) and not verify:
        raise typer.BadParameter("--checksums and --repair go with --verify")
    settings = settings_of(root, config)
    from daemon.cli.progress import progress
    from daemon.mirroring import mirror_once, mirroring, run_mirror
    from workers.mirroring.comparing import Comparer

    if not (once or verify):
        from daemon.cli.roles import serve

        serve(run_mirror, settings, "mirror", status=lambda: f"copies go to {settings.mirror.url}")
        return
    settings.layout.make_private()
    stop = threading.Event()
    with (
        progress(quiet=as_json) as tell,
        mirroring(settings, stop, tell, alone=once) as one,
    ):
        if verify:
            found = Comparer(one, read_back=checksums, repair=repair).run()
            result: dict[str, Any] = found.to_json_object()
            left = found.left
        else:
            sent = mirror_once(one, stop)
            left = len(sent.left_out)
            result = {"objects": sent.objects, "bytes": sent.bytes,
                      "left_out": [file.key for file in sent.left_out]}  # fmt: skip
    if as_json:
        print(json.dumps(result))
    else:
        _print(Console(soft_wrap=True, highlight=False), result)
    if left:
        raise typer.Exit(EXIT_DRIFT)


def _print(console: Console, result: dict[str, Any]) -> None:
    """Say in words what came of it; keys are shown, and none steers the terminal."""
    if "compared" in result:
        looked = ", ".join(f"{n:,} {what}" for what, n in result["compared"].items())
        console.print(f"compared: {looked or 'nothing is filed yet'}")
        lines = [
            f"{one['drift']}  {one['key']}" + (" (sent anew)" if one["mended"] else "")
            for one in result["differences"]
        ]
    else:
        console.print(f"sent: {result['objects']:,} objects, {result['bytes']:,} bytes")
        lines = [f"left out  {key}: `petct-ingest check`" for key in result["left_out"]]
    for line in lines[:_SHOWN]:
        console.print("  " + plain(line))
    if len(lines) > _SHOWN:
        console.print(f"  and {len(lines) - _SHOWN:,} more (--json names all)")
    if not lines and "compared" in result:
        console.print("[bold green]the store holds all of it[/bold green]")
