"""Instructions that change within an episode: each frame has its own, from the recording to the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from backbones import Compact
from foreign_datasets import DATA30, EPISODES30, FRONT, write_v21, write_v30
from test_metadata import change_column, told
from test_sequences import Reader

from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.image_dataset import ImageSamples, Videos
from lamp.data.import_recording import import_recording
from lamp.data.lerobot import LeRobotDataset
from lamp.data.live_features import LiveFeatures
from lamp.data.normalizers import RawState, Standardise
from lamp.data.policy_dataset import PolicySamples, PolicyScaling, states_and_actions
from lamp.errors import DataError
from lamp.types import LeftPadding, Observations, RightPadding
from lamp_client.recording import Recorder, read_episode
from lamp_client.types import Observation

TEXTS = ("pick up the cube", "put it in the box")
TASKS_OF = ((0, 0, 0, 1, 1, 1), (1,) * 5, (1, 0, 1, 0, 0, 1))


@pytest.fixture(params=["v30", "v21"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> LeRobotDataset:
    """Version 2.1 lists an episode's tasks in any order, here the last first."""
    make = write_v30 if request.param == "v30" else write_v21
    return opened(make(tmp_path / request.param, TASKS_OF, TEXTS))


def opened(root: Path) -> LeRobotDataset:
    return LeRobotDataset(root, cameras={"top": FRONT})


def scaling(dataset: LeRobotDataset) -> PolicyScaling:
    states, actions = states_and_actions(dataset, [0, 1, 2], 4)
    return PolicyScaling(state_transform=RawState(), state=Standardise.fit(states), actions=Standardise.fit(actions))


def wanted(episode: int) -> list[str]:
    return [TEXTS[task] for task in TASKS_OF[episode]]


def test_each_frame_has_its_own(dataset: LeRobotDataset) -> None:
    for episode in range(3):
        texts, which = dataset.instructions(episode)
        assert [texts[place] for place in which] == wanted(episode)
        assert dataset.episode(episode).tasks == texts == tuple(dict.fromkeys(wanted(episode)))
    assert dataset.instruction(0, 2) == TEXTS[0] and dataset.instruction(0, 3) == TEXTS[1]
    assert dataset.describe()["tasks"] == {TEXTS[0]: 2, TEXTS[1]: 3}


