"""The HTTP client for registries: authorization, redirects, retries, rate limits, TLS and proxies.

No other package imports requests or urllib3.
"""
