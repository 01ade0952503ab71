"""What a run says of itself: reports, tables, pictures."""
