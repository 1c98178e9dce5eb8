"""Mixed precision: sensitivity, cost, and the search for the best plan under constraints."""
