"""Readers of official downloads. Each reader returns a `Source`, and tools.prepare writes the source in VOC's layout."""
