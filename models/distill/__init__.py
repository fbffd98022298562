"""Teach a small checkpoint what devices ask: generated examples, and a LoRA adapter learnt on them.

Only `train` imports torch; the examples are made without it.
"""
