"""The numbered rules on what arrives, and what shows them."""
