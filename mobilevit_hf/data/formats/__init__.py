"""Dataset formats. Each module has `recognizes(folder)` and `read(folder)`."""
