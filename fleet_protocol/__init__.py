"""The agreement both sides speak: messages, topics, codec, bus, routing rule.

Everything else in the repository stands on this package and it stands on nothing of the project.
"""

__version__ = "0.1.0"
