"""What a model is worth: right answers by family, distance to fp32, size, speed; and the gates."""
