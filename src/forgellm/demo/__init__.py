"""The main job on the model and the documents that come along: `forgellm demo`."""
