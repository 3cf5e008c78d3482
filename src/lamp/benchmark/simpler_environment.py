"""Where ManiSkill3 lives, whether its scenes are there and can be rendered; all that is missing is said at once."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, TimeoutExpired
from typing import Any

from lamp.errors import MissingDependencyError
from lamp_client.child_processes import run_program
from lamp_client.envs import simpler_assets
from lamp_client.envs.remote import Launch

VARIABLE = "LAMP_SIMPLER_PYTHON"
PLACE = Path(".venv-simpler/bin/python")
MODULE = "lamp_client.envs.simpler_process"
CHECK_S = 300.0
"""Importing ManiSkill3 takes half a minute on a busy machine."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An interpreter that can run the scenes."""

    launch: Launch
    versions: dict[str, str]
    fingerprint: str
    """Names the content of the scenes' files."""
    stand_ins: tuple[str, ...]
    """Files that are not the original ones."""


def find_environment(python: Path | None, assets: Path | None, renderer: str) -> Environment:
    """Looks for everything that the scenes need.

    Args:
        python: ManiSkill3's interpreter; None looks in the usual places.
        assets: The folder that holds ManiSkill's `data`; None: $MS_ASSET_DIR, or `~/.maniskill`.
        renderer: `cpu` or `gpu`.

    Raises:
        MissingDependencyError: Something is missing; the message says what, all of it, and how to get it.
    """
    chosen = interpreter(python)
    data = simpler_assets.folder(assets)
    problems, versions = [], {}
    if not chosen.is_file():
        problems.append(
            f"there is no {chosen}, ManiSkill3's own environment: build it with `make simpler-env`, or name its interpreter "
            f"with --python or ${VARIABLE}"
        )
    else:
        found = _checked(chosen, data.parent, renderer)
        versions = found["versions"]
        problems += [found["problem"]] if found["problem"] else []
    problems += _missing_assets(data, chosen)
    if problems:
        numbered = " ".join(f"({number}) {problem}." for number, problem in enumerate(problems, 1))
        raise MissingDependencyError(f"SimplerEnv cannot run here. {numbered}")
    return Environment(
        launch=Launch(command=(str(chosen), "-m", MODULE, "host"), environment=_variables(data.parent)),
        versions=versions,
        fingerprint=simpler_assets.fingerprint(data),
        stand_ins=tuple(simpler_assets.stand_ins(data)),
    )


def interpreter(chosen: Path | None) -> Path:
    """Where ManiSkill3's interpreter is, or would be: the one given, the variable's, or that of `make simpler-env`."""
    if chosen is not None:
        return chosen
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    beside = Path(sys.prefix).parent / PLACE
    # Absolute, but not resolved: a virtual environment's interpreter is a link, and works by the place of the link.
    return beside if beside.is_file() and not PLACE.is_file() else PLACE.absolute()


def _variables(assets: Path) -> dict[str, str]:
    return {"MS_ASSET_DIR": str(assets.absolute()), "PYTHONWARNINGS": "ignore"}


def _checked(python: Path, assets: Path, renderer: str) -> dict[str, Any]:
    """Asks the interpreter itself what it has."""
    command = [str(python), "-m", MODULE, "check", renderer]
    done = None
    try:
        done = run_program(
            command,
            capture_output=True,
            text=True,
            timeout=CHECK_S,
            stdin=DEVNULL,
            env={**os.environ, **_variables(assets)},
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, TimeoutExpired) as error:
        return {"problem": f"{' '.join(command)} does not run ({error})", "versions": {}}
    except (IndexError, ValueError):
        words = (done.stderr if done else "").strip().splitlines()[-1:] or ["no output"]
        return {"problem": f"{' '.join(command)} failed ({words[0]}): build it with `make simpler-env`", "versions": {}}


def _missing_assets(data: Path, python: Path) -> list[str]:
    problems = []
    for download, files in simpler_assets.missing(data).items():
        count = f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        problems.append(
            f"{data} lacks {count}: download the assets (CC BY-NC 4.0) with `MS_ASSET_DIR={data.parent} {python} -m "
            f"mani_skill.utils.download_asset {download}`, which replaces what is there of them, or name the folder that holds "
            "ManiSkill's `data` with --assets"
        )
    return problems
