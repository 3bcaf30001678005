"""The FHIR REST window: a hospital without Kafka sends, looks, and fetches here."""
