"""The shared vocabulary: what every room may import. No torch here, and none above the runner."""
