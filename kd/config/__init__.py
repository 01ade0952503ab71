"""What a run is asked to do: settings, their parsing, and the plan that they mean."""