def test_check_calls_them_sound_and_names_a_frame_whose_task_is_not_listed(dataset: LeRobotDataset) -> None:
    assert told(dataset.root) == []
    if dataset.meta.one_file_per_episode:
        path = dataset.root / "meta/episodes.jsonl"
        rows = [json.loads(line) | {"tasks": [TEXTS[0]]} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        change_column(dataset.root / EPISODES30, "tasks", lambda rows: [[TEXTS[0]] for _ in rows])
    lines = told(dataset.root)
    assert [line.split(", ")[1:3] for line in lines] == [
        ["episode 0", "frame 3"],
        ["episode 1", "frame 0"],
        ["episode 2", "frame 0"],
    ]
    assert f"is 1, {TEXTS[1]!r}; the list of episodes says {TEXTS[0]!r}" in lines[0]


def test_a_table_without_tasks_is_sound(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "data", TASKS_OF, TEXTS, edit_row=lambda row: row.pop("tasks"))
    dataset = LeRobotDataset(root)
    assert told(root) == [] and [place.task for place in dataset.episodes] == [TEXTS[0], TEXTS[1], TEXTS[1]]
    change_column(root / DATA30, "task_index", lambda rows: [7, *rows[1:]])
    with pytest.raises(
        DataError, match="episode 0, frame 0 has the task_index 7, which is not among the dataset's 2 tasks"
    ):
        LeRobotDataset(root).instructions(0)


def test_cached_parts_have_the_text_of_the_frame(dataset: LeRobotDataset) -> None:
    backbone = Compact(cameras=("top",))
    cache = FeatureCache.build(dataset, backbone)
    encoded = cache.encoded(np.arange(len(cache)))
    text, mask = backbone.text_tokens([text for episode in range(3) for text in wanted(episode)])
    assert torch.equal(encoded.tokens[:, -5:], text) and torch.equal(encoded.mask[:, -5:], mask)
    live = LiveFeatures(dataset, backbone)
    torch.testing.assert_close(live.encoded(np.arange(len(cache))).tokens, encoded.tokens, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("padding", [RightPadding(), LeftPadding()])
def test_cached_sequences_of_two_lengths_are_the_backbones_to_the_bit(
    dataset: LeRobotDataset, padding: RightPadding | LeftPadding
) -> None:
    backbone = Reader(cameras=("top",), padding=padding)
    cache = FeatureCache.build(dataset, backbone)
    rows = np.array([2, 3, 0, 12, 11, 5])
    images = [dataset.frames("top", int(cache.index.episode[row]), [int(cache.index.frame[row])]) for row in rows]
    texts = tuple(wanted(int(cache.index.episode[row]))[int(cache.index.frame[row])] for row in rows)
    expected = backbone.encode(
        Observations(images={"top": torch.from_numpy(np.concatenate(images))}, instructions=texts)
    )
    found = cache.encoded(rows)
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.mask, expected.mask)


def test_samples_have_the_instruction_of_their_frame_and_the_actions_of_all(dataset: LeRobotDataset) -> None:
    how = {"episodes": (0, 2), "chunk": 4, "scaling": scaling(dataset)}
    samples = PolicySamples(dataset, FeatureCache.build(dataset, Compact(cameras=("top",))), **how)
    assert [samples.instructions[i] for i in samples.instruction_index] == wanted(0) + wanted(2)
    pictures = ImageSamples(dataset=dataset, pictures=Videos(dataset=dataset), cameras=("top",), **how)
    observed = pictures.batch(np.array([2, 3, 7])).observations
    assert observed is not None and observed.instructions == (TEXTS[0], TEXTS[1], TEXTS[0])
    _, mask = samples.chunks(np.array([2]))  # its actions go on where the instruction changes
    assert mask.tolist() == [[True] * 4]


def test_a_frame_without_a_text_is_named(dataset: LeRobotDataset) -> None:
    if dataset.meta.one_file_per_episode:
        (dataset.root / "meta/tasks.jsonl").write_text(
            '{"task_index": 0, "task": "pick"}\n{"task_index": 1, "task": " "}\n'
        )
    else:
        change_column(dataset.root / "meta/tasks.parquet", "__index_level_0__", lambda rows: ["pick", " "])
    again = opened(dataset.root)
    pictures = {"pictures": Videos(dataset=again), "cameras": ("top",)}
    with pytest.raises(DataError, match="episode 0 has no task text at frame 3"):
        ImageSamples(dataset=again, episodes=(0,), chunk=4, scaling=scaling(again), **pictures)


def test_a_change_of_instruction_makes_a_cache_stale(dataset: LeRobotDataset) -> None:
    cache = FeatureCache.build(dataset, Compact(cameras=("top",)))
    before = (
        [dataset.fingerprint(episode) for episode in range(3)],
        [cache.fingerprints[episode] for episode in range(3)],
    )
    data = dataset.data_path(0)
    change_column(data, "task_index", lambda rows: [0, 0, 1, *rows[3:]])
    again = opened(dataset.root)
    now = [again.fingerprint(episode) for episode in range(3)]
    assert now[0] != before[0][0] and now[1:] == before[0][1:]
    fresh = FeatureCache.build(again, Compact(cameras=("top",)))
    assert fresh.fingerprints[0] != before[1][0] and fresh.fingerprints[1] == before[1][1]


def test_a_change_survives_recording_importing_and_training(tmp_path: Path) -> None:
    with Recorder(folder=tmp_path / "recording", fps=10) as recorder:
        for name, texts in (("e0", [TEXTS[0]] * 3 + [TEXTS[1]] * 3 + [TEXTS[0]]), ("e1", [TEXTS[1]] * 4)):
            recorder.begin(texts[0], name)
            for frame, text in enumerate(texts):
                images = {"top": np.full((16, 16, 3), 10 * frame, np.uint8)}
                state = np.array([frame, 1, 2], np.float32)
                recorder.add(
                    Observation(images=images, state=state, instruction=text),
                    np.full(3, frame, np.float32),
                    time_s=frame / 10,
                )
            recorder.end(success=True)
    recorded = read_episode(tmp_path / "recording", "e0")
    assert [frame["instruction"] for frame in recorded.frames] == [TEXTS[0]] * 3 + [TEXTS[1]] * 3 + [TEXTS[0]]
    import_recording(tmp_path / "recording", tmp_path / "data")
    assert told(tmp_path / "data") == []
    dataset = LeRobotDataset(tmp_path / "data")
    assert dataset.tasks == list(TEXTS)
    assert dataset.column("task_index", 0).tolist() == [0, 0, 0, 1, 1, 1, 0]
    rows = pq.read_table(tmp_path / "data" / EPISODES30).to_pylist()
    assert [row["tasks"] for row in rows] == [list(TEXTS), [TEXTS[1]]]
    states, actions = states_and_actions(dataset, [0, 1], 4)
    how = PolicyScaling(state_transform=RawState(), state=Standardise.fit(states), actions=Standardise.fit(actions))
    samples = PolicySamples(
        dataset, FeatureCache.build(dataset, Compact(cameras=("top",))), episodes=(0, 1), chunk=2, scaling=how
    )
    assert [samples.instructions[i] for i in samples.instruction_index] == [TEXTS[0]] * 3 + [TEXTS[1]] * 3 + [
        TEXTS[0]
    ] + [TEXTS[1]] * 4


def test_the_words_that_an_episode_began_with_stand_for_what_its_first_observations_were_told(tmp_path: Path) -> None:
    with Recorder(folder=tmp_path, fps=10) as recorder:
        recorder.begin("fold the towel", "named")
        for text in ("", "fold", "fold", "stop"):
            recorder.add(
                Observation(
                    images={"top": np.zeros((2, 2, 3), np.uint8)}, state=np.zeros(1, np.float32), instruction=text
                ),
                np.zeros(1, np.float32),
            )
    frames = read_episode(tmp_path, "named").frames
    assert [frame["instruction"] for frame in frames] == ["fold the towel"] * 3 + ["stop"]
