"""What executes frozen networks: one class per backend, all with the same two methods."""
