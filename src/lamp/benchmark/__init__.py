"""Evaluation on benchmarks: resumable runs of policies and controls on the same episodes, and tables with intervals."""
