"""3-D scene flow: from a recorded simulation to a store, and from the store to what the Motion Expert learns."""
