"""The frozen backbone's tokens of a dataset, computed once and read from shards."""
