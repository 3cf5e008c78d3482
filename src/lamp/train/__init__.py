"""Training: what each stage trains and freezes, the loop, checkpoints that describe themselves."""
