"""From a recipe to a finished run, in one process."""
