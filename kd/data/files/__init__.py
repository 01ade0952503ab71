"""The files of a folder: which of them are images, and whose."""
