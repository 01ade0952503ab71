"""Where networks look: maps of teacher, student and the network alone, and how alike they are."""
