"""The formats that datasets come in: a module each, with `recognizes(folder)` and `read(folder)`."""
