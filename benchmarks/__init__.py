"""Measurements of push, drain and start-up beside the raw limit and the real 1.x; see README.md here."""
