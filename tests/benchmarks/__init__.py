"""The benchmarks of scripts/bench: images, servers, tools and jobs."""
