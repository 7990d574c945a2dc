"""What scripts/bench runs: data, real servers, real peers, and every job in turn."""
