"""Demonstrations from a scripted expert: privileged poses in, a LeRobot dataset with simulator states out."""
