"""`segexp compare`: from records to a verdict. No torch here."""
