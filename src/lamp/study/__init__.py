"""Studies: when does a motion prior help? Many trainings that differ in one thing each, compared in pairs."""
