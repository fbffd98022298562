"""The gateway: the dispatcher over HTTP, for applications and people."""
