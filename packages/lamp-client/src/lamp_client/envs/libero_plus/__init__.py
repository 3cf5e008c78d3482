"""LIBERO-Plus: LIBERO's forty tasks under seven kinds of perturbation, run from the user's own copy of its task files."""
