"""From images on disk to batches on the device: reader -> Index -> splits -> store -> views."""
