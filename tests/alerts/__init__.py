"""Alerts and the dashboard in the eyes of Prometheus itself, which `make alerts` wants to find on the path."""
