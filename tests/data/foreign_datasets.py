"""Small LeRobot datasets as other tools write them, made with nothing but numpy, pyarrow, Pillow and PyAV, to be spoilt."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
FRONT = "observation.images.front"
DATA30, EPISODES30 = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


def write_frames(
    path: Path, frames: Sequence[np.ndarray], *, codec: str = "mpeg4", pixels: str = "yuv420p", **options: str
) -> None:
    """A video of frames in their own pixel format, or of 8-bit RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(FPS), options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        for frame in frames:
            if frame.ndim == 3:
                made = av.VideoFrame.from_ndarray(frame, format="rgb24")
            else:
                made = av.VideoFrame(frame.shape[1], frame.shape[0], pixels)
                width = made.planes[0].line_size // frame.itemsize
                padded = np.zeros((frame.shape[0], width), frame.dtype)
                padded[:, : frame.shape[1]] = frame
                made.planes[0].update(padded.tobytes())
            container.mux(stream.encode(made))
        container.mux(stream.encode(None))


def png(image: np.ndarray, mode: str | None = None, kind: str = "PNG") -> dict[str, Any]:
    """An encoded image as LeRobot's data files hold it."""
    content = io.BytesIO()
    made = Image.fromarray(image)
    (made.convert(mode) if mode else made).save(content, kind)
    return {"bytes": content.getvalue(), "path": None}


def picture(episode: int, frame: int, side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), (20 + 20 * episode, 20 + 8 * frame, 90), np.uint8)


def features(side: int = 16, camera: str | None = FRONT) -> dict[str, Any]:
    names = ("frame_index", "episode_index", "index", "task_index")
    found = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": [3], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in names},
    }
    if camera:
        found[camera] = {"dtype": "video", "shape": [side, side, 3], "names": ["height", "width", "channels"]}
    return found


def rows_of(episode: int, tasks: Sequence[int], start: int) -> pa.Table:
    """The data of an episode, its frames having these tasks."""
    random, length = np.random.default_rng(episode), len(tasks)

    def vectors() -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=3 * length).astype(np.float32)), 3)

    return pa.table(
        {
            "observation.state": vectors(),
            "action": vectors(),
            "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
            "frame_index": pa.array(np.arange(length)),
            "episode_index": pa.array(np.full(length, episode)),
            "index": pa.array(start + np.arange(length)),
            "task_index": pa.array(tasks, pa.int64()),
        }
    )


def statistics_of(column: pa.ChunkedArray) -> dict[str, Any]:
    """As LeRobot v2.1 has them, without quantiles."""
    values = np.array(column.to_pylist())
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(values)]}


def write_v30(
    root: Path,
    tasks_of: Sequence[Sequence[int]] = ((0,) * 6, (1,) * 5, (0,) * 6),
    texts: Sequence[str] = ("pick up the cube", "open the drawer"),
    *,
    side: int = 16,
    edit: Callable[[pa.Table], pa.Table] = lambda table: table,
    edit_info: Callable[[dict[str, Any]], Any] = lambda info: None,
    edit_row: Callable[[dict[str, Any]], Any] = lambda row: None,
) -> Path:
    """A dataset of version 3.0. The frames of each episode have the tasks given."""
    tables, rows, start = [], [], 0
    for episode, tasks in enumerate(tasks_of):
        tables.append(rows_of(episode, tasks, start))
        end = start + len(tasks)
        row: dict[str, Any] = {
            "episode_index": episode,
            "tasks": [texts[task] for task in dict.fromkeys(tasks)],
            "length": len(tasks),
        }
        row |= {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": start, "dataset_to_index": end}
        row |= {f"videos/{FRONT}/chunk_index": 0, f"videos/{FRONT}/file_index": 0}
        row |= {f"videos/{FRONT}/from_timestamp": start / FPS, f"videos/{FRONT}/to_timestamp": end / FPS}
        edit_row(row)
        rows.append(row)
        start = end
    (root / DATA30).parent.mkdir(parents=True)
    (root / EPISODES30).parent.mkdir(parents=True)
    pq.write_table(edit(pa.concat_tables(tables)), root / DATA30)
    pq.write_table(pa.Table.from_pylist(rows), root / EPISODES30)
    frames = [picture(episode, frame, side) for episode, tasks in enumerate(tasks_of) for frame in range(len(tasks))]
    write_frames(root / f"videos/{FRONT}/chunk-000/file-000.mp4", frames)
    table = {"task_index": pa.array(range(len(texts)), pa.int64()), "__index_level_0__": list(texts)}
    pq.write_table(pa.table(table), root / "meta/tasks.parquet")
    info = {
        "codebase_version": "v3.0", "robot_type": "so101", "total_episodes": len(tasks_of), "total_frames": start,
        "total_tasks": len(texts), "chunks_size": 1000, "fps": FPS, "splits": {"train": f"0:{len(tasks_of)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4", "features": features(side),
    }  # fmt: skip
    edit_info(info)
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/stats.json").write_text(json.dumps({"action": statistics_of(pa.concat_tables(tables)["action"])}))
    return root


def write_v21(
    root: Path,
    tasks_of: Sequence[Sequence[int]] = ((0,) * 6, (1,) * 5, (0,) * 6),
    texts: Sequence[str] = ("pick up the cube", "open the drawer"),
    *,
    side: int = 16,
) -> Path:
    """A dataset of version 2.1, which lists the tasks of an episode in any order."""
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta").mkdir()
    start, lines, statistics = 0, [], []
    for episode, tasks in enumerate(tasks_of):
        table = rows_of(episode, tasks, start)
        pq.write_table(table, root / f"data/chunk-000/episode_{episode:06d}.parquet")
        video = root / f"videos/chunk-000/{FRONT}/episode_{episode:06d}.mp4"
        write_frames(video, [picture(episode, frame, side) for frame in range(len(tasks))])
        listed = [texts[task] for task in dict.fromkeys(tasks)][::-1]
        lines.append({"episode_index": episode, "tasks": listed, "length": len(tasks)})
        statistics.append({"episode_index": episode, "stats": {"action": statistics_of(table["action"])}})
        start += len(tasks)
    listed_tasks = [{"task_index": index, "task": text} for index, text in enumerate(texts)]
    for name, rows in (("episodes", lines), ("episodes_stats", statistics), ("tasks", listed_tasks)):
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = {
        "codebase_version": "v2.1", "robot_type": "so101", "total_episodes": len(tasks_of), "total_frames": start,
        "total_tasks": len(texts), "total_videos": len(tasks_of), "total_chunks": 1, "chunks_size": 1000, "fps": FPS,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features(side),
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info))
    return root
