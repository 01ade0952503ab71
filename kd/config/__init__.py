"""The settings of a run, their parsing, and the plan made from them."""
