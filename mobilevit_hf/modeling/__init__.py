"""Everything that can ship to the Hub beside the weights: these files import their siblings only."""
