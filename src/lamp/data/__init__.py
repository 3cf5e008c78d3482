"""Demonstrations and stores to batches: LeRobot datasets, normalisers, feature cache, samples."""
