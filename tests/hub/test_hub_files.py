"""Copies of repositories: what is asked of the hub, what is used where it cannot be reached, and what is never used."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_in_hub import Hub, serving

from lamp.data.lerobot import LeRobotDataset
from lamp.data.lerobot.reader import find_dataset
from lamp.errors import DataError, MissingDependencyError
from lamp.hub import Fetch, HubId, fetch

ALL = Fetch(instead="Use a folder.")
FILES = {"lamp.json": b"{}", "deep/er.txt": b"x" * 5000, "skipped.bin": b"0"}


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("me/policy", "me/policy", None),
        ("me/policy@v1.0", "me/policy", "v1.0"),
        ("me/policy@refs/pr/1", "me/policy", "refs/pr/1"),
        ("lerobot/pusht_image", "lerobot/pusht_image", None),
    ],
)
def test_ids(text: str, name: str, revision: str | None) -> None:
    assert HubId.parse(text) == HubId(name=name, revision=revision)
    assert str(HubId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["/a/b", "./a", "../a/b", "~/a", "a", "a/b/c", "a/b@", "a/.b", "outputs/policy", "runs/policy", "", "@v1", "a b/c"],
)
def test_paths_are_no_ids(text: str) -> None:
    assert HubId.parse(text) is None


def test_two_revisions_are_refused() -> None:
    assert HubId.parse("a/b@v1", "v1") == HubId.parse("a/b", "v1")
    with pytest.raises(DataError, match="a/b@v1 names revision v1, and v2 is given beside it"):
        HubId.parse("a/b@v1", "v2")


def test_files_by_pattern_of_a_revision(hub: Hub) -> None:
    old = hub.repo("me/policy").commit({"lamp.json": b"old"})
    hub.repo("me/policy").commit(FILES)
    wanted = Fetch(patterns=("*.json", "deep/*"), instead="")
    folder = fetch(HubId(name="me/policy"), wanted)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["er.txt", "lamp.json"]
    assert (folder / "deep/er.txt").read_bytes() == FILES["deep/er.txt"]
    earlier = fetch(HubId(name="me/policy", revision=old), wanted)
    assert earlier.name == old and (earlier / "lamp.json").read_bytes() == b"old"


def test_the_newest_is_asked_for_and_what_was_copied_serves_without_a_hub(hub: Hub) -> None:
    repo = hub.repo("me/policy")
    repo.commit({"lamp.json": b"1"})
    first = fetch(HubId(name="me/policy"), ALL)
    pinned = HubId(name="me/policy", revision=first.name)
    repo.commit({"lamp.json": b"2"})
    second = fetch(HubId(name="me/policy"), ALL)
    assert (second / "lamp.json").read_bytes() == b"2" and second != first
    hub.asked.clear()
    assert fetch(pinned, ALL) == first and not hub.asked, "a commit that is here never changes"
    assert fetch(HubId(name="me/policy"), Fetch(instead="", stored_first=True)) == second and not hub.asked
    hub.shutdown()
    hub.server_close()
    assert fetch(HubId(name="me/policy"), ALL) == second


def test_a_repository_that_is_gone_is_not_taken_from_the_cache(hub: Hub) -> None:
    hub.repo("me/policy").commit(FILES)
    fetch(HubId(name="me/policy"), ALL)
    del hub.repos["models/me/policy"]
    with pytest.raises(DataError, match="there is no model at"):
        fetch(HubId(name="me/policy"), ALL)


def test_an_unreachable_hub_is_one_line_that_names_the_folder(hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    begun = time.monotonic()
    with pytest.raises(DataError) as caught:
        fetch(HubId(name="me/policy", revision="v1"), ALL)
    told = str(caught.value)
    assert told.startswith("no folder me/policy, and the model hub does not give it at revision v1 ([Errno ")
    assert told.endswith(". Use a folder.") and "\n" not in told
    assert time.monotonic() - begun < 10, "no long round of retries"


def test_gated_and_unknown_repositories_and_revisions(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("me/gated").commit(FILES)
    hub.repo("me/gated").gated = True
    with pytest.raises(
        DataError, match=r"it is gated: ask for access at http.*/me/gated, and log in with `hf auth login`"
    ):
        fetch(HubId(name="me/gated"), ALL)
    with pytest.raises(DataError, match=r"there is no model at http.*/me/none, or it is private: log in with"):
        fetch(HubId(name="me/none"), ALL)
    hub.repo("me/policy").commit(FILES)
    hub.repo("me/policy").commit(FILES, branch="stable")
    with pytest.raises(DataError, match=r"at revision v9 .it has no such revision; it has main, stable."):
        fetch(HubId(name="me/policy", revision="v9"), ALL)


def test_a_private_repository_needs_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from stand_in_hub import TOKEN

    hub.repo("me/private").commit(FILES)
    hub.repo("me/private").private = True
    with pytest.raises(DataError, match="or it is private"):
        fetch(HubId(name="me/private"), ALL)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (fetch(HubId(name="me/private"), ALL) / "lamp.json").is_file()


def test_an_interrupted_copy_is_never_half_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files first: when the large one is cut off, the folder of the commit is there and looks like one."""
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    hub.repo("me/policy").commit(FILES)
    hub.cut = "deep/er.txt"
    with pytest.raises(DataError, match=r"the model hub does not give it \("):
        fetch(HubId(name="me/policy"), ALL)
    for wanted in (ALL, Fetch(instead="", stored_first=True)):
        hub.cut = "deep/er.txt"
        with pytest.raises(DataError, match="the model hub does not give it"):
            fetch(HubId(name="me/policy"), wanted)
    hub.cut = None
    folder = fetch(HubId(name="me/policy"), Fetch(instead="", stored_first=True))
    assert (folder / "deep/er.txt").read_bytes() == FILES["deep/er.txt"]


