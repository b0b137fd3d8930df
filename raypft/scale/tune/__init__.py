"""Campaigns on Ray Tune."""
