"""Native control domains: small domains whose code is Python, each with one task and what it needs for that."""
