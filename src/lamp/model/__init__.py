"""The networks of Figure 3: frozen backbone, Motion Expert, gated guidance, Action Expert."""
