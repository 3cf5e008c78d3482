"""Learned estimators as plug-ins: trackers, depth and cameras whose networks come from their authors' packages."""
