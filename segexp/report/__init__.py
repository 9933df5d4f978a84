"""`segexp report`: what compare found, as one page, figures and tables. No torch here."""
