"""One file for each method: its outer struct, published keys and checks."""
