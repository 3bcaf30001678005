"""Carries a patient's transfer between two hospitals of different NHS trusts, Kafka to Kafka."""

__version__ = "0.1.0"
