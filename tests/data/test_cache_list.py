"""`lamp cache list` and `lamp cache remove`: what caches a dataset has, and taking some away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from backbones import Compact, Plain

from lamp.cli import main
from lamp.data.augmentation import Augmentation
from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.feature_cache.report import list_caches, remove_caches
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import ConfigError, DataError
from lamp.info import recipes_using
from lamp.json_files import write_json
from lamp.recipes import recipe
from lamp.recipes.kinds import Recipe

VIEWS = Augmentation(views=1)


@pytest.fixture
def caches(dataset: LeRobotDataset) -> Path:
    FeatureCache.build(dataset, Compact(), augmentation=VIEWS)
    FeatureCache.build(dataset, Plain())
    write_json(dataset.root / "features/compact/hidden/abc/hidden.json", {"settings": {"seed": 3}})
    (dataset.root / "features/compact/hidden/abc/episode-000000.safetensors").write_bytes(b"1234")
    return dataset.root / "features"


def test_caches_are_listed_with_their_parts_and_sizes(caches: Path) -> None:
    found = {entry.name: entry for entry in list_caches(caches)}
    views = f"compact/views/{VIEWS.key}"
    assert list(found) == ["compact", views, "compact/hidden/abc", "plain"]
    assert [entry.episodes for entry in found.values()] == [4, 4, 1, 4]
    for name, folder in (("plain", caches / "plain"), (views, caches / views)):
        assert found[name].size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert sum(entry.size for entry in found.values()) == sum(
        path.stat().st_size for path in caches.glob("[a-z]*/**/*") if path.is_file()
    )
    assert found["compact"].description == Compact().description and found[views].description["views"] == 1


def test_one_cache_or_a_part_of_it_is_removed_and_nothing_else(caches: Path, dataset: LeRobotDataset) -> None:
    for wrong in ("nothing", "", "../features", "/", "compact/..", "compact/"):
        if wrong != "compact/":
            with pytest.raises(ConfigError, match="expected one of: "):
                remove_caches(caches, ["plain", wrong])
    assert (caches / "plain").is_dir(), "a wrong name among others removes nothing"
    assert [entry.name for entry in remove_caches(caches, ["compact/views"])] == [f"compact/views/{VIEWS.key}"]
    assert FeatureCache.is_complete(dataset, "compact")
    assert [entry.name for entry in remove_caches(caches, ["com"])] == ["compact", "compact/hidden/abc"]
    assert FeatureCache.is_complete(dataset, "plain") and not (caches / "compact").exists()
    assert not list(caches.glob(".tmp-*"))


def test_a_name_that_begins_several_is_asked_for_in_full(caches: Path, dataset: LeRobotDataset) -> None:
    FeatureCache.build(dataset, Plain(key="plain-2"))
    with pytest.raises(ConfigError, match=r"2 caches in .* are called 'plai'; expected one of: plain, plain-2"):
        remove_caches(caches, ["plai"])
    assert [entry.name for entry in remove_caches(caches, ["plain"])] == ["plain"]


def test_what_another_process_is_filling_stays(caches: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from lamp.data.feature_cache.work_sharing import EpisodeLocks\n"
        "claims = EpisodeLocks(Path(sys.argv[1])); claims.take(3); print('ready', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(caches / "plain")], stdout=subprocess.PIPE, env=os.environ
    )
    try:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(DataError, match="plain is being filled by another process"):
            remove_caches(caches, ["plain"])
    finally:
        other.kill()
        other.wait()
    remove_caches(caches, ["plain"])


def test_the_commands(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = caches.parent
    assert main(["cache", "list", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["name"] for line in found["caches"]][-1] == "plain" and found["folder"] == str(caches)
    assert main(["info", str(root), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["caches"]) == 4
    assert main(["cache", "remove", str(root)]) == 2
    assert "no cache is named" in capsys.readouterr().err
    assert main(["cache", "remove", str(root), "plain", "compact"]) == 0
    assert "removed plain (features, 4 episodes" in capsys.readouterr().out
    assert main(["cache", "list", str(root)]) == 0 and "no caches in" in capsys.readouterr().out
    assert main(["cache", "list", str(root / "nowhere")]) == 2


def test_the_recipes_that_a_cache_serves() -> None:
    demo = recipe("demo")
    assert isinstance(demo, Recipe)
    served = recipes_using({"kind": "small", "revision": 1, **demo.backbone.recorded})
    assert "demo" in served and "paper_libero" not in served
    paper = recipe("paper_libero")
    assert not isinstance(paper, Recipe) or "paper_libero" in recipes_using(paper.backbone.recorded)
    assert recipes_using({"kind": "small", "cameras": [["agentview", 3]]}) == []
