"""From records to a verdict (`verdict.compare`). No torch here."""
