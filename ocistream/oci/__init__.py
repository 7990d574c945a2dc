"""Data of the image-spec as Python values: references, descriptors, documents, platforms, image graphs. No I/O."""
