"""Tables of images and labels as people have them, and corrections to them."""
