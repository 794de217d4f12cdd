"""Images, labels and their augmentation; every dataset is an index in VOC layout."""
