"""What comes in, looked at as a stranger's input: structure, data, templates, metadata, and what a source can run."""
