"""What is drawn: the demo data, scribbles from masks, strokes."""
