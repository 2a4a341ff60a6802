"""What is in a dataset and what should not be: measured, listed, and taken out of a copy."""
