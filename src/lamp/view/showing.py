"""The report's pictures: foresight, films of episodes, strips."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.films import FILM_FPS
from lamp.data.video import video_info
from lamp.data.video_reading import read_frames
from lamp.errors import DataError
from lamp.files import path_inside
from lamp.view import pages
from lamp.view.evidence import Evidence
from lamp.view.pages import Section
from lamp.view.strips import strip

WIDE = 2.4
"""A picture at least this many times as wide as high takes the page's whole width."""


def foresight(pictures: Sequence[tuple[Path, str]]) -> Section:
    """What the motion prior expects to happen."""
    if not pictures:
        return Section(
            anchor="foresight", title="Foresight", body=pages.absent("This run has no pictures of predicted motion.")
        )
    shown = [(path, caption) for path, caption in pictures if path.is_file()]
    figures = [
        pages.figure(pages.picture(path, caption), escape(caption), "full" if len(shown) == 1 or _wide(path) else "")
        for path, caption in shown
    ]
    about = (
        '<p class="about">Each line is the path of one grid point: now<span class="ramp"></span>later. '
        "Faint dots stay where they are.</p>"
    )
    return Section(anchor="foresight", title="Foresight", body=about + pages.gallery(figures, broad=True))


def _wide(path: Path) -> bool:
    with Image.open(path) as image:
        return image.width >= WIDE * image.height


def episodes(found: Evidence, most: int) -> Section:
    """Films of the policy with its foresight drawn over them."""
    filmed = [
        (path, record)
        for folder, records in zip(found.folders, found.records, strict=True)
        for record in records
        if record.video and (path := path_inside(folder, record.video, "film of an episode")).is_file()
    ]
    if not filmed:
        return Section(anchor="episodes", title="Episodes", body=pages.absent("No episode of this run was filmed."))
    # Failures teach as much as successes: the films shown hold some of each, as far as there are.
    wins = [item for item in filmed if item[1].success]
    losses = [item for item in filmed if not item[1].success]
    lost = min(len(losses), max(most // 3, most - len(wins)))
    chosen = sorted([*wins[: most - lost], *losses[:lost]], key=lambda item: (item[1].task, item[1].state))
    figures = [_film(path, record) for path, record in chosen]
    about = (
        "Agent view at twice real time, with the foresight of the chunk being executed. "
        f"{len(chosen)} of {len(filmed)} filmed episodes."
    )
    rows = [pages.figure(_strip(path), _film_caption(record), "full") for path, record in chosen[:3]]
    body = pages.gallery(figures) + pages.gallery(rows, broad=True)
    return Section(anchor="episodes", title="Episodes", about=about, body=body)


def _frames(path: Path, shown: int) -> np.ndarray | None:
    """Frames spread over a film; None where it cannot be read."""
    try:
        count = video_info(path).frames
        return read_frames(
            path, [round(index * (count - 1) / max(1, shown - 1)) for index in range(min(shown, count))], FILM_FPS
        )
    except DataError:
        return None


def _film(path: Path, record: EpisodeRecord) -> str:
    frames = _frames(path, 3)
    return pages.figure(pages.film(path, None if frames is None else frames[len(frames) // 2]), _film_caption(record))


def _film_caption(record: EpisodeRecord) -> str:
    badge = '<span class="badge good">success</span>' if record.success else '<span class="badge bad">no success</span>'
    where = f"task {record.task}, state {record.state}, {record.steps} steps"
    return f"{badge}{escape(record.instruction)} <span class=small>({where})</span>"


def _strip(path: Path) -> str:
    frames = _frames(path, 8)
    if frames is None:
        return ""
    small = frames[:, ::2, ::2] if frames.shape[1] > 300 else frames
    return f'<img alt="episode strip" src="{pages.data_uri(pages.jpeg(strip(list(small))), ".jpg")}">'
