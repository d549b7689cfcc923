"""Vectors to logits: ranking models."""
