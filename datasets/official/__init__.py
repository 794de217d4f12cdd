"""Official downloads, each read as a `Source` that tools.prepare writes in the common layout."""
