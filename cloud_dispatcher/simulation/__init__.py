"""The real engine in virtual time, around a modelled fleet: what a policy is worth, tried out."""
