"""Tables and plots of results, and the paper's numbers beside them."""
