"""The process that holds a SimplerEnv scene, run by the interpreter of ManiSkill3's own environment.

`python -m lamp_client.envs.simpler_process check cpu` says as JSON what is installed, and what is wrong; `... host N` answers a
`RemoteEnv` at the other end of socket N.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, get_args

from lamp_client.envs.remote import host
from lamp_client.envs.simpler import SimplerEnv, VulkanDevice, check_vulkan, versions
from lamp_client.envs.simpler_tasks import SIMPLER_TASKS, SimplerView
from lamp_client.errors import LampClientError

USAGE = (
    f"usage: python -m lamp_client.envs.simpler_process check {'|'.join(get_args(VulkanDevice))}, or host DESCRIPTOR"
)


class HostedSimpler(SimplerEnv):
    """A `SimplerEnv` that reports the versions it runs on."""

    @property
    def facts(self) -> dict[str, str]:
        return versions()


def open_env(settings: dict[str, Any]) -> HostedSimpler:
    """Opens a task by the settings that came over the link."""
    return HostedSimpler(
        SIMPLER_TASKS[settings["task"]],
        view=SimplerView(**settings["view"]),
        step_limit=settings["step_limit"],
        renderer=settings["renderer"],
    )


def check(renderer: VulkanDevice) -> dict[str, Any]:
    """Says what is installed, and what keeps it from rendering."""
    try:
        check_vulkan(renderer)
    except LampClientError as error:
        return {"problem": str(error), "versions": versions()}
    return {"problem": None, "versions": versions()}


def main(words: Sequence[str]) -> int:
    """Returns the exit code: 0 where all is well, 1 where a check found a problem."""
    match words:
        case ["check", ("cpu" | "gpu") as renderer]:
            result = check(renderer)
            print(json.dumps(result))
            return 0 if result["problem"] is None else 1
        case ["host", descriptor] if descriptor.isdecimal():
            host(int(descriptor), open_env)
            return 0
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
