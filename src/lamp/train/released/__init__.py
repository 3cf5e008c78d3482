"""`lamp import-released` and `lamp export-released`: the authors' checkpoints as ours, and ours as theirs."""

from lamp.train.released.export import export_released
from lamp.train.released.import_release import import_released

__all__ = ["export_released", "import_released"]
