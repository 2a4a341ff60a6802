"""The run store: a run is a folder, and these modules are all that write and read it."""
