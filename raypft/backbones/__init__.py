"""Pretrained models and the only places where a method may touch them."""
