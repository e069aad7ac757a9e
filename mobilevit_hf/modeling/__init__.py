"""Model code that ships to the Hub next to the weights; these modules import their siblings only."""
