"""Option files: strict YAML to typed, frozen options."""
