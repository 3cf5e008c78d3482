"""The command `lamp-rig`: describe, check, record, run, replay and score a rig, or its twin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lamp_client.errors import LampClientError
from lamp_client.rig.commands.check import check, describe
from lamp_client.rig.commands.record import record
from lamp_client.rig.commands.run import replay, run
from lamp_client.rig.commands.score import score
from lamp_client.rig.safety import RigStoppedError
from lamp_client.rig.session import EXECUTORS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 a check found faults or the arm was stopped, 2 a mistake, 130 Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except RigStoppedError as error:
        print(f"lamp-rig: {error}", file=sys.stderr)
        return 1
    except (LampClientError, OSError) as error:
        print(f"lamp-rig: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lamp-rig: stopped by Ctrl-C", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    command = argparse.ArgumentParser(
        prog="lamp-rig",
        description="A real arm or its twin under a LaMP policy. No certified safety function: keep the emergency stop in reach.",
    )
    commands = command.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], about: str, *, rig: bool = True) -> Any:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=run)
        if rig:
            sub.add_argument("rig", help="the rig's file; or twin, twin:panda, twin:ARM.json")
            sub.add_argument("--task", default="stack_cup", help="the twin's task (default: stack_cup)")
            sub.add_argument(
                "--real-time", action="store_true", help="run the twin by the wall's clock, not as fast as it can"
            )
        return sub

    describe_parser = add("describe", describe, "write a description to start from", rig=False)
    describe_parser.add_argument("kind", choices=("twin", "flexiv"))
    describe_parser.add_argument("--arm", default="rizon4", help="the twin's arm: rizon4, panda or a .json file")
    describe_parser.add_argument("--out", type=Path, required=True, metavar="FILE")

    check_parser = add("check", check, "find out whether everything is there and right; nothing moves")
    check_parser.add_argument("--policy", metavar="HOST:PORT", help="a policy server, to be held against the rig")

    record_parser = add("record", record, "record demonstrations, for lamp import-recording")
    record_parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    record_parser.add_argument("--episodes", type=_positive, default=1)
    record_parser.add_argument(
        "--by", choices=("expert", "keyboard"), default=None, help="default: expert on the twin, else keyboard"
    )
    record_parser.add_argument("--instruction", default=None, help="default: the twin's task's")
    record_parser.add_argument("--seed", type=int, default=0, help="of the first layout")
    record_parser.add_argument("--condition", default="in_domain")
    record_parser.add_argument(
        "--noise", type=float, default=0.0, metavar="M", help="displace the expert's targets by so much"
    )
    record_parser.add_argument("--steps", type=_positive, default=None, help="the most in an episode")
    record_parser.add_argument("--keep-failures", action="store_true", help="keep the expert's failed episodes")

    run_parser = add("run", run, "let a policy act")
    _add_policy_options(run_parser)
    run_parser.add_argument("--policy", required=True, metavar="HOST:PORT")
    run_parser.add_argument("--instruction", default=None)
    run_parser.add_argument("--steps", type=_positive, default=None)
    run_parser.add_argument("--seed", type=int, default=0, help="of the twin's layout")
    run_parser.add_argument("--condition", default="in_domain")
    run_parser.add_argument("--record", type=Path, default=None, metavar="DIR")
    run_parser.add_argument("--confirm", action="store_true", help="ask before every chunk")
    run_parser.add_argument("--dry-run", action="store_true", help="command nothing, and say what would be")

    replay_parser = add("replay", replay, "repeat a recorded episode: the first test of signs, frames and the gripper")
    replay_parser.add_argument("recording", type=Path)
    replay_parser.add_argument("--episode", default=None, help="default: the first")
    replay_parser.add_argument("--speed", type=_share, default=1.0)
    replay_parser.add_argument("--dry-run", action="store_true")

    score_parser = add("score", score, "score policies against each other: the paper's protocol, interleaved and blind")
    _add_policy_options(score_parser)
    score_parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="trials.jsonl, which lamp report reads too"
    )
    score_parser.add_argument(
        "--method",
        action="append",
        required=True,
        metavar="NAME=HOST:PORT",
        help="once for each; NAME=expert: the script",
    )
    score_parser.add_argument("--conditions", nargs="+", default=["in_domain"])
    score_parser.add_argument(
        "--trials", type=_positive, default=None, help="a condition (default: 10 in domain, 5 in others)"
    )
    score_parser.add_argument(
        "--definition", choices=("body", "supplement"), default="body", help="of the stages, in the paper"
    )
    score_parser.add_argument("--stages", nargs="+", default=None, help="their names, on a real arm")
    score_parser.add_argument("--instruction", default=None)
    score_parser.add_argument("--steps", type=_positive, default=None)
    score_parser.add_argument("--seed", type=int, default=1000, help="of the first layout; not one that was recorded")
    return command


def _add_policy_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--executor",
        choices=EXECUTORS,
        default=None,
        help="default in real time: real_time where the policy can go on from committed actions, else asynchronous",
    )
    sub.add_argument(
        "--execute", type=_positive, default=None, help="actions of each chunk (default: as the policy says)"
    )
    sub.add_argument(
        "--every", type=_positive, default=5, help="steps after which the next chunk is asked for, but for open_loop"
    )
    sub.add_argument("--blend", type=int, default=0, help="asynchronous: steps over which chunks fade into each other")
    sub.add_argument("--delay", type=_positive, default=None, help="steps from asking to hand-over, but for open_loop")
    sub.add_argument("--another-rig", action="store_true", help="take a policy that was trained on another rig's data")
    sub.add_argument("--speed", type=_share, default=1.0, help="share of the described rate and speeds")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.05 to 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
