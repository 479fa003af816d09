"""Notebooks as data: executing them, and (from recipes) writing them."""
