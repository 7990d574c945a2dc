"""Many copies described by a TOML file."""
