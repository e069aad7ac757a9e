"""Dataset formats. Each module has `TASKS`, `recognizes(folder)` and `read(folder)`."""
