"""Observers: they subscribe to the layers and change none of them."""
