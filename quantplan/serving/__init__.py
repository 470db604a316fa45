"""Starting the server exactly as planned."""
