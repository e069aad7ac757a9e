"""Writers of predictions, one module per format; the readers are in `formats`."""
