"""`lamp import-released` and `lamp export-released`: the authors' checkpoints as ours, and ours as theirs."""
