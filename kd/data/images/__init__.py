"""From the bytes of an image file to pixels of 8 bits."""
