"""HTTP for registries: requests with redirects, retries, rate limits and TLS. No other package imports requests."""
