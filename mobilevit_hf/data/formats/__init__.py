"""The formats that data sets come in: a module each, with `recognises(folder)` and `read(folder)`."""
