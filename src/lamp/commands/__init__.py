"""The commands of the line: each reads its flags and calls the function that does the work, imported only then."""

from __future__ import annotations

from lamp.commands import bench, data, evaluate, recipe, share, show, study, train
from lamp.commands.command import Command

__all__ = ["COMMANDS", "Command"]

COMMANDS: dict[str, Command] = {
    name: command
    for room in (recipe, data, train, evaluate, study, show, share, bench)
    for name, command in room.COMMANDS.items()
}
COMMANDS["completion"] = Command(
    summary="let a shell complete commands and flags",
    run=lambda arguments: show.completion(arguments, COMMANDS),
)
