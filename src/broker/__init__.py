"""An event-sourced message broker."""

__version__ = "0.1.0"
