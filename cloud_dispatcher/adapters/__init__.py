"""What touches the outside: databases, networks, models."""
