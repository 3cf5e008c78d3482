"""Scene flow estimated from video: what is recorded (depth, calibration, poses) is used as it is, the rest is found in the
images."""
