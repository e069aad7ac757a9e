"""Reading pictures and data sets."""
