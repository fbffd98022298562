"""Identities of a fleet: an authority that issues, renews and revokes certificates."""
