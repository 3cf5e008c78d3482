"""Finding every fault of a dataset, and naming file, episode, frame and key."""

from lamp.data.check.check import check_dataset
from lamp.data.check.faults import DatasetReport, Fault

__all__ = ["DatasetReport", "Fault", "check_dataset"]
