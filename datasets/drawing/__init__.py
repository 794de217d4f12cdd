"""Drawing: the demo data, scribbles from masks, strokes."""
