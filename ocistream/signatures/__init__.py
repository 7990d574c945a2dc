"""Verify signatures: cosign's tags, and Sigstore bundles as referrers."""