def test_a_copy_that_was_killed_is_not_used_without_the_hub(tmp_path: Path) -> None:
    """A process that is killed in the midst; then the hub goes away; older clients would give the half that is there."""
    script = (
        "import sys, os\nfrom lamp.hub import Fetch, HubId, fetch\n"
        "import huggingface_hub._snapshot_download as module\n"
        "real = module.hf_hub_download\n"
        "def once(*a, **k):\n    path = real(*a, **k)\n    print(path, flush=True)\n    os.kill(os.getpid(), 9)\n"
        "if sys.argv[1] == 'kill': module.hf_hub_download = once\n"
        "print(fetch(HubId(name='me/policy'), Fetch(instead='Use a folder.')))\n"
    )
    with serving() as hub:
        hub.repo("me/policy").commit(FILES)
        settings = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}

        def run(how: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([sys.executable, "-c", script, how], env=settings, capture_output=True, text=True)

        killed = run("kill")
        assert killed.returncode == -9 and list((tmp_path / "hub").rglob("snapshots/*/*"))
        # As an older client, which keeps no list of what a commit has.
        for listing in (tmp_path / "hub").rglob("trees/*.json"):
            listing.unlink()
        hub.shutdown()
        hub.server_close()
        alone = run("plainly")
        assert alone.returncode == 1 and "the model hub does not give it" in alone.stderr


def test_what_other_programs_copied_is_used(hub: Hub) -> None:
    from huggingface_hub import snapshot_download

    hub.repo("me/policy").commit(FILES)
    theirs = snapshot_download("me/policy")
    hub.shutdown()
    hub.server_close()
    assert fetch(HubId(name="me/policy"), ALL) == Path(theirs)


def test_the_check_comes_before_any_file(hub: Hub) -> None:
    hub.repo("me/policy").commit(FILES)

    def refuse(names: object) -> None:
        assert sorted(names) == sorted(FILES)  # pyright: ignore[reportArgumentType, reportCallIssue]
        raise DataError("not this")

    with pytest.raises(DataError, match=r"^not this$"):
        fetch(HubId(name="me/policy"), ALL, refuse)
    assert not any("resolve" in asked for asked in hub.asked)


def test_datasets_come_the_same_way(hub: Hub, tmp_path: Path) -> None:
    fixture = Path(__file__).parents[1] / "fixtures" / "lerobot" / "v21"
    files = {path.relative_to(fixture).as_posix(): path.read_bytes() for path in fixture.rglob("*") if path.is_file()}
    hub.repo("me/data", "datasets").commit(files)
    assert len(LeRobotDataset("me/data")) == 3
    hub.asked.clear()
    folder = find_dataset("me/data@main")
    assert find_dataset("me/data") == folder and not hub.asked, "what was copied is used without asking"
    with pytest.raises(
        DataError, match=r"me/none is neither a folder nor a dataset that the hub gives us \(there is no dat"
    ):
        find_dataset("me/none")
    (tmp_path / "me" / "data").mkdir(parents=True)
    assert find_dataset(tmp_path / "me" / "data") == tmp_path / "me" / "data"


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        MissingDependencyError, match=r"needs huggingface_hub: pip install huggingface_hub\. Use a folder"
    ):
        fetch(HubId(name="me/policy"), ALL)


@pytest.mark.parametrize("name", ["../../x.txt", "/x.txt", "a/../../x", "..\\x.txt", "C:\\x", "./lamp.json"])
def test_files_that_lead_out_of_their_folder_are_not_fetched(name: str, hub: Hub) -> None:
    hub.repo("me/policy").commit(FILES | {name: b"hello"})
    hub.asked.clear()
    with pytest.raises(DataError, match="leads out of its folder: nothing was copied"):
        fetch(HubId(name="me/policy"), ALL)
    assert not [asked for asked in hub.asked if "resolve" in asked]
