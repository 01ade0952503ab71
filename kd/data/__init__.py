"""Images on disk -> batches on the device: reader -> Index -> splits -> store -> views."""
