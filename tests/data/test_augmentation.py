"""Augmented views: drawn again they are the same, they differ from each other, and a crop stays put over an episode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lamp.configuration import from_json, to_json
from lamp.data.augmentation import Augmentation, ColourJitter, RandomResizedCrop, sample_views
from lamp.errors import ConfigError

FRAMES = np.array([0, 2, 7])


def pictures(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (3, 8, 8, 3), np.uint8)
    return {
        "agentview": blocks.repeat(8, 1).repeat(8, 2),
        "wrist": blocks[:, :4].repeat(8, 1).repeat(8, 2),  # not square
    }


def test_a_view_can_be_drawn_again_and_differs_from_all_others() -> None:
    augmentation, images = Augmentation(views=3), pictures()
    drawn = [augmentation.view(view, images, episode=4, frames=FRAMES) for view in range(4)]
    for view, found in enumerate(drawn):
        again = Augmentation(views=9).view(view, images, episode=4, frames=FRAMES)
        for camera, image in images.items():
            assert found[camera].shape == image.shape and found[camera].dtype == np.uint8
            np.testing.assert_array_equal(found[camera], again[camera])
    assert drawn[0]["wrist"] is images["wrist"]
    for one in range(4):
        for other in range(one):
            assert np.abs(drawn[one]["agentview"].astype(int) - drawn[other]["agentview"]).mean() > 2
    other = augmentation.view(1, images, episode=5, frames=FRAMES)["agentview"]
    seeded = replace(augmentation, seed=1).view(1, images, episode=4, frames=FRAMES)["agentview"]
    assert not np.array_equal(other, drawn[1]["agentview"]) and not np.array_equal(seeded, drawn[1]["agentview"])


def test_a_frame_looks_the_same_whichever_others_it_is_drawn_with() -> None:
    augmentation, images = Augmentation(views=1), pictures()
    whole = augmentation.view(1, images, episode=0, frames=FRAMES)["agentview"]
    alone = augmentation.view(1, {"agentview": images["agentview"][1:2]}, episode=0, frames=FRAMES[1:2])["agentview"]
    np.testing.assert_array_equal(whole[1:2], alone)


def test_the_crop_is_one_for_an_episode_and_colours_are_each_frames_own() -> None:
    still = {camera: np.repeat(image[:1], 3, 0) for camera, image in pictures().items()}
    cropped = Augmentation(views=2, colour=None).view(1, still, episode=3, frames=FRAMES)
    for camera, images in cropped.items():
        assert (images == images[0]).all() and not np.array_equal(images, still[camera])
    coloured = Augmentation(views=2, crop=None).view(1, still, episode=3, frames=FRAMES)["agentview"]
    assert len({image.tobytes() for image in coloured}) == 3
    # Without a crop, every block stays one colour.
    np.testing.assert_array_equal(coloured, coloured[:, ::8, ::8].repeat(8, 1).repeat(8, 2))


def test_a_crop_is_inside_and_as_large_as_asked() -> None:
    random, crop = np.random.default_rng(0), RandomResizedCrop(area=(0.5, 0.8), aspect=(0.8, 1.25))
    for _ in range(200):
        left, top, right, bottom = crop.box(random, 120, 200)
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 120
        share, aspect = (right - left) * (bottom - top) / (120 * 200), (right - left) / (bottom - top) * 120 / 200
        assert 0.49 < share < 0.81 and 0.79 < aspect < 1.26
    tall = RandomResizedCrop(area=(1.0, 1.0), aspect=(4.0, 4.0)).box(random, 100, 100)
    assert tall[0] == 0 and tall[2] == 100 and tall[3] - tall[1] == pytest.approx(50)


def test_cameras_that_are_left_whole_and_colours_that_stay() -> None:
    crop = RandomResizedCrop(area=(0.4, 0.4), not_on=("wrist",))
    images = pictures()
    seen = Augmentation(views=1, crop=crop, colour=None).view(1, images, episode=0, frames=FRAMES)
    np.testing.assert_array_equal(seen["wrist"], images["wrist"])
    assert not np.array_equal(seen["agentview"], images["agentview"])
    same = ColourJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    still = Augmentation(views=1, crop=None, colour=same).view(1, images, episode=0, frames=FRAMES)
    np.testing.assert_array_equal(still["agentview"], images["agentview"])


def test_a_turned_hue_turns_red_towards_its_neighbours() -> None:
    red = {"agentview": np.zeros((1, 4, 4, 3), np.uint8) + np.array([200, 0, 0], np.uint8)}
    turn = ColourJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.5)
    found = [
        Augmentation(views=1, crop=None, colour=turn, seed=seed).view(1, red, episode=0, frames=FRAMES[:1])["agentview"]
        for seed in range(8)
    ]
    assert all(abs(int(image.max()) - 200) <= 2 and int(image.min()) <= 2 for image in found)
    assert len({tuple(image[0, 0, 0]) for image in found}) >= 6


def test_the_key_is_of_what_views_look_like_and_not_of_their_number() -> None:
    one = Augmentation(views=1)
    assert one.key == replace(one, views=7).key
    others = [replace(one, seed=1), replace(one, crop=None), replace(one, colour=ColourJitter(hue=0.1))]
    assert len({one.key, *(other.key for other in others)}) == 4
    assert from_json(Augmentation, to_json(others[1])) == others[1]


def test_the_draw_is_fixed_by_seed_and_epoch_and_even() -> None:
    one = sample_views(6000, 2, seed=3, epoch=5)
    np.testing.assert_array_equal(one, sample_views(6000, 2, seed=3, epoch=5))
    assert (one != sample_views(6000, 2, seed=3, epoch=6)).mean() > 0.6
    assert (one != sample_views(6000, 2, seed=4, epoch=5)).mean() > 0.6
    assert np.abs(np.bincount(one) - 2000).max() < 150


def test_what_does_not_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="-1 views"):
        Augmentation(views=-1)
    with pytest.raises(ConfigError, match="would all be alike"):
        Augmentation(views=2, crop=None, colour=None)
    with pytest.raises(ConfigError, match="crops of"):
        RandomResizedCrop(area=(0.5, 1.2))
    with pytest.raises(ConfigError, match="aspect"):
        RandomResizedCrop(aspect=(2.0, 1.0))
    with pytest.raises(ConfigError, match=r"hue 0\.7 given; expected 0 to 0\.5"):
        ColourJitter(hue=0.7)
