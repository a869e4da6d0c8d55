"""The loop, how requests get into it and news out of it, and the process it runs in."""
