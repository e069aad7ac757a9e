"""Parts of the scripts that reproduce the paper's results: stages, synthetic datasets, throughput."""
