"""What leaves a run: its picture, and later models."""
