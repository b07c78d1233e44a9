"""`wm2 doctor`."""

from __future__ import annotations

from wm2cli.cli.program import Json, app, emit


@app.command(
    epilog="[bold]Examples[/bold]\n\nwm2 doctor\n\nwm2 doctor --json | jq '.findings[] | select(.status != \"ok\")'"
)
def doctor(as_json: Json = False) -> None:
    """Look at this machine: what wm2 needs, what is missing, and the command that mends it."""
    from wm2cli import doctor as command

    findings = command.doctor()
    if as_json:
        emit(command.to_dict(findings))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for column in ("", "what", "found", "how to mend it"):
            table.add_column(column, overflow="fold")
        marks = {"ok": "[green]ok[/green]", "missing": "[yellow]--[/yellow]", "broken": "[red]!![/red]"}
        for finding in findings:
            table.add_row(marks[finding.status], finding.name, finding.found, finding.mend)
        Console().print(table)
    broken = [finding for finding in findings if finding.status == "broken"]
    if broken:
        from wm2cli.errors import ResourceError

        raise ResourceError(
            "wm2 cannot work here", problems=[f"{item.name}: {item.found}; {item.mend}" for item in broken]
        )
