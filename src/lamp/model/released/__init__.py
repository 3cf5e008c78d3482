"""The authors' released weights: their tensors as ours, and ours as theirs. `lamp.train.released` makes checkpoints of them."""

from lamp.model.released.artifact import load, read_pt
from lamp.model.released.golden import check
from lamp.model.released.sizes import ReleasedSizes

__all__ = ["ReleasedSizes", "check", "load", "read_pt"]
