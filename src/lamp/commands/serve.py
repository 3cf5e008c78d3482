"""The command that answers robots and simulators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lamp.commands.command import Command, found_checkpoint
from lamp.flags import parse


def _serve(arguments: Sequence[str]) -> None:
    from lamp.serve.config import ServeConfig
    from lamp.serve.server import serve
    from lamp.view.overlay import ForesightArtist

    config = parse(ServeConfig, arguments, "serve")
    serve(replace(config, checkpoint=found_checkpoint(config.checkpoint)), artist=ForesightArtist())


COMMANDS: dict[str, Command] = {
    "serve": Command(summary="answer robots and simulators over the network", run=_serve, waits=True),
}
