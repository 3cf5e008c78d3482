"""Looking at data, foresight and results: overlays, strips, charts and a self-contained HTML report."""
