"""Finding every fault of a dataset, and naming file, episode, frame and key."""

from lamp.data.check.check import check_dataset
from lamp.data.check.faults import Fault, Report

__all__ = ["Fault", "Report", "check_dataset"]
